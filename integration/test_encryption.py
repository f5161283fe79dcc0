"""An encrypted disk: what is made of it is encrypted alike, or refused unless the caller allows it plain."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import anyio
import pytest

from integration.known_images import KIB, MIB, QEMUS, overwritten
from integration.machines import listing, messages, traced
from qmpsnap import launch
from qmpsnap.errors import Changed, CommandFailed, Unsupported
from qmpsnap.plan.checks.encryption import CLEAR
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Mirror,
    Revert,
    Save,
    Snapshot,
    Stream,
)

SECRET = ("--object", "secret,id=s,data=abc")
MARK = b"\xa7" * 512  # what the guest writes: to be found in no file


_MADE: dict[tuple, bytes] = {}


def encrypted(qemu, folder, way, *, backing=None, name="", secret=SECRET):
    """Make an encrypted image; return its path and the options of its node."""
    file = folder / (name or f"{way}{'-top' if backing else ''}.img")
    key = (qemu.version, way, backing, secret)
    if key not in _MADE:  # QEMU measures the host's speed for seconds, each time
        _MADE[key] = _made(qemu, file, way, backing, secret)
    file.write_bytes(_MADE[key])
    if way == "qcow2":
        more = {"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "s"}}
    else:
        more = {"driver": "luks", "key-secret": "s"}
    node = {**more, "file": {"driver": "file", "filename": str(file)}}
    return str(file), node if way != "raw on luks" else {"driver": "raw", "file": node}


def _made(qemu, file, way, backing, secret):
    options = "key-secret=s,iter-time=10"
    words = ["-f", "luks", "-o", options, file, MIB]
    if way == "qcow2":
        base = ("-u", "-b", backing, "-F", "qcow2") if backing else ()
        options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        words = ["-f", "qcow2", *base, "-o", options, file, MIB]
    for _ in range(9):  # it may find itself unable to measure
        qemu.img("create", "-q", *secret, *words, check=False)
        if file.exists() and '"encrypted": true' in qemu.img("info", "--output=json", file):
            return file.read_bytes()
    raise AssertionError(f"{file} could not be made")


def on(node, *files, secret="s"):
    """The options of a chain of encrypted qcow2 overlays, active first, on a base that is given as a node."""
    for file in reversed(files):
        encrypt = {"format": "luks", "key-secret": secret}
        overlay = {"driver": "qcow2", "encrypt": encrypt, "file": {"driver": "file", "filename": file}}
        node = {**overlay, "backing": node}
    return node


def reads(qemu, node, folder, *secrets):
    """Every byte that a chain reads; the image is whole."""
    name, out = f"json:{json.dumps(node)}", folder / "read.raw"
    if node["driver"] == "qcow2":
        qemu.img("check", "-q", *(secrets or SECRET), name)
    qemu.img("convert", *(secrets or SECRET), "-O", "raw", name, out)
    try:
        return out.read_bytes()
    finally:
        out.unlink()


def given(node, name="vda"):
    """The arguments of a disk on that node."""
    return (
        "-blockdev",
        json.dumps({**node, "node-name": f"{name}-node"}),
        "-device",
        f"virtio-blk-pci,drive={name}-node,id={name}",
    )


def clear(folder):
    """The files in which what the guest wrote can be read."""
    return {path.name for path in folder.rglob("*") if path.is_file() and MARK in path.read_bytes()}


WAYS = ["qcow2", "luks", "raw on luks"]
BLOCK = 64 * KIB


def blocks(*marked, of=bytes(MIB)):
    """What a disk reads of which the guest has written these blocks."""
    return overwritten(of, *((0xA7, number * BLOCK, BLOCK) for number in marked))


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_made_of_an_encrypted_disk_is_encrypted_alike(qemu, machine, tmp_path, way):
    _, node = encrypted(qemu, tmp_path, way)
    base = node["file"] if way == "raw on luks" else node  # a `backing` is not opened whose file has a file
    blank = reads(qemu, base, tmp_path)  # where nothing was written, LUKS reads as noise
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            for number, name in enumerate(("one", "two", "three", "four")):
                running.write("vda", 0xA7, number * BLOCK, BLOCK)
                done = await vm.snapshot(name)
                assert any("with the secret 's'" in note for note in done.notes)
            two = done.chains["vda"][2]
            running.write("vda", 0xA7, 4 * BLOCK, BLOCK)
            await vm.commit("vda", top="three", base="two", folded="remove")
            await vm.stream("vda", base="one")
            layers = (await vm.graph()).disks["vda"].layers
            four, one, _ = (layer.file for layer in layers)
            assert [layer.backing for layer in layers] == [one, layers[2].file, None]  # no secret's id
            copy, top, last = (f"{tmp_path}/{name}.qcow2" for name in ("copy", "top", "last"))
            await vm.mirror("vda", copy, ending="finish", format="qcow2")
            await vm.mirror("vda", top, ending="pivot", format="qcow2", sync="top")
            running.write("vda", 0xA7, 5 * BLOCK, BLOCK)
    assert clear(tmp_path) == set()
    assert reads(qemu, on(base, one), tmp_path) == blocks(0, 1, of=blank)
    assert reads(qemu, on(base, four, one), tmp_path) == blocks(0, 1, 2, 3, 4, of=blank)
    assert reads(qemu, on(None, copy), tmp_path) == blocks(0, 1, 2, 3, 4, of=blank)
    for file in (two, four):
        Path(file).unlink()
    with machine("-object", SECRET[1], *given(on(base, top, one))) as running:  # as the answer says
        async with running.connect() as vm:
            await vm.commit("vda", folded="remove")  # down into the base
            running.qmp("blockdev-del", {"node-name": "vda-node"})
            running.write("vda", 0xA7, 6 * BLOCK, BLOCK)
            done = await vm.mirror("vda", last, ending="pivot")
            assert done.chains == {"vda": (last,)}
            running.write("vda", 0xA7, 7 * BLOCK, BLOCK)
            await vm.snapshot("five")
            for _ in range(2):
                running.write("vda", 0xA8, 0, MIB)
                await vm.revert("five")
            assert running.roots()["vda"][0].startswith("qmpsnap-a-")
    assert clear(tmp_path) == set()
    assert reads(qemu, base, tmp_path) == blocks(*range(7), of=blank)
    assert reads(qemu, on(None, last), tmp_path) == blocks(*range(8), of=blank)


@pytest.mark.parametrize("given_as", ["iothread", "throttle", "drive"])
async def test_encrypted_disk_may_be_given_in_any_way(qemu, machine, tmp_path, given_as):
    file, node = encrypted(qemu, tmp_path, "qcow2")
    node = {**node, "node-name": "n"}
    throttle = {"driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": node}
    words = {
        "iothread": ("-object", "iothread,id=tg", "-blockdev", json.dumps(node)),
        "throttle": ("-object", "throttle-group,id=tg", "-blockdev", json.dumps(throttle)),
        "drive": ("-drive", f"if=none,id=d,format=qcow2,file={file},encrypt.key-secret=s,cache=none"),
    }[given_as]
    device = {"iothread": "drive=n,iothread=tg", "throttle": "drive=thr", "drive": "drive=d"}[given_as]
    copy = f"{tmp_path}/copy.qcow2"
    with machine("-object", SECRET[1], *words, "-device", f"virtio-blk-pci,{device},id=vda") as running:
        async with running.connect() as vm:
            running.write("vda", 0xA7, 0, BLOCK)
            await vm.snapshot("one")
            running.write("vda", 0xA7, BLOCK, BLOCK)
            await vm.mirror("vda", copy, ending="pivot", format="qcow2")
            await vm.snapshot("two")
            await vm.snapshot("three")
            active = (await vm.revert("two")).active["vda"]
            with traced(vm) as sent, pytest.raises(Unsupported, match="not opened a second time"):
                await vm.revert("three")
            assert sent == []
            assert (await vm.graph()).disks["vda"].active.io.direct is (given_as == "drive")
            running.write("vda", 0xA7, 2 * BLOCK, BLOCK)
    assert clear(tmp_path) == set()
    assert reads(qemu, on(None, active, copy), tmp_path) == blocks(0, 1, 2)


async def test_two_disks_with_two_secrets_get_overlays_at_one_instant(qemu, machine, tmp_path):
    key, vector = (base64.b64encode(bytes(count)).decode() for count in (32, 16))
    (tmp_path / "word").write_text("abc")
    secret = "hsekb08O7c6qQX3SAJ0XsA=="  # "abd" by AES-256-CBC; key and initialization vector are zeros
    objects = (
        f"secret,id=master,format=base64,data={key}",
        f"secret,id=s1,keyid=master,iv={vector},format=base64,data={secret}",
        f"secret,id=s2,file={tmp_path}/word",
    )
    disks = {}
    for name in ("vda", "vdb"):
        (tmp_path / name).mkdir()
        word = SECRET if name == "vdb" else ("--object", "secret,id=s,data=abd")
        _, node = encrypted(qemu, tmp_path / name, "qcow2", secret=word)
        disks[name] = {**node, "encrypt": {"format": "luks", "key-secret": "s1" if name == "vda" else "s2"}}
    words = [word for item in objects for word in ("-object", item)]
    with machine(*words, *given(disks["vda"]), *given(disks["vdb"], "vdb")) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("one"))
            with traced(vm) as sent:
                done = await vm.run(plan)
            assert sent == messages(plan)
            assert [command for command, _ in sent] == ["blockdev-add", "blockdev-add", "transaction"]
            assert [layer.secret for disk in (await vm.graph()).disks.values() for layer in disk.layers] == [
                "s1", "s1", "s2", "s2",
            ]  # fmt: skip
            for name in disks:
                running.write(name, 0xA7, 0, BLOCK)
    assert clear(tmp_path) == set()
    for name, secret_id in (("vda", "s1"), ("vdb", "s2")):
        objects = [word for word in words if word != "-object"]
        chain = on(disks[name], *done.chains[name][:-1], secret=secret_id)
        options = [word for item in objects for word in ("--object", item)]
        assert reads(qemu, chain, tmp_path, *options) == blocks(0)


async def test_images_that_the_caller_encrypted_are_opened_with_the_secret_of_the_disk(
    qemu, machine, tmp_path
):
    file, node = encrypted(qemu, tmp_path, "qcow2")
    overlay, _ = encrypted(qemu, tmp_path, "qcow2", backing=file)
    copy, _ = encrypted(qemu, tmp_path, "qcow2", name="copy")
    other, _ = encrypted(
        qemu, tmp_path, "qcow2", name="other", backing=overlay, secret=("--object", "secret,id=s,data=other")
    )
    plain = qemu.create(tmp_path / "plain", MIB, backing=file)
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            with pytest.raises(Unsupported, match="unencrypted"):
                await vm.snapshot("one", files={"vda": plain}, use_existing=True)
            await vm.snapshot("one", files={"vda": overlay}, use_existing=True)
            running.write("vda", 0xA7, 0, BLOCK)
            with pytest.raises(CommandFailed, match="Invalid password") as caught:
                await vm.snapshot("two", files={"vda": other}, use_existing=True)
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            await vm.mirror("vda", copy, ending="finish", format="qcow2", use_existing=True)
    assert clear(tmp_path) == set()
    assert reads(qemu, on(node, overlay), tmp_path) == blocks(0)
    assert reads(qemu, on(None, copy), tmp_path) == blocks(0)


async def test_secret_is_known_where_qemu_cuts_the_name_that_tells_it(qemu, machine, tmp_path):
    """A name of a chain of overlays is longer than 4095 bytes soon."""
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    _, node = encrypted(qemu, folder, "qcow2")
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            for number in range(18):
                await vm.snapshot(f"s{number}")
            named = running.qmp("query-named-block-nodes", flat=True)
            assert any(entry["file"].endswith("...") for entry in named)
            assert {layer.secret for layer in (await vm.graph()).disks["vda"].layers} == {"s"}


@pytest.mark.parametrize("way", WAYS)
async def test_encrypted_disk_is_not_copied_in_the_clear(qemu, machine, tmp_path, way):
    file, node = encrypted(qemu, tmp_path, way)
    intents = [
        Mirror("vda", f"{tmp_path}/copy.raw", ending="pivot", format="raw"),
        Checkpoint("one"),
        Checkpoint("one", "background"),
        Checkpoint("one", "in-place"),
        Save(f"{tmp_path}/state"),
    ]
    unseen = [Snapshot("one"), Mirror("vda", f"{tmp_path}/copy.qcow2", ending="finish", format="qcow2")]
    with machine("-object", SECRET[1], *given(node)) as running:
        before = listing(tmp_path), running.roots()
        for options, refused in (({}, intents), ({"shared_fs": False}, unseen)):
            async with running.connect(**options) as vm:
                for intent in refused:
                    with traced(vm) as sent, pytest.raises(Unsupported, match="unencrypted") as caught:
                        await vm.run(await vm.plan(intent))
                    assert (caught.value.feature, sent) == (CLEAR, [])
                    assert (listing(tmp_path), running.roots()) == before
        async with running.connect() as vm:
            running.write("vda", 0xA7, 0, 64 * KIB)
            running.qmp.hmp("qemu-io vda-node flush")
            assert clear(tmp_path) == set()
            if way == "qcow2":
                await vm.snapshot("inside", inside=True)
                running.write("vda", 0xA7, 0, 64 * KIB)
                await vm.delete("inside")
            overlay = (await vm.snapshot("one", plain=True)).active["vda"]
            running.write("vda", 0xA7, 128 * KIB, 64 * KIB)
            await vm.snapshot("two")  # the guest writes in the clear by now
            for intent in (Stream("vda"), Revert("one")):
                with traced(vm) as sent, pytest.raises(Unsupported, match="encrypted"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
            await vm.commit("vda", top="two", base="one", folded="remove")
            assert clear(tmp_path) == {overlay.rpartition("/")[2]}
            await vm.commit("vda", folded="remove")  # down into what is encrypted
            assert clear(tmp_path) == set()
            for form in ("raw", "qcow2"):
                copy = f"{tmp_path}/copy.{form}"
                await vm.mirror("vda", copy, ending="finish", format=form, plain=True)
            running.read("vda", 0xA7, 128 * KIB, 64 * KIB)
            assert (await vm.graph()).disks["vda"].files == (file,)
    assert clear(tmp_path) == {"copy.raw", "copy.qcow2"}


async def test_encrypted_layer_is_not_merged_into_a_plain_one(qemu, machine, tmp_path):
    base = qemu.create(tmp_path / "base.img", MIB)
    top, node = encrypted(qemu, tmp_path, "qcow2", backing=base)
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            running.write("vda", 0xA7, 0, 64 * KIB)
            for intent in (
                Commit("vda"),
                Commit("vda", keep_overlay=True),
                Mirror("vda", f"{tmp_path}/c", ending="pivot", sync="none", format="qcow2"),
            ):
                with traced(vm) as sent, pytest.raises(Unsupported, match="unencrypted"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
            copy = f"{tmp_path}/copy.qcow2"
            assert (await vm.mirror("vda", copy, ending="pivot", sync="top")).chains["vda"] == (copy, base)
            await vm.stream("vda")  # what was plain is encrypted now
            assert (await vm.graph()).disks["vda"].files == (copy,)
            assert Path(top).exists()
    assert clear(tmp_path) == set()
    assert reads(qemu, on(None, copy), tmp_path) == blocks(0)


@pytest.mark.parametrize("mode", ["in-place", "stop", "background"])
async def test_checkpoint_in_the_clear_encrypts_its_overlays_nevertheless(qemu, machine, tmp_path, mode):
    _, node = encrypted(qemu, tmp_path, "qcow2")
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            running.write("vda", 0xA7, 0, BLOCK)
            running.qmp("cont")
            done = await vm.checkpoint("one", mode=mode, plain=True)
            running.write("vda", 0xA7, BLOCK, BLOCK)
            if mode == "in-place":
                done = await vm.revert("one")
                assert not running.reads("vda", 0xA7, BLOCK, BLOCK)
                running.write("vda", 0xA7, BLOCK, BLOCK)
    (memory,) = (
        path.name for path in tmp_path.iterdir() if "one.memory" in path.name or "vmstate" in path.name
    )
    assert clear(tmp_path) <= {memory}
    assert reads(qemu, on(node, done.chains["vda"][0]), tmp_path) == blocks(0, 1)


# How the disk is given, its chain, and where the passphrase is.
AGAIN = [
    ("blockdev", "encrypted", "data"),
    ("drive", "encrypted", "file"),
    ("blockdev", "plain on encrypted", "file"),
    ("drive", "plain on encrypted", "data"),
    pytest.param("blockdev", "luks", "data", marks=pytest.mark.one_qemu),
    pytest.param("drive", "luks", "file", marks=pytest.mark.one_qemu),
    pytest.param("blockdev", "raw on luks", "file", marks=pytest.mark.one_qemu),
]


@pytest.mark.parametrize(("given_as", "chain", "word"), AGAIN)
async def test_revert_in_a_new_qemu_opens_each_layer_with_its_secret(qemu, tmp_path, given_as, chain, word):
    file, node = encrypted(qemu, tmp_path, "qcow2" if chain.startswith(("enc", "plain")) else chain)
    drive = f"format=qcow2,file={file},encrypt.key-secret=s"
    if chain == "plain on encrypted":
        top = qemu.create(tmp_path / "top.img", MIB, backing=file)
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": top}, "backing": node}
        drive = f"format=qcow2,file={top},backing.encrypt.key-secret=s"
    elif chain == "luks":
        drive = f"format=luks,file={file},key-secret=s"
    (tmp_path / "word").write_text("abc")
    secret = SECRET[1] if word == "data" else f"secret,id=s,file={tmp_path}/word"
    disk = (
        ("-drive", f"if=none,id=d,cache=none,{drive}", "-device", "virtio-blk-pci,drive=d,id=vda")
        if given_as == "drive"
        else given(node)
    )
    argv = [qemu.system, "-nodefaults", "-display", "none", "-m", "32", "-object", secret, *disk, "-S"]
    async with launch(argv) as vm:
        await qemu_io(vm, 0)
        await vm.execute("cont")
        await vm.checkpoint("one", mode="stop", plain=True)
        await qemu_io(vm, 1)
        (note,) = (await vm.plan(Revert("one", into="new"))).notes
        async with vm.reverted("one") as new:
            layers = (await new.graph()).disks["vda"].layers
            secrets = {"plain on encrypted": ["", "", "s"]}.get(chain, ["s", "s"])
            assert [layer.secret for layer in layers] == secrets
            await qemu_io(new, 2)
            await new.snapshot("two")
            await qemu_io(new, 3)
            newest = (await new.graph()).disks["vda"].layers[0]
    assert newest.encrypted is (chain != "plain on encrypted")
    # What the note says to start QEMU with opens the image, too.
    opened = json.loads(note.partition("-blockdev '")[2].removesuffix("'"))
    name = opened.pop("node-name")
    assert (name, opened["file"]["filename"]) == ("vda", layers[0].file)
    if newest.encrypted:
        assert {path for path in clear(tmp_path) if "memory" not in path} == set()
    for image, marked in ((opened, [0, 2]), (on(opened, newest.file), [0, 2, 3])):
        if image is not opened and not newest.encrypted:
            image.pop("encrypt")
        read = reads(qemu, image, tmp_path)
        assert [n for n in range(MIB // BLOCK) if read[n * BLOCK :].startswith(MARK)] == marked


async def qemu_io(vm, block):
    """Write a block as the guest would."""
    line = f'qemu-io -d /machine/peripheral/vda/virtio-backend "write -P 0xa7 {block * BLOCK} {BLOCK}"'
    await vm.execute("human-monitor-command", {"command-line": line})


async def test_memory_does_not_go_inside_an_encrypted_image_which_would_end_qemu(qemu, machine, tmp_path):
    _, secret = encrypted(qemu, tmp_path, "qcow2")
    file = qemu.create(tmp_path / "other.img", MIB)
    disks = {"vda": secret, "vdb": {"driver": "qcow2", "file": {"driver": "file", "filename": file}}}
    cases = {("vda", "vdb"): "VM state into an encrypted image", ("vdb", "vda"): "unencrypted in an image"}
    for names, refused in cases.items():
        words = [word for name in names for word in given(disks[name], name)]
        with machine("-object", SECRET[1], *words) as running:
            async with running.connect() as vm:
                for via in ("hmp", "jobs"):
                    with pytest.raises(Unsupported, match=refused):
                        await vm.plan(Checkpoint("ck", "internal", via=via))
                if names[0] == "vda":
                    with pytest.raises(Unsupported, match=refused):
                        await vm.plan(Checkpoint("ck", "internal", plain=True))
                    continue
                await vm.checkpoint("ck", mode="internal", plain=True)
                await vm.revert("ck")
                await vm.delete("ck")


DIED = 9  # exit status of a client that ends at once
INTENTS = {
    "snapshot": lambda _: Snapshot("sn"),
    "mirror that ends": lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="finish", format="qcow2"),
    "mirror with pivot": lambda folder: Mirror("vda", f"{folder}/copy.qcow2", ending="pivot", format="qcow2"),
    "mirror of the top": lambda folder: Mirror(
        "vda", f"{folder}/copy.qcow2", ending="pivot", format="qcow2", sync="top"
    ),
    "revert": lambda _: Revert("old"),
    "checkpoint": lambda _: Checkpoint("ck", "in-place", plain=True),
}


@pytest.mark.parametrize("name", INTENTS)
async def test_nothing_is_left_of_what_fails_on_encrypted_disks_or_whose_client_is_killed(
    qemu, machine, tmp_path, name, everything
):
    """At every step; on another QEMU than the first at every third."""
    disks = {}
    for disk in ("vda", "vdb"):
        (tmp_path / disk).mkdir()
        disks[disk] = encrypted(qemu, tmp_path / disk, "qcow2")[1]
    intent = INTENTS[name](tmp_path)
    with machine(
        "-object", SECRET[1], *(word for disk in disks for word in given(disks[disk], disk))
    ) as running:

        def state():
            return [file for file in listing(tmp_path) if not file.endswith(".json")], running.roots()

        async with running.connect() as vm:
            await vm.snapshot("old")
            running.write("vda", 0xA7, 0, BLOCK)
            steps = [step for step in (await vm.plan(intent)).steps if step.on != "wait"]
        before = state()
        final = next(number for number, step in enumerate(steps) if step.final)
        stride = 1 if everything or qemu == QEMUS[0] else 3
        for point in range(0, final + 1, stride):
            with pytest.raises(CommandFailed, match="not this one"):
                await until(running, intent, point, fail)
            running.check_nothing_left()
            assert state() == before, f"{steps[point].command} failed"
        for point in range(0, len(steps), stride):
            pid = os.fork()
            if pid == 0:
                try:
                    anyio.run(until, running, intent, point, lambda _: os._exit(DIED))
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == DIED
            async with running.connect() as vm:
                for record in await vm.jobs.interrupted():
                    await vm.jobs.wait(record.id)
                for job in await vm.jobs.list():
                    await vm.jobs.wait(job.id)
                assert await vm.jobs.interrupted() == ()
            running.check_nothing_left()
            if state() != before:  # it was brought to its end
                break
        assert state() != before
    assert {name for name in clear(tmp_path) if "vmstate" not in name} == set()


def fail(step):
    """Let a step fail before it is done."""
    raise CommandFailed(
        "not this one", command=step.command, arguments={}, qmp_class="GenericError", desc="not this one"
    )


async def until(running, intent, point, at):
    """Run an intent; call `at` with the step of that number, waits not counted."""
    async with running.connect() as vm:
        perform, number = vm._target.perform, -1

        async def counted(step):
            nonlocal number
            number += 1
            if number == point:
                at(step)
            return await perform(step)

        vm._target.perform = counted
        await vm.run(await vm.plan(intent))
