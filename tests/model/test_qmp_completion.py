from __future__ import annotations

from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.qapi_schema import Schema
from qmpsnap.model.qmp_completion import Candidate, Completion, Names, complete, names_of, wants_names
from qmpsnap.model.qmp_line import read_line
from tests.each import each
from tests.model.schemas import SCHEMA

NAMES = Names(("n0", "#block12", "a b", "x\x1b[2J"), ("drive0",), ("vda",), ("job0",))


@each(
    ("text", "start", "expected"),
    [
        ("", 0, [*sorted(SCHEMA.commands), "help"]),
        ("  block-c", 2, ["block-commit"]),
        ("commit", 0, ["block-commit"]),
        ("block", 0, ["block-commit", "blockdev-add", "blockdev-del"]),
        ("he", 0, ["help"]),
        ("help ", 5, sorted(SCHEMA.commands)),
        ("help job", 5, ["job-cancel"]),
        ("help blockdev-add dr", 18, ["driver="]),
        ("block-commit ", 13, ["device=", "base-node=", "base=", "speed=", "on-error=", "auto-dismiss=",
                               "__com.example_twice="]),
        ("block-commit device=x sp", 22, ["speed="]),
        ("block-commit on-error=x on", 24, []),
        ("block-commit on-error=", 22, ["report", "stop"]),
        ("block-commit on-error=s", 22, ["stop"]),
        ("block-commit auto-dismiss=", 26, ["true", "false"]),
        ("block-commit device=", 20, ["drive0", "n0", "'#block12'", "'a b'"]),
        ("block-commit device='a", 20, ["'a b'"]),
        ("block-commit base-node=n", 23, ["n0"]),
        ("block-commit speed=", 19, []),
        ("block-commit {", 14, []),
        ("blockdev-add node-name=", 23, []),
        ("blockdev-del node-name=n", 23, ["n0"]),
        ("job-cancel id=", 14, ["job0"]),
        ("device_add id=", 14, []),
        ("blockdev-add driver=qc", 20, ["qcow2", "qcow"]),
        ("blockdev-add ", 13, ["driver=", "node-name="]),
        ("blockdev-add driver=qcow2 f", 26, ["file.", "file="]),
        ("blockdev-add driver=qcow2 file=", 31, ["n0", "'#block12'", "'a b'"]),
        ("blockdev-add driver=qcow2 file.", 26, ["file.driver=", "file.node-name="]),
        ("blockdev-add driver=qcow2 file.driver=file file.f", 43, ["file.filename="]),
        ("blockdev-add driver=qcow2 file.driver=f", 38, ["file"]),
        ("migrate-set-capabilities ", 25, ["capabilities.", "capabilities="]),
        ("migrate-set-capabilities capabilities.", 25, ["capabilities.0."]),
        ("migrate-set-capabilities capabilities.0.state=on capabilities.", 49, ["capabilities.1."]),
        ("migrate-set-capabilities capabilities.0.", 25,
         ["capabilities.0.capability=", "capabilities.0.state="]),
        ("migrate-set-capabilities capabilities.0.capability=", 51, ["report", "stop"]),
        ("migrate-set-capabilities capabilities.x.", 25, []),
        ("quit ", 5, []),
        ("none a", 6, []),
        ("block-commit junk on-error=", 27, []),
        ('{"execute": "', 13, []),
        ("new-fangled sh", 12, ["share=", "shape="]),
        ("new-fangled shape.", 12, []),
    ],
)  # fmt: skip
def test_complete_offers_what_may_come_next(text, start, expected):
    completion = complete(text, SCHEMA, NAMES)
    assert (completion.start, [candidate.text for candidate in completion.candidates]) == (start, expected)


def test_complete_notes_types_and_what_is_deprecated_or_unstable():
    assert complete("block-commit base", SCHEMA, NAMES).candidates == (
        Candidate("base-node=", "string, optional"),
        Candidate("base=", "string, optional, deprecated"),
    )
    assert complete("job-c", SCHEMA, NAMES) == Completion(0, (Candidate("job-cancel", "unstable"),))


def test_what_is_offered_for_a_value_can_be_read_back():
    for candidate in complete("block-commit device=", SCHEMA, NAMES).candidates:
        request = read_line(f"block-commit device={candidate.text}", SCHEMA)
        assert request is not None
        assert request.arguments["device"] in {*NAMES.nodes, *NAMES.drives}


def test_complete_offers_nothing_of_an_empty_schema_but_help():
    assert complete("", Schema(), NAMES).candidates == (Candidate("help"),)


@each(
    ("text", "expected"), [("", False), ("a b=", True), ("a b=c", True), ("a b=c ", False), ("a\tb=", True)]
)
def test_wants_names_where_a_value_is_typed(text, expected):
    assert wants_names(text) is expected


def test_names_of_has_drives_and_devices_by_what_qemu_knows_them_by():
    disks = [
        Disk("vda", qdev="/machine/peripheral/vda/virtio-backend"),
        Disk("ide0", drive="ide0", qdev="/machine/unattached/device[3]"),
        Disk("device[5]", qdev="/machine/unattached/device[5]"),
        Disk("sd0", qdev="sd0", drive="drive1"),
    ]
    graph = Graph({disk.name: disk for disk in disks})
    assert names_of(graph, [Job("j", "stream", JobStatus.RUNNING)]) == Names(
        (), ("ide0", "drive1"), ("vda", "sd0"), ("j",)
    )
