"""Live backups (H1, T10): the copies' bytes, what a failure or a kill leaves, machines started from them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

import qmpsnap
from integration.cli import Cli
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, drive, listing, wait_for
from qmpsnap.errors import Busy, CommandFailed, Interrupted, InvalidTarget, LinkLost

SLOW = MIB  # bytes/s: a copy takes a second, long enough to meet


@pytest.fixture(autouse=True)
def _tools(qemu, monkeypatch):
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")


def disks_of(made, way=blockdev):
    return [word for name, one in made.items() for word in way(name, one.active)]


def names(place):
    return sorted(path.name for path in Path(place).iterdir()) if Path(place).exists() else []


async def test_backup_holds_every_disk_as_of_one_instant_and_leaves_the_chains_as_they_were(
    qemu, images, machine, tmp_path
):
    made = {name: images("base <- s1", folder=name) for name in ("vda", "vdb")}
    place, written = tmp_path / "backups", (0xA1, 6 * MIB, 64 * KIB)
    before = listing(tmp_path)
    with machine(*disks_of(made)) as running:
        async with running.connect() as vm:
            moved, seen = [], []

            def during(progress):
                seen.append(progress)
                running.write("vda", *written)  # after the instant: in no copy

            hooks = qmpsnap.Hooks(progress=during, interval=0.02, on_pivot=moved.append)
            done = await vm.backup(place, speed=SLOW, hooks=hooks)
            assert (done.op, done.chains, dict(done.active)) == (
                "backup",
                {name: one.chain for name, one in made.items()},
                {},
            )
            assert 0 < done.standstill_s < done.elapsed_s
            assert done.notes == ()
            assert seen
            assert {one.job.type for one in seen} <= {"backup", "commit"}
            assert sorted(moved[0]) == ["vda", "vdb"]
            for name, one in made.items():
                assert qemu.read(done.files[name]) == one.content[-1]
                qemu.check_chain(done.files[name])
            assert done.bytes == sum(Path(file).stat().st_size for file in done.files.values())
            running.read("vda", *written)
            again = await vm.backup(place, disks=["vda"])
            assert qemu.read(again.files["vda"]) == overwritten(content(2), written)
            assert (await vm.moments()).moments == ()
        assert [name for name in listing(tmp_path) if not name.startswith("backups/")] == before
    assert await qmpsnap.list_backups(place) == (done.backup, again.backup)
    files = await qmpsnap.restore_backup(place, tmp_path / "back", at=1)
    with machine(*(word for name, file in files.items() for word in blockdev(name, file))) as running:
        for name in made:
            running.read(name, 0x11, 4 * MIB, MIB)
        running.read("vda", 0, written[1], written[2])


async def stopped(vm, place, how):
    """Begin a backup, and stop it in the middle of a copy."""
    cancel = anyio.Event()

    def during(_):
        cancel.set() if how == "hook" else scope.cancel()

    with anyio.CancelScope() as scope:
        await vm.backup(place, speed=MIB // 4, hooks=qmpsnap.Hooks(during, 0.02, cancel=cancel))


async def test_backup_that_is_stopped_or_fails_leaves_nothing(qemu, images, machine, small, tmp_path):
    made = images("base <- s1")
    place = tmp_path / "backups"
    with machine(*drive("vda", made.active)) as running:
        before = listing(tmp_path)
        async with running.connect() as vm:
            with pytest.raises(Interrupted) as caught:
                await stopped(vm, place, "hook")
            assert caught.value.changed.value == "no"
            await stopped(vm, place, "scope")
            assert (await vm.graph()).disks["vda"].files == made.chain
            assert (listing(tmp_path), names(place)) == (before, [])
            tiny = small("1m", "tiny")
            with pytest.raises(InvalidTarget, match="bytes free; the backup may need"):
                await vm.backup(tiny / "b")
            assert names(tiny) == []
            with pytest.raises(InvalidTarget, match="no directory"):
                await vm.backup(tmp_path / "none" / "b")
            assert (await vm.graph()).disks["vda"].files == made.chain
            assert (await vm.moments()).moments == ()
    assert qemu.read(made.active) == content(2)


async def test_backup_without_space_in_the_middle_of_a_copy_leaves_nothing(images, machine, small, tmp_path):
    made = images("base <- s1")
    room = small("4m", "room")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            filled = []

            def fill(_):
                if not filled:
                    filled.append(True)
                    with suppress(OSError):  # the copy may take the room at the same time
                        (room / "other").write_bytes(b"x" * (room_left(room) - 64 * KIB))

            with pytest.raises(CommandFailed, match="No space left on device") as caught:
                await vm.backup(room, speed=MIB // 4, hooks=qmpsnap.Hooks(fill, 0.02))
            assert (caught.value.changed.value, caught.value.left) == ("no", ())
            assert names(room) == ["other"]
            assert (await vm.graph()).disks["vda"].files == made.chain


def room_left(place):
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


@pytest.mark.one_qemu
async def test_backup_merges_back_what_a_killed_client_has_left(qemu, images, machine, tmp_path):
    made = {name: images("base <- s1", folder=name) for name in ("vda", "vdb")}
    place = tmp_path / "backups"
    with machine(*disks_of(made)) as running:
        cli = Cli(running)
        process = cli.start("backup", "run", place, "--speed", "256K")
        wait_for(lambda: any((path / "vda.qcow2").exists() for path in place.glob("*.partial")), "a copy")
        running.write("vda", 0xA1, 6 * MIB, 64 * KIB)
        process.kill()
        cli.end(process)
        wait_for(lambda: names(place) == [], "the removal of the half copy")
        (left,) = cli("--json", "list").json["moments"]
        assert left["name"].startswith("backup-")
        ended = cli("--json", "backup", "run", place)
        assert ended.code == 0, ended
        assert ended.json["chains"] == {name: list(one.chain) for name, one in made.items()}
        assert ended.json["active"] == {name: one.active for name, one in made.items()}  # from the overlays
        assert len([note for note in ended.json["notes"] if "merged the overlay" in note]) == 2
        expected = {"vda": overwritten(content(2), (0xA1, 6 * MIB, 64 * KIB)), "vdb": content(2)}
        assert {name: qemu.read(file) for name, file in ended.json["files"].items()} == expected
        assert cli("--json", "list").json["moments"] == []
        assert [Path(ended.json["directory"]).name] == names(place)


async def test_backup_is_one_at_a_time_on_a_disk(images, machine, tmp_path):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            refused = []

            async def second(_):
                if not refused:
                    refused.append(None)
                    with pytest.raises(Busy, match="another backup of vda is running"):
                        await vm.backup(tmp_path / "b2")
                    refused.append("refused")

            await vm.backup(tmp_path / "b1", speed=MIB, hooks=qmpsnap.Hooks(second, 0.02))
            assert refused == [None, "refused"]


@pytest.mark.one_qemu
async def test_layer_that_copy_on_read_keeps_writable_is_not_backed_up(images, machine, tmp_path):
    made = images("base")
    words = (*drive("vda", made.active), "-set", "drive.drive-vda.copy-on-read=on")
    with machine(*words) as running:
        async with running.connect() as vm:
            await vm.snapshot("one")
            await vm.commit("vda", folded="remove")
            with pytest.raises(Busy, match="QEMU has it open for writing") as caught:
                await vm.backup(tmp_path / "backups")
            assert "copy-on-read=on: start the machine without that" in caught.value.hint
            assert (await vm.graph()).disks["vda"].files == made.chain
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.backup(tmp_path / "backups")


@pytest.mark.one_qemu
def test_running_backup_is_listed_with_its_process_which_alone_ends_it(images, machine, tmp_path, temporary):
    made = images("base <- s1")
    second = f"{temporary}/second"  # a monitor serves one client
    extra = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", made.active), extra=extra) as running:
        cli = Cli(running)
        backup = cli.start("backup", "run", tmp_path / "backups", "--speed", "16K")
        wait_for(lambda: [*tmp_path.glob("backups/*.partial/vda.qcow2")], "a copy")
        backup.send_signal(signal.SIGSTOP)  # so that it is not done before we have looked
        (listed,) = cli("-s", second, "--json", "jobs").json["backups"]
        name = listed["id"]
        assert (listed["disks"], listed["process"]["pid"]) == (["vda"], backup.pid)
        assert listed["age_s"] < 3600
        text = " ".join(cli("-s", second, "jobs").out.split())
        assert f"{name}: backup of vda, started" in text
        assert f"by process {backup.pid} (" in text
        assert text.endswith(f"wait until it ends; Ctrl-C or SIGTERM stops it (kill {backup.pid})")
        for verb in ("wait", "cancel"):
            for typed in (name, name[:-4]):
                refused = cli("-s", second, "job", verb, typed)
                assert (refused.code, refused.out) == (3, "")
                said = refused.err.splitlines()
                assert said[0].startswith(f"qmpsnap: refused: {name} is no job: process {backup.pid} (")
                assert said[0].endswith(") is making that backup of vda")
                assert said[1] == "  nothing was changed"
        backup.send_signal(signal.SIGINT)
        backup.send_signal(signal.SIGCONT)
        assert cli.end(backup).code == 130
        assert cli("-s", second, "jobs").out == "no jobs\n"
        assert "there is no job" in cli("-s", second, "job", "wait", name).err


async def test_backup_is_complete_although_qemu_was_killed_meanwhile(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    place = tmp_path / "backups"
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            hooks = qmpsnap.Hooks(lambda _: running.kill(), 0.02)
            with pytest.raises(LinkLost, match=r".") as caught:
                await vm.backup(place, speed=SLOW, hooks=hooks)
            assert "the backup is complete" in caught.value.hint
    record = await qmpsnap.verify_backup(place)
    assert qemu.read(place / record.id / "vda.qcow2") == content(2)


async def test_backup_and_look_inside_with_the_machine_off(qemu, images, tmp_path):
    made = images("base <- s1")
    async with qmpsnap.offline(vda=made.active) as vm:
        await vm.snapshot("i1", inside=True)
        chain = (await vm.snapshot("e1")).chains["vda"]
        done = await vm.backup(tmp_path / "backups")
        assert (done.chains["vda"], done.notes) == (chain, ())
        for name in ("e1", "i1"):
            async with vm.open(name) as view:
                qemu.img("compare", "-f", "raw", "-F", "qcow2", view.uri, done.files["vda"])
    assert qemu.read(done.files["vda"]) == qemu.read(chain[0]) == content(2)


@pytest.mark.one_qemu
def test_interrupted_backup_with_the_machine_off(qemu, images, tmp_path):
    made = images("base <- s1")
    (place := tmp_path / "backups").mkdir(mode=0o750)  # the user's, and empty
    cli = Cli(SimpleNamespace(qemu=qemu, folder=tmp_path, socket=""))
    of = f"vda={made.active}"
    assert cli("-i", of, "snapshot", "e1").code == 0
    (active,) = {str(path) for path in Path(made.active).parent.glob("*.e1.qcow2")}
    of = f"vda={active}"

    def started(*words):
        process = cli.start(*words, "-i", of, "backup", "run", place, "--speed", "64K")
        wait_for(lambda: any((path / "vda.qcow2").exists() for path in place.glob("*.partial")), "a copy")
        return process

    before = listing(tmp_path)
    for words in ((), ("--json",)):
        process = started(*words)
        process.send_signal(signal.SIGINT)
        ended = cli.end(process)
        assert (ended.code, "from now on" in ended.err) == (130, False), ended
        assert not words or "active" not in ended.json["error"]
        assert (listing(tmp_path), place.stat().st_mode & 0o777) == (before, 0o750)
    process = started()
    process.kill()
    cli.end(process)
    wait_for(lambda: names(place) == [], "the removal of the half copy")
    left = listing(tmp_path)
    refused = cli("--json", "-i", of, "backup", "run", place)
    (overlay,) = {str(path) for path in Path(active).parent.glob("*.backup-*.qcow2")}
    assert (refused.code, refused.json["error"]["type"], refused.json["error"]["changed"]) == (
        3,
        "StillNeeded",
        "no",
    )
    assert refused.json["error"]["hint"].startswith(f"name the newest layer: -i vda={overlay};")
    assert listing(tmp_path) == left
    done = cli("--json", "-i", f"vda={overlay}", "backup", "run", place)
    assert done.code == 0, done
    assert done.json["active"] == {"vda": active}
    assert not Path(overlay).exists()
    assert qemu.read(done.json["files"]["vda"]) == qemu.read(active) == content(2)
    again = cli("--json", "-i", of, "backup", "run", place)
    assert (again.code, again.json["active"]) == (0, {})
    assert len(names(place)) == 2


@pytest.mark.one_qemu
def test_backups_on_the_command_line(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    place, back = tmp_path / "backups", tmp_path / "back"
    with machine(*blockdev("vda", made.active)) as running:
        cli = Cli(running)
        shown = cli("backup", "run", place, "-n")
        assert (shown.code, place.exists()) == (0, False)
        assert "then vda is copied to" in shown.out
        taken = cli("backup", "run", place, "--progress")
        assert taken.code == 0, taken
        assert taken.out.startswith("backup: done in ")
        process = cli.start("backup", "run", place, "--speed", "64K")
        wait_for(lambda: any((path / "vda.qcow2").exists() for path in place.glob("*.partial")), "a copy")
        process.send_signal(signal.SIGINT)
        ended = cli.end(process)
        assert (ended.code, "from now on" in ended.err) == (130, False), ended
        assert running.roots()["vda"][0] == "vda-node"
    (told,) = cli("--json", "backup", "list", place).json["backups"]
    assert told["disks"]["vda"]["virtual_size"] == 8 * MIB
    listed = cli("backup", "list", place).out.split()
    assert (listed[:5], listed[-2:]) == (["N", "TAKEN", "SIZE", "DIRECTORY", "DISKS"], [told["id"], "vda"])
    assert cli("backup", "verify", place).out.startswith(f"{told['id']}, taken 20")
    restored = cli("backup", "restore", place, back)
    assert restored.out == f"restored vda: {back}/vda.qcow2\n"
    assert qemu.read(back / "vda.qcow2") == content(2)
    again = cli("--json", "backup", "restore", place, back)
    assert (again.code, again.json["error"]["type"]) == (3, "TargetExists")
    image = place / told["id"] / "vda.qcow2"
    with image.open("r+b") as file:
        file.seek(3 * 64 * KIB)
        file.write(b"?")
    for words in (("verify", place), ("restore", place, tmp_path / "other")):
        damaged = cli("--json", "backup", *words)
        assert (damaged.code, "is damaged" in damaged.json["error"]["message"]) == (3, True)
    assert names(tmp_path / "other") == []
    missing = cli("--json", "backup", "verify", place, "--at", "2")
    assert (missing.code, missing.json["error"]["type"]) == (3, "NotFound")
