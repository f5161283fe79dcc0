"""The chain model against `qemu-img info --backing-chain` of the same images after shutdown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.known_images import MIB
from integration.machines import blockdev, drive, throttled
from qmpsnap.errors import AmbiguousName, NotFound
from qmpsnap.model.disk_names import find_disk

NAMES = ["a b", "a,b,,c", "a:b", "a'b\"c", "ünï-☃", "%s $HOME `x`", "back\\slash", "{json:}"]


def facts_of(disk):
    """What can be compared, active first; sizes of the host change when QEMU ends."""
    return [
        (layer.file, layer.format, layer.virtual_size, layer.backing, layer.backing_format)
        for layer in disk.layers
    ]


def facts_by_qemu_img(qemu, file, form="qcow2"):
    return [
        (
            str(Path(one["filename"])),
            one["format"],
            one["virtual-size"],
            one.get("backing-filename"),
            one.get("backing-filename-format"),
        )
        for one in qemu.chain(file, form)
    ]


async def graph_of(machine):
    async with machine.connect() as vm:
        return await vm.graph()


@pytest.mark.parametrize("way", [drive, blockdev])
async def test_graph_equals_qemu_img_info(qemu, images, machine, way):
    made = images("base <- s1 <- s2 <- s3")
    with machine(*way("vda", made.active)) as running:
        graph = await graph_of(running)
    assert facts_of(graph.disks["vda"]) == facts_by_qemu_img(qemu, made.active)
    assert graph.chains() == {"vda": made.chain}


@pytest.mark.parametrize("way", [drive, blockdev])
async def test_graph_shows_a_raw_disk_and_one_on_raw(qemu, images, machine, way):
    raw, on_raw = images("base", folder="a", base_format="raw"), images(folder="b", base_format="raw")
    with machine(*way("vda", raw.active, "raw"), *way("vdb", on_raw.active)) as running:
        graph = await graph_of(running)
    assert facts_of(graph.disks["vda"]) == facts_by_qemu_img(qemu, raw.active, "raw")
    assert facts_of(graph.disks["vdb"]) == facts_by_qemu_img(qemu, on_raw.active)


async def test_graph_tells_a_throttle_from_the_layers(qemu, images, machine):
    made = images()
    with machine(*throttled("vda", made.active)) as running:
        disk = (await graph_of(running)).disks["vda"]
    assert (disk.root, [(one.node, one.driver) for one in disk.filters]) == ("thr", [("thr", "throttle")])
    assert disk.files == made.chain


async def test_graph_tells_a_jobs_named_filter_from_the_layers(qemu, images, machine, tmp_path):
    made = images()
    with machine(*throttled("vda", made.active)) as running:
        running.qmp("drive-mirror", {
            "job-id": "m", "device": "thr", "target": f"{tmp_path}/t.qcow2", "sync": "full",
            "format": "qcow2", "speed": 1,
        })  # fmt: skip
        disk = (await graph_of(running)).disks["vda"]
        assert disk.files == made.chain
        running.qmp("block-job-cancel", {"device": "m", "force": True})
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="m", status="null")


@pytest.mark.parametrize("named", ["", "mine"])
@pytest.mark.parametrize("job", ["mirror", "commit", "active commit", "stream", "backup"])
async def test_graph_is_right_while_a_job_has_its_filter_there(qemu, images, machine, tmp_path, job, named):
    made = images("base <- s1 <- s2 <- s3")
    common = {"job-id": "j", "device": "vda-node", "speed": 1}
    if named:
        common["filter-node-name"] = named
    with machine(*blockdev("vda", made.active)) as running:
        chain = running.roots()["vda"]
        match job:
            case "mirror":
                running.qmp("blockdev-add", {
                    "driver": "qcow2", "node-name": "t",
                    "file": {"driver": "file", "filename": qemu.create(tmp_path / "t.qcow2")},
                })  # fmt: skip
                running.qmp("blockdev-mirror", {**common, "target": "t", "sync": "full"})
            case "commit":
                running.qmp("block-commit", {**common, "top-node": chain[1], "base-node": chain[3]})
            case "active commit":
                running.qmp("block-commit", common)
            case "stream":
                running.qmp("block-stream", common)
            case "backup":
                running.qmp("blockdev-add", {
                    "driver": "qcow2", "node-name": "t",
                    "file": {"driver": "file", "filename": qemu.create(tmp_path / "t.qcow2")},
                })  # fmt: skip
                running.qmp("blockdev-backup", {**common, "target": "t", "sync": "full"})
        graph = await graph_of(running)
        assert graph.disks["vda"].files == made.chain
        if named and job in {"mirror", "active commit", "backup"}:
            assert (graph.disks["vda"].root, graph.disks["vda"].filters[0].node) == (named, named)
        running.qmp("block-job-cancel", {"device": "j", "force": True})
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")


async def test_graph_shows_empty_drives_and_what_is_put_in(qemu, images, machine, tmp_path):
    made = images("base")
    cdroms = (
        "-device", "ide-cd,id=cd0,bus=ide.0",
        "-drive", "if=none,id=d1", "-device", "ide-cd,drive=d1,id=cd1,bus=ide.1",
    )  # fmt: skip
    with machine(*cdroms, *blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            graph = await vm.graph()
            assert graph.chains() == {"cd1": (), "vda": made.chain, "cd0": ()}
            disc = qemu.create(tmp_path / "disc", form="raw")
            running.qmp("blockdev-change-medium", id="cd0", filename=disc, format="raw")
            disk = (await vm.graph()).disks["cd0"]
            assert (disk.files, disk.read_only) == ((disc,), True)
            running.qmp("eject", id="cd0", force=True)
            assert (await vm.graph()).disks["cd0"].files == ()


async def test_graph_of_two_disks_on_one_base_and_of_one_file_opened_twice(qemu, images, machine, tmp_path):
    made = images("base")
    tops = [qemu.create(tmp_path / name, backing=made.active) for name in ("a.qcow2", "b.qcow2")]
    again = {
        "driver": "qcow2", "node-name": "again", "read-only": True,
        "file": {"driver": "file", "filename": made.active},
    }  # fmt: skip
    twice = ("-blockdev", json.dumps(again), "-device", "virtio-blk-pci,drive=again,id=vdc")
    with machine(*blockdev("vda", tops[0]), *drive("vdb", tops[1]), *twice) as running:
        graph = await graph_of(running)
    assert graph.chains() == {
        "vda": (tops[0], made.active),
        "vdb": (tops[1], made.active),
        "vdc": (made.active,),
    }
    assert graph.disks["vdc"].read_only
    with pytest.raises(AmbiguousName):
        find_disk(graph, "base.qcow2")


@pytest.mark.parametrize("way", [drive, blockdev])
async def test_graph_resolves_relative_names(qemu, images, machine, tmp_path, way):
    made = images("base <- s1 <- s2", relative=True, folder="deep")
    with machine(*way("vda", "deep/s2.qcow2"), cwd=tmp_path) as running:
        disk = (await graph_of(running)).disks["vda"]
    assert disk.files == made.chain
    assert [layer.backing for layer in disk.layers] == ["s1.qcow2", "base.qcow2", None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [drive, blockdev])
async def test_graph_has_any_name_as_it_is(qemu, images, machine, tmp_path, way, name):
    made = images(f"base {name} <- {name}", folder=f"d {name.replace('/', '')}")
    with machine(*way("vda", made.active)) as running:
        disk = (await graph_of(running)).disks["vda"]
    assert facts_of(disk) == facts_by_qemu_img(qemu, made.active)
    assert disk.files == made.chain


@pytest.mark.parametrize("way", [drive, blockdev])
async def test_graph_reads_a_chain_of_200_layers(qemu, machine, tmp_path, way):
    chain = [qemu.create(tmp_path / "base.qcow2", MIB)]
    for number in range(1, 200):
        chain.append(qemu.create(tmp_path / f"s{number}.qcow2", MIB, backing=chain[-1]))
    with machine(*way("vda", chain[-1])) as running:
        graph = await graph_of(running)
    assert graph.disks["vda"].files == tuple(reversed(chain))


async def test_find_disk_takes_every_spelling(qemu, images, machine):
    one, two = images("base <- s1", folder="a"), images("base", folder="b")
    anonymous = ("-drive", f"if=virtio,format=qcow2,file={two.active}")
    with machine(*blockdev("vda", one.active), *anonymous) as running:
        graph = await graph_of(running)
        nodes = running.roots()["vda"]
    assert set(graph.disks) == {"virtio0", "vda"}
    for spelling in ("vda", "/machine/peripheral/vda", "vda-node", *nodes, one.active, "s1.qcow2"):
        assert find_disk(graph, spelling).name == "vda"
    for spelling in (
        "virtio0",
        two.active,
        graph.disks["virtio0"].root,
        "/machine/peripheral-anon/device[0]",
    ):
        assert find_disk(graph, spelling).name == "virtio0"
    with pytest.raises(AmbiguousName):
        find_disk(graph, "base.qcow2")
    with pytest.raises(NotFound):
        find_disk(graph, "vdz")


async def test_graph_waits_while_somebody_makes_an_image(qemu, images, machine, tmp_path):
    """7.2 aborts when it is asked for its nodes meanwhile; a slow disk makes this last some seconds."""
    made = images("base")
    (tmp_path / "new").touch()
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("object-add", {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 3}})
        running.qmp("blockdev-add", {
            "driver": "throttle", "throttle-group": "tg", "node-name": "new",
            "file": {"driver": "file", "filename": f"{tmp_path}/new"},
        })  # fmt: skip
        async with running.connect() as vm:
            options = {"driver": "qcow2", "file": "new", "size": MIB}
            running.qmp("blockdev-create", {"job-id": "c", "options": options})
            running.qmp.wait_event("JOB_STATUS_CHANGE", id="c", status="running")
            while running.qmp("query-jobs")[0]["status"] != "concluded":
                assert (await vm.graph()).chains() == {"vda": made.chain}
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="c", status="concluded")
        running.qmp("job-dismiss", id="c")
        running.qmp("blockdev-del", {"node-name": "new"})


# Drivers that may lie between a layer and its file: how each is given two files; the first has the image.
BETWEEN = {
    "blkdebug": lambda file, _: {"driver": "blkdebug", "image": file},
    "blkverify": lambda file, other: {"driver": "blkverify", "raw": file, "test": other},
    "blklogwrites": lambda file, other: {"driver": "blklogwrites", "file": file, "log": other},
    "preallocate": lambda file, _: {"driver": "preallocate", "file": file},
    "throttle": lambda file, _: {"driver": "throttle", "throttle-group": "tg", "file": file},
    "copy-on-read": lambda file, _: {"driver": "copy-on-read", "node-name": "user-cor", "file": file},
    "raw": lambda file, _: {"driver": "raw", "file": file},
    "two": lambda file, _: {"driver": "throttle", "throttle-group": "tg",
                            "file": {"driver": "blkdebug", "image": file}},
    "nothing": lambda file, _: file,
}  # fmt: skip


async def test_a_layer_s_file_is_found_through_whatever_lies_between(qemu, machine, tmp_path):
    words, files = ["-object", "throttle-group,id=tg"], {}
    for number, (name, between) in enumerate(BETWEEN.items()):
        disk, form = f"d{number}", "raw" if name in {"blkverify", "raw"} else "qcow2"
        files[disk] = qemu.create(tmp_path / f"{name}.img", MIB, form=form)
        file, other = (
            {"driver": "file", "filename": str(path)}
            for path in (files[disk], qemu.create(tmp_path / f"{name}.other", MIB, form="raw"))
        )
        options = {"driver": form, "node-name": f"{disk}-node", "file": between(file, other)}
        words += ["-blockdev", json.dumps(options), "-device", f"virtio-blk-pci,drive={disk}-node,id={disk}"]
    with machine(*words) as running:
        for number, disk in enumerate(files):
            running.write(disk, number + 1, "64k", 65536)
        async with running.connect() as vm:
            found = (await vm.graph()).disks
            assert {disk: one.active.file for disk, one in found.items()} == files
            assert {one.active.local for one in found.values()} == {True}
            taken = await vm.snapshot("n1")
    for number, disk in enumerate(files):  # the overlay's header leads to the bytes that QEMU had there
        overlay = taken.active[disk]
        assert qemu.read(overlay)[65536:131072] == bytes([number + 1]) * 65536, disk


async def test_a_layer_on_several_files_is_called_as_qemu_does(qemu, machine, tmp_path):
    children = [
        {"driver": "file", "filename": qemu.create(tmp_path / name, MIB, form="raw")} for name in ("a", "b")
    ]
    quorum = {"driver": "quorum", "vote-threshold": 1, "children": children}
    options = {"driver": "raw", "node-name": "node", "file": quorum}
    with machine("-blockdev", json.dumps(options), "-device", "virtio-blk-pci,drive=node,id=vda") as running:
        layer = (await graph_of(running)).disks["vda"].active
    assert (layer.file[:5], layer.local) == ("json:", False)
