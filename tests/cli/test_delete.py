from __future__ import annotations

import pytest

from qmpsnap.plan.intent import Delete
from qmpsnap.testing.server import Return

from .conftest import disks


@pytest.fixture
def inside(server):
    disks(server, inside=[("vda", "1", "i1", 0), ("vdb", "3", "i1", 0)], vda=("/d/a",), vdb=("/d/b",))
    commands = ["blockdev-snapshot-delete-internal-sync", "blockdev-snapshot-internal-sync", "transaction"]
    server.answer("query-commands", Return([{"name": name} for name in commands]))


def planned(ended):
    return [(step["command"], step["arguments"]) for step in ended.json["plan"]["steps"]]


def test_delete_prints_its_plan(machine, inside):
    delete = "blockdev-snapshot-delete-internal-sync"
    ended = machine("--json", "delete", "i1", "-n")
    assert (ended.code, ended.json["changed"]) == (0, False)
    assert planned(ended) == [
        (delete, {"device": "vda-0", "id": "1", "name": "i1"}),
        (delete, {"device": "vdb-0", "id": "3", "name": "i1"}),
    ]


def test_delete_refuses_a_name_that_nobody_has(machine, inside):
    ended = machine("delete", "nope")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("qmpsnap: refused: there is no snapshot 'nope'")


def test_delete_says_all_that_can_be_said(intent):
    assert intent("delete", "c1") == Delete("c1")
    assert intent("delete", "c1", "--via", "jobs") == Delete("c1", "jobs")


def test_snapshot_internal_prints_its_plan(machine, inside):
    ended = machine("--json", "snapshot", "i2", "--internal", "--disk", "vda", "-n")
    data = {"device": "vda-0", "name": "i2"}
    action = {"type": "blockdev-snapshot-internal-sync", "data": data}
    assert planned(ended) == [("transaction", {"actions": [action]})]


@pytest.mark.parametrize("more", [["--disk", "vda=/d/o"], ["--use-existing"]])
def test_snapshot_internal_takes_no_files(machine, inside, more):
    ended = machine("snapshot", "i2", "--internal", *more)
    assert ended.code == 2
    assert "--internal creates no files" in ended.err


def test_delete_takes_what_becomes_of_files(intent):
    words = ("delete", "c1", "--keep-files", "--look-in", "/a")
    assert intent(*words) == Delete("c1", keep_files=True, look_in=("/a",))
