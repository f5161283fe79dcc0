from __future__ import annotations

from qmpsnap.model.record import IntentRecord
from qmpsnap.model.record_file import to_json

from .conftest import GIB, disks

TOP, MID, BASE = "/d/top.qcow2", "/d/mid.qcow2", "/d/base.qcow2"


def test_chain_draws_each_disk_and_lists_its_layers(machine, server):
    disks(server, vda=(TOP, BASE), cd=())
    assert machine("chain").out.splitlines() == [
        "vda: [base] <- [top*]",
        "  FORMAT   SIZE  ALLOCATED  NODE   FILE",
        "  qcow2   1 GiB      1 MiB  vda-0  /d/top.qcow2",
        "  qcow2   1 GiB      1 MiB  vda-1  /d/base.qcow2",
        "cd: (empty)",
    ]


def test_chain_shows_one_disk_by_any_of_its_names(machine, server):
    disks(server, vda=(TOP, BASE), vdb=("/d/b.qcow2",))
    assert [one["name"] for one in machine("--json", "chain", "/d/b.qcow2").json["disks"]] == ["vdb"]


def test_chain_refuses_a_disk_that_is_not_there(machine, server):
    disks(server, vda=(TOP, BASE))
    ended = machine("chain", "vdx")
    assert (ended.code, ended.out) == (3, "")
    assert "the disks are: vda" in ended.err


def test_chain_as_json_has_the_promised_keys(machine, server):
    disks(server, vda=(TOP, BASE), cd=())
    vda, cd = machine("--json", "chain").json["disks"]
    assert (vda["name"], vda["qdev"]) == ("vda", "/machine/peripheral/vda/virtio-backend")
    promised = {
        "node": "vda-0", "file": TOP, "format": "qcow2", "virtual_size": GIB, "allocated": 1 << 20,
        "backing": BASE, "read_only": False, "active": True, "snapshots": [],
    }  # fmt: skip
    assert {key: vda["layers"][0][key] for key in promised} == promised
    assert [layer["active"] for layer in vda["layers"]] == [True, False]
    assert (vda["filters"], cd["layers"]) == ([], [])


def test_chain_marks_layers_that_hold_no_moment(machine, server, tmp_path, monkeypatch):
    files = [str(tmp_path / name) for name in ("top.qcow2", "base.qcow2")]
    disks(server, vda=files)
    record = IntentRecord(
        id="qmpsnap-commit-pivot-0a1b2c3d", op="commit", created="2024-01-01T00:00:00+00:00",
        chains={"vda": tuple(files)}, invalid=(files[1],),
    )  # fmt: skip
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    monkeypatch.chdir(tmp_path)
    assert machine("--shared-fs", "yes", "chain").out.splitlines()[2:] == [
        "  qcow2   1 GiB      1 MiB  vda-0  top.qcow2",
        "  qcow2   1 GiB      1 MiB  vda-1  base.qcow2",
        "      INVALID: qmpsnap-commit-pivot-0a1b2c3d wrote into it",
    ]


def test_chain_warns_of_a_long_one(machine, server):
    disks(server, vda=tuple(f"/d/{number}.qcow2" for number in range(201)))
    ended = machine("chain")
    assert ended.code == 0
    assert ended.err.startswith("warning: vda has 201 layers")
    assert "qmpsnap commit vda --top" in ended.err


def test_chain_does_not_obey_a_file_s_name(machine, server):
    disks(server, vda=("/d/\x1b[2J.qcow2",))
    assert "\x1b" not in machine("chain").out
