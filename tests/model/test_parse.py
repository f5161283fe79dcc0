"""What real QEMUs answered, under data/, against the graph that it means."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model import parse
from qmpsnap.model.graph import Bitmap, Disk, Filter, Graph, InternalSnapshot, Io, Layer, Node
from qmpsnap.model.parse import GRAPH_QUERIES, GraphMoved, GraphReplies
from tests.each import each

DATA = Path(__file__).parent / "data"
MIB = 1024 * 1024
NEWEST_AND_OLDEST = pytest.mark.parametrize("qemu", ["7", "11"])


def answers(name: str) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads((DATA / f"{name}.json").read_text())
    return found


def parse_graph(block: object, stats: object, named: object, *, cwd: str = "") -> Graph:
    return parse.parse_graph(GraphReplies.read(block, stats, named), cwd=cwd)


def parsed(name: str, *, cwd: str = "") -> Graph:
    said = answers(name)
    return parse_graph(said["block"], said["stats"], said["named"], cwd=cwd)


def outline(disk: Disk) -> list[tuple[str, str, str | None]]:
    return [(layer.file, layer.format, layer.backing) for layer in disk.layers]


def test_graph_queries_are_the_ones_that_the_answers_belong_to() -> None:
    assert [(command, dict(arguments)) for command, arguments in GRAPH_QUERIES] == [
        ("query-block", {}),
        ("query-blockstats", {}),
        ("query-named-block-nodes", {"flat": True}),
    ]


@each("qemu", ["7", "10", "11"])
def test_parse_names_each_disk_by_qdev_id_then_drive_id_then_qom_path(qemu: str) -> None:
    disks = parsed(f"mixed-{qemu}").disks.values()
    assert [(disk.name, disk.drive, disk.qdev) for disk in disks] == [
        ("vda", "drv0", "/machine/peripheral/vda/virtio-backend"),
        ("virtio0", "virtio0", "/machine/peripheral-anon/device[1]/virtio-backend"),
        ("drive/vdb", "vdb", ""),  # an unused -drive that has the id of a disk
        ("vdb", "", "/machine/peripheral/vdb/virtio-backend"),
        ("device[0]", "", "/machine/peripheral-anon/device[0]/virtio-backend"),
        ("g1", "", "/machine/peripheral/g1/virtio-backend"),
        ("g2", "", "/machine/peripheral/g2/virtio-backend"),
        ("cd0", "", "cd0"),
    ]


@each("qemu", ["7", "10", "11"])
def test_parse_reads_every_kind_of_drive(qemu: str) -> None:
    disks = parsed(f"mixed-{qemu}").disks
    assert disks["vdb"].layers == (
        Layer("raw0", "/tmp/images/b.raw", "raw", 8 * MIB, allocated=4096, read_only=True),
    )
    assert disks["vdb"].read_only
    (inside,) = disks["virtio0"].active.snapshots
    assert inside == InternalSnapshot("1", "before", date=inside.date)
    assert 1.7e9 < inside.date < 1.9e9
    assert set(disks["device[0]"].active.bitmaps) == {Bitmap("daily", persistent=True), Bitmap("now")}
    assert disks["cd0"] == Disk("cd0", qdev="cd0")
    assert outline(disks["vda"]) == [
        ("/tmp/images/a1.qcow2", "qcow2", "/tmp/images/a.qcow2"),
        ("/tmp/images/a.qcow2", "qcow2", None),
    ]
    assert [layer.read_only for layer in disks["vda"].layers] == [False, True]
    assert disks["vda"].root == disks["vda"].active.node


@each("qemu", ["7", "10", "11"])
def test_parse_tells_two_disks_on_one_base_apart(qemu: str) -> None:
    disks = parsed(f"mixed-{qemu}").disks
    assert [disks[name].base.file for name in ("g1", "g2")] == ["/tmp/images/base.qcow2"] * 2
    assert disks["g1"].base.node != disks["g2"].base.node


@NEWEST_AND_OLDEST
def test_parse_finds_the_chain_under_a_throttle(qemu: str) -> None:
    disk = parsed(f"throttle-{qemu}").disks["vda"]
    assert (disk.root, disk.filters, disk.active.node) == ("thr", (Filter("thr", "throttle", "tg"),), "f1")
    assert outline(disk) == [
        ("/tmp/images/f1.qcow2", "qcow2", "/tmp/images/f0.qcow2"),
        ("/tmp/images/f0.qcow2", "qcow2", None),
    ]


def opened_with(said: dict[str, list[dict[str, object]]], node: str, *, direct: bool, zeroes: str) -> None:
    """Let QEMU say so of that node."""
    row = next(one for one in said["named"] if one["node-name"] == node)
    row |= {"cache": {"writeback": True, "direct": direct, "no-flush": direct}, "detect_zeroes": zeroes}


@NEWEST_AND_OLDEST
def test_parse_reads_how_an_image_is_read_and_written_from_the_node_of_its_file(qemu: str) -> None:
    said = answers(f"throttle-{qemu}")
    below = next(
        one["node-name"] for one in said["named"] if one["drv"] == "file" and "f1.qcow2" in str(one["file"])
    )
    opened_with(said, "f1", direct=False, zeroes="on")
    opened_with(said, str(below), direct=True, zeroes="off")
    opened_with(said, "thr", direct=True, zeroes="unmap")
    disk = parse_graph(said["block"], said["stats"], said["named"]).disks["vda"]
    assert (disk.active.io, disk.base.io) == (Io(direct=True, no_flush=True, detect_zeroes="on"), Io())
    assert disk.filters[0].io == Io(direct=True, no_flush=True, detect_zeroes="unmap")


@each(
    "file",
    [
        "",
        "/images/a.qcow2",
        "json:",
        "json:[]",
        "json:{}",
        'json:{"throttle-group": 7}',
        "json:" + "[" * 100_000,
    ],
)
def test_parse_knows_no_group_of_a_throttle_where_qemu_tells_none(file: str) -> None:
    said = answers("throttle-7")
    (entry,) = [one for one in said["named"] if one["node-name"] == "thr"]
    entry["file"] = file
    disk = parse_graph(said["block"], said["stats"], said["named"]).disks["vda"]
    assert disk.filters == (Filter("thr", "throttle"),)


def test_parse_tells_above_which_layer_a_filter_is() -> None:
    said = answers("throttle-7")
    base = parsed("throttle-7").disks["vda"].base.node
    (entry,) = [one for one in said["named"] if one["node-name"] == base]
    entry["drv"] = "copy-on-read"
    filters = parse_graph(said["block"], said["stats"], said["named"]).disks["vda"].filters
    assert [(node.node, node.under) for node in filters] == [("thr", ""), (base, "f1")]


@NEWEST_AND_OLDEST
def test_parse_shows_a_named_filter_of_a_job_and_hides_an_implicit_one(qemu: str) -> None:
    graph = parsed(f"filters-{qemu}")
    roots = {name: (disk.root, disk.filters) for name, disk in graph.disks.items()}
    assert roots == {
        "vda": ("a1", ()),
        "vdb": ("mf", (Filter("mf", "mirror_top"),)),
        "vdc": ("c1", ()),
    }
    chains = {disk: tuple(Path(file).name for file in files) for disk, files in graph.chains().items()}
    assert chains == {
        "vda": ("a1.qcow2", "a.qcow2"),
        "vdb": ("b1.qcow2", "b.qcow2"),
        "vdc": ("c1.qcow2", "c.qcow2"),
    }
    hidden = sorted((node.driver, node.file) for node in graph.nodes.values() if node.is_filter)
    assert hidden == [
        ("copy-on-read", "/tmp/images/c1.qcow2"),
        ("mirror_top", "/tmp/images/a1.qcow2"),
        ("mirror_top", "/tmp/images/b1.qcow2"),
    ]


@NEWEST_AND_OLDEST
def test_parse_resolves_relative_names_where_qemus_directory_is_known(qemu: str) -> None:
    disk = parsed(f"relative-{qemu}", cwd="/tmp/images").disks["vda"]
    assert outline(disk) == [
        ("/tmp/images/sub/s1.qcow2", "qcow2", "../base.qcow2"),
        ("/tmp/images/base.qcow2", "qcow2", None),
    ]
    assert [layer.local for layer in disk.layers] == [True, True]


@NEWEST_AND_OLDEST
def test_parse_keeps_relative_names_where_qemus_directory_is_not_known(qemu: str) -> None:
    disk = parsed(f"relative-{qemu}").disks["vda"]
    assert disk.files == ("sub/s1.qcow2", "sub/../base.qcow2")


@NEWEST_AND_OLDEST
def test_parse_takes_names_as_they_are(qemu: str) -> None:
    assert parsed(f"names-{qemu}").disks["vda"].files == (
        "/tmp/images/it's.qcow2",
        "/tmp/images/co:lon %41.qcow2",
        "/tmp/images/größe-日本.qcow2",
        '/tmp/images/quo"te.qcow2',
        "/tmp/images/a b,c.qcow2",
    )


@NEWEST_AND_OLDEST
def test_parse_finds_the_path_when_qemu_spells_a_json_name(qemu: str) -> None:
    graph = parsed(f"json-{qemu}")
    spelled = [row["file"] for row in answers(f"json-{qemu}")["named"]]
    assert any(str(name).startswith("json:") for name in spelled)
    assert graph.disks["vda"].files == (
        "/tmp/images/s2.qcow2",
        "/tmp/images/s1.qcow2",
        "/tmp/images/base.qcow2",
    )
    assert all(layer.local for layer in graph.disks["vda"].layers)


@NEWEST_AND_OLDEST
def test_parse_tells_two_nodes_of_one_file_apart(qemu: str) -> None:
    disks = parsed(f"json-{qemu}").disks
    assert [(disks[name].root, disks[name].files) for name in ("vdb", "vdc")] == [
        ("x1", ("/tmp/images/x.qcow2",)),
        ("x2", ("/tmp/images/x.qcow2",)),
    ]


@NEWEST_AND_OLDEST
def test_parse_finds_the_path_of_a_json_name_that_qemu_cut(qemu: str) -> None:
    said = answers(f"cut-{qemu}")["named"]
    assert [len(str(row["file"]).encode()) for row in said if row["node-name"] == "s1"] == [4095]
    disk = parsed(f"cut-{qemu}").disks["vda"]
    assert [Path(file).name for file in disk.files] == ["1.qcow2", "0.qcow2", "base.qcow2"]
    assert all(layer.local for layer in disk.layers)


def test_parse_lists_nodes_under_no_disk_and_what_backs_them() -> None:
    graph = parsed("filters-7")
    assert graph.nodes["copy"] == Node("copy", "qcow2", "/tmp/images/copy.qcow2")
    assert graph.nodes["c1"].backing == "/tmp/images/c.qcow2"


def deep(layers: int) -> tuple[object, object, object]:
    """The three answers for one disk with that many layers, the shapes taken from 7.2."""
    stats: dict[str, object] | None = None
    named: list[dict[str, object]] = []
    for number in range(layers):
        image: dict[str, object] = {"virtual-size": MIB, "actual-size": 4096, "filename": f"/d/{number}"}
        backing: dict[str, object] = {"backing_file": f"/d/{number - 1}"} if number else {}
        named += [
            {"node-name": f"n{number}", "drv": "qcow2", "file": f"/d/{number}", "ro": True, "image": image}
            | backing,
            {"node-name": f"#f{number}", "drv": "file", "file": f"/d/{number}", "ro": True, "image": image},
        ]
        below: dict[str, object] = {"backing": stats} if stats else {}
        stats = {"node-name": f"n{number}", "stats": {}} | below
    top: dict[str, object] = {"device": "", "qdev": "/machine/peripheral/vda/virtio-backend"}
    block = [top | {"inserted": {"node-name": f"n{layers - 1}", "ro": False}}]
    return block, [top | (stats or {})], named


@each(
    ("drivers", "inner"),
    [
        (("qcow2", "file"), ""),
        (("raw", "file"), ""),
        (("raw", "throttle", "file"), ""),
        (("raw", "luks", "file"), ""),  # what is encrypted below is known as such
        (("qcow2", "blkdebug", "file"), ""),
        (("raw", "qcow2", "file"), "qcow2"),
        (("raw", "raw", "vmdk", "file"), "vmdk"),
        (("quorum",), "quorum"),
    ],
)
def test_parse_tells_of_what_other_image_a_layer_is_made(drivers: tuple[str, ...], inner: str) -> None:
    """As 7.2 answers: a raw driver shows the name of the file at the bottom as its own."""
    image = {"virtual-size": MIB, "actual-size": 4096, "filename": "/d/image"}
    named = [
        {"node-name": f"n{number}", "drv": driver, "file": "/d/image", "ro": False, "image": image}
        for number, driver in enumerate(drivers)
    ]
    stats: dict[str, object] = {}
    for number in reversed(range(len(drivers))):
        stats = {"node-name": f"n{number}", **({"parent": stats} if stats else {})}
    top: dict[str, object] = {"device": "", "qdev": "/machine/peripheral/vda/virtio-backend"}
    block = [top | {"inserted": {"node-name": "n0", "ro": False}}]
    (layer,) = parse_graph(block, [top | stats], named).disks["vda"].layers
    assert (layer.format, layer.file, layer.inner) == (drivers[0], "/d/image", inner)


def test_parse_reads_a_chain_that_is_deeper_than_pythons_stack() -> None:
    layers = sys.getrecursionlimit() + 200
    assert len(parse_graph(*deep(layers)).disks["vda"].files) == layers


def test_parse_takes_time_in_proportion_to_the_depth() -> None:
    def seconds(layers: int) -> float:
        said = deep(layers)
        times = []
        for _ in range(3):
            started = time.process_time()
            parse_graph(*said)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(2000) < 40 * seconds(200)  # in proportion: 10; quadratic: 100


def test_parse_tells_what_is_encrypted_by_the_image_or_by_a_node_below_it() -> None:
    block, stats, named = deep(2)
    assert isinstance(named, list)
    assert [one.encrypted for one in parse_graph(block, stats, named).disks["vda"].layers] == [False, False]
    named[2]["image"]["encrypted"] = True  # the image of n1 and of its file
    assert [one.encrypted for one in parse_graph(block, stats, named).disks["vda"].layers] == [True, False]
    named.append({**named[1], "node-name": "l", "drv": "luks"})
    assert [one.encrypted for one in parse_graph(block, stats, named).disks["vda"].layers] == [True, True]


def test_parse_tells_with_which_secret_a_layer_was_opened() -> None:
    block, stats, named = deep(5)
    assert isinstance(named, list)
    uuids = {0: {"encrypt": {"uuid": "u1"}}, 2: {"encrypt": {"uuid": "u1"}}, 4: {"encrypt": {"uuid": "u2"}}}
    opened = {
        2: '{"encrypt.key-secret": "s1", "driver": "qcow2"}',
        6: '{"driver": "raw", "file": {"driver": "luks", "key-secret": "s2"}}',
    }
    for index in (0, 2, 4, 6):
        specific = {"type": "qcow2", "data": uuids.get(index, {})}
        named[index]["image"] = {**named[index]["image"], "encrypted": True, "format-specific": specific}
        named[index]["file"] = "json:" + opened.get(index, '{"driver": "qcow2", "backing": {"dr...')
    layers = parse_graph(block, stats, named).disks["vda"].layers
    assert [layer.secret for layer in layers] == ["", "s2", "", "s1", "s1"]


Break = Callable[[dict[str, list[dict[str, object]]]], object]


def broken(change: Break) -> tuple[object, object, object]:
    said = copy.deepcopy(answers("mixed-11"))
    change(said)
    return said["block"], said["stats"], said["named"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda said: said["named"].pop(0), id="a layer's node"),
        pytest.param(lambda said: said["stats"].pop(0), id="a disk's statistics"),
        pytest.param(lambda said: said["stats"][0].update({"node-name": "other"}), id="another root"),
    ],
)
def test_parse_says_that_the_graph_moved_when_a_node_is_missing(change: Break) -> None:
    with pytest.raises(GraphMoved):
        parse_graph(*broken(change))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda said: said["named"][0].pop("node-name"), id="node without a name"),
        pytest.param(lambda said: said["named"][0].pop("drv"), id="node without a driver"),
        pytest.param(lambda said: said["named"][0].update({"file": 7}), id="file is a number"),
        pytest.param(lambda said: said["named"][0].pop("image"), id="node without an image"),
        pytest.param(lambda said: said["named"].append([]), id="node is a list"),
        pytest.param(lambda said: said["named"].append(None), id="node is null"),
        pytest.param(
            lambda said: said["named"][0].update({"image": {"virtual-size": "1"}}), id="size is text"
        ),
        pytest.param(lambda said: said["block"][0].update({"inserted": []}), id="medium is a list"),
        pytest.param(lambda said: said["block"][0]["inserted"].pop("ro"), id="medium without ro"),
        pytest.param(lambda said: said["block"][0].update({"inserted": {}}), id="medium without a node"),
        pytest.param(lambda said: said["stats"][0].update({"backing": "x"}), id="backing is text"),
    ],
)
def test_parse_refuses_an_answer_of_another_shape(change: Break) -> None:
    with pytest.raises(Malformed):
        parse_graph(*broken(change))


@each("answer", [None, {}, "x", 7])
@each("which", [0, 1, 2])
def test_parse_refuses_an_answer_that_is_no_list(which: int, answer: object) -> None:
    said: list[object] = [[], [], []]
    said[which] = answer
    with pytest.raises(Malformed, match="Expected `array`"):
        parse_graph(*said)


def test_parse_refuses_two_disks_that_cannot_be_distinguished() -> None:
    block, stats, named = deep(1)
    assert isinstance(block, list)
    with pytest.raises(Malformed, match="cannot be told apart"):
        parse_graph(block * 5, stats, named)


def test_parse_of_no_disks_is_an_empty_graph() -> None:
    assert parse_graph([], [], []) == Graph({}, {})


def test_parse_keeps_a_json_name_that_nests_without_end() -> None:
    block, stats, named = deep(1)
    assert isinstance(named, list)
    named[0]["file"] = named[1]["file"] = "json:" + '{"file":' * 100_000
    assert parse_graph(block, stats, named).disks["vda"].active.file == named[0]["file"]


QCOW2_DATA = {"type": "qcow2", "data": {"compat": "1.1", "data-file": "b.data"}}


@each(
    ("file", "specific", "parts"),
    [
        ("/i/b.qcow2", QCOW2_DATA, ("/i/b.qcow2", "/i/b.data")),
        ("/i/b.qcow2", {"type": "qcow2", "data": {"compat": "1.1"}}, ("/i/b.qcow2",)),
        ("/i/b.raw", None, ("/i/b.raw",)),
    ],
)
def test_parse_names_every_file_of_an_image(file: str, specific: object, parts: tuple[str, ...]) -> None:
    block, stats, named = deep(1)
    assert isinstance(named, list)
    for row in named:
        row["file"] = file
        row["image"] |= {"format-specific": specific} if specific else {}
    assert parse_graph(block, stats, named).disks["vda"].active.parts == parts


def test_parse_reads_bitmaps_without_a_name_and_those_that_were_in_use() -> None:
    block, stats, named = deep(1)
    assert isinstance(named, list)
    named[0]["dirty-bitmaps"] = [
        {"recording": False, "persistent": False, "busy": False, "granularity": 65536, "count": 0},
        {"name": "b", "persistent": True, "busy": False, "inconsistent": True, "count": 0},
    ]
    assert parse_graph(block, stats, named).disks["vda"].active.bitmaps == (
        Bitmap(""),
        Bitmap("b", persistent=True, inconsistent=True),
    )
