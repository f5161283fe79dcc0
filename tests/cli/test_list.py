from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.layer_stamps import stamp_of
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.run.image_headers import header_with_status
from tests.headers import qcow2_bytes

from .conftest import disks

TAKEN = "2024-05-01T12:00:00+00:00"


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def both(server, tmp_path):
    """A machine with the external moment sn and the internal ones i1 (with VM state) and i2."""
    top, base = (str(tmp_path / name) for name in ("top.qcow2", "base.qcow2"))
    disks(server, inside=[("vda", "1", "i1", 4096), ("vdb", "1", "i1", 0), ("vda", "2", "i2", 0)],
          vda=(top, base), vdb=("/d/b.qcow2",))  # fmt: skip
    record = MomentRecord("qmpsnap-snapshot-keep-0a1b2c3d", "sn", TAKEN, {"vda": top}, {"vda": base})
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    return top, base


def test_list_says_when_there_are_none(machine):
    assert machine("--shared-fs", "yes", "list") == (0, "no snapshots or checkpoints\n", "")


def test_list_says_that_none_are_known_when_files_are_not_visible(machine, server):
    assert machine("--shared-fs", "no", "list") == (0, "no snapshots or checkpoints\n", "")  # of no disks
    warning = "warning: QEMU's files are not visible from here, so external snapshots are not known\n"
    disks(server, vda=("/d/a.qcow2",))
    assert machine("--shared-fs", "no", "list") == (0, "no snapshots or checkpoints are known\n", warning)


def test_list_shows_both_kinds_the_oldest_first(machine, both, tmp_path):
    assert machine("--shared-fs", "yes", "list").out.splitlines() == [
        "NAME  KIND      TAKEN                OVERLAYS  VM STATE  DISKS",
        "sn    external  2024-05-01 12:00:00     1 MiB            vda",
        "i1    internal  2024-05-01 12:00:01               4 KiB  vda, vdb",
        "i2    internal  2024-05-01 12:00:02                      vda",
        "vda: current snapshot sn",
        "",
        f"images in {tmp_path}:",
        "HOLDS    ALLOCATED  FILE",
        "o sn         1 MiB  base.qcow2",
        "* (vda)      1 MiB  top.qcow2 (inside: i1, i2)",
        "",
        "* (vdb)      1 MiB  /d/b.qcow2 (inside: i1)",
    ]


def test_list_prints_json_with_every_part(machine, both):
    top, base = both
    found = machine("--shared-fs", "yes", "--json", "list").json
    assert found["current"] == {"vda": "sn", "vdb": None}
    assert found["records_seen"] is True
    assert found["moments"][:2] == [
        {
            "name": "sn", "kind": "external", "created": TAKEN, "current": True, "allocated": 1 << 20,
            "vm_state_size": 0, "mode": "", "vm_state_file": "", "vm_state_bytes": 0,
            "vm_state_missing": False,
            "held": [{"disk": "vda", "file": base, "overlay": top, "allocated": 1 << 20, "id": "",
                      "vm_state_size": 0, "in_chain": True, "invalid": False, "written": []}],
        },
        {
            "name": "i1", "kind": "internal", "created": "2024-05-01T12:00:01+00:00", "current": False,
            "allocated": None, "vm_state_size": 4096, "mode": "internal", "vm_state_file": "",
            "vm_state_bytes": 4096, "vm_state_missing": False,
            "held": [
                {"disk": "vda", "file": top, "overlay": "", "allocated": None, "id": "1",
                 "vm_state_size": 4096, "in_chain": True, "invalid": False, "written": []},
                {"disk": "vdb", "file": "/d/b.qcow2", "overlay": "", "allocated": None, "id": "1",
                 "vm_state_size": 0, "in_chain": True, "invalid": False, "written": []},
            ],
        },
    ]  # fmt: skip


def test_list_marks_a_snapshot_to_whose_layer_others_have_written(machine, both, tmp_path):
    _, base = both
    Path(base).write_bytes(qcow2_bytes())
    (file,) = (tmp_path / "base.qmpsnap").iterdir()
    record = from_json(file.read_text())
    header, status = header_with_status(base)
    for was, told in ((status.st_mtime_ns, False), (status.st_mtime_ns - 1, True)):
        stamp = stamp_of(header, modified_ns=was, inode=status.st_ino)
        file.write_text(to_json(replace(record, stamps={base: stamp})))
        out = machine("--shared-fs", "yes", "list").out
        assert (
            bool(re.search(r"WRITTEN TO on vda at [-0-9]+ [:0-9]+, not by qmpsnap:\s+\S*base", out)) is told
        )
        (part,) = machine("--shared-fs", "yes", "--json", "list").json["moments"][0]["held"]
        assert [layer["file"] for layer in part["written"]] == [base] * told


def test_list_warns_when_external_ones_cannot_be_known(machine, both):
    ended = machine("--shared-fs", "no", "list")
    rows, tree = ended.out.split("\n\n", 1)
    assert [line.split()[0] for line in rows.splitlines()] == ["NAME", "i1", "i2"]
    assert [line.split()[0] for line in tree.splitlines()[2:] if line] == ["o", "*", "*"]
    assert ended.err.startswith("warning: QEMU's files are not visible from here")


@pytest.fixture
def checkpoint(server, tmp_path, monkeypatch):
    """A machine with the external checkpoint c1; yields the file of its VM state, which is not there."""
    monkeypatch.chdir(tmp_path)
    top, base, memory = (str(tmp_path / name) for name in ("top.qcow2", "base.qcow2", "base.c1.vmstate"))
    disks(server, vda=(top, base))
    state = KeptState(
        "background", memory, "", running=True, fingerprint=Fingerprint("q35", 1 << 28, (), {}, {})
    )
    record = MomentRecord(
        "qmpsnap-checkpoint-keep-0a1b2c3d", "c1", TAKEN, {"vda": top}, {"vda": base}, state=state
    )
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    return tmp_path / "base.c1.vmstate"


TREE = ["", "HOLDS    ALLOCATED  FILE", "o c1         1 MiB  base.qcow2", "* (vda)      1 MiB  top.qcow2"]


def test_list_shows_how_a_checkpoint_was_taken_and_what_it_keeps(machine, checkpoint):
    checkpoint.write_bytes(b"x" * 2048)
    header, *rows = machine("--shared-fs", "yes", "list").out.splitlines()
    rows.remove(f"images in {checkpoint.parent}:")
    assert header == "NAME  KIND      TAKEN                OVERLAYS  MODE        VM STATE  DISKS"
    assert rows == [
        "c1    external  2024-05-01 12:00:00     1 MiB  background     2 KiB  vda",
        "    VM state: base.c1.vmstate",
        "vda: current snapshot c1",
        *TREE,
    ]


def test_list_says_that_a_file_of_vm_state_is_missing(machine, checkpoint):
    ended = machine("--shared-fs", "yes", "list")
    assert ended.out.splitlines()[2] == "    VM state MISSING: base.c1.vmstate"


def test_list_prints_json_of_a_checkpoint(machine, checkpoint):
    checkpoint.write_bytes(b"x" * 2048)
    keys = ("mode", "vm_state_file", "vm_state_bytes", "vm_state_missing", "vm_state_size")
    (there,) = machine("--shared-fs", "yes", "--json", "list").json["moments"]
    assert [there[key] for key in keys] == ["background", str(checkpoint), 2048, False, 0]
    checkpoint.unlink()
    (gone,) = machine("--shared-fs", "yes", "--json", "list").json["moments"]
    assert [gone[key] for key in keys] == ["background", str(checkpoint), None, True, 0]


def test_list_names_vm_state_that_no_snapshot_needs(machine, both):
    top, _ = both
    file = top.replace("top.qcow2", "base.c 1.memory.0a1b2c3d.partial")
    with open(file, "w"):  # noqa: PTH123
        pass
    said = machine("--shared-fs", "yes", "list").out.splitlines()
    assert said[-2:] == [
        f"VM state that no snapshot uses: {file}",
        f"  remove it, unless its record is elsewhere (--state-dir): rm '{file}'",
    ]
    assert machine("--shared-fs", "yes", "--json", "list").json["unneeded"] == [file]


def create(file, backing=None):
    header = qcow2_bytes(backing=backing, backing_format="qcow2" if backing else None)
    Path(file).write_bytes(header)


@pytest.fixture
def branches(both, tmp_path):
    """Beside the machine's images: an overlay of its own, those of five other machines, and more."""
    top, base = both
    create(base)
    create(top, base)
    for name in ("clone", "old.qcow2.invalid", *(f"other{number}" for number in range(5))):
        create(tmp_path / (name if "." in name else f"{name}.qcow2"), base)
    for number in range(5):
        theirs = tmp_path / f"other{number}.qcow2"
        record = MomentRecord(
            f"qmpsnap-snapshot-keep-0000000{number}", "x", TAKEN, {"vda": str(theirs)}, {"vda": base}
        )
        (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))


def test_list_draws_branches_and_says_whose_they_are(machine, branches, tmp_path):
    said = machine("--shared-fs", "yes", "list").out.splitlines()
    tree = said[said.index(f"images in {tmp_path}:") + 2 :]
    allocated = re.compile(r" +(\d+ KiB|1 MiB)  ")
    assert [allocated.sub(" ", line) for line in tree] == [
        "o sn base.qcow2",
        "|-o clone.qcow2 (in no record)",
        "|-o old.qcow2.invalid (INVALID)",
        "|-o other0.qcow2 (another machine's, or left)",
        "|-o other1.qcow2 (another machine's, or left)",
        "|-o other2.qcow2 (another machine's, or left)",
        "|-                  (2 more of other machines, or left)",
        "* (vda) top.qcow2 (inside: i1, i2)",
        "",
        "* (vdb) /d/b.qcow2 (inside: i1)",
    ]
    assert max(map(len, tree)) <= 80


def test_list_prints_the_tree_as_json(machine, branches, tmp_path):
    base, top = (str(tmp_path / name) for name in ("base.qcow2", "top.qcow2"))
    found = machine("--shared-fs", "yes", "--json", "list").json["tree"]
    assert found[0] == {
        "file": base, "backing": None, "disks": ["vda"], "owner": "machine", "format": "qcow2",
        "virtual_size": 1 << 30, "allocated": 1 << 20, "active": False, "in_chain": True, "missing": False,
        "invalid": False, "holds": ["sn"], "began": [], "inside": [], "holds_other": ["x"],
        "holds_deleted": [], "shows": "",
    }  # fmt: skip
    (active,) = [image for image in found if image["file"] == top]
    assert (active["backing"], active["active"], active["began"], active["inside"]) == (
        base, True, ["sn"], ["i1", "i2"],
    )  # fmt: skip
    assert [image["owner"] for image in found[1:-2]] == ["unknown", "unknown", *["other"] * 5]
    assert [image["invalid"] for image in found[1:-2]] == [False, True, *[False] * 5]


def test_list_names_the_overlay_of_a_branch_whose_layer_is_still_in_the_chain(machine, server, tmp_path):
    base, one, two, aside = (str(tmp_path / f"{name}.qcow2") for name in ("base", "one", "two", "aside"))
    disks(server, vda=(two, one, base))
    for file, backing in ((base, None), (one, base), (two, one), (aside, one)):
        create(file, backing)
    (tmp_path / "base.qmpsnap").mkdir()
    for number, (name, overlay, covered) in enumerate(
        (("n1", one, base), ("n2", two, one), ("n3", aside, one))
    ):
        record = MomentRecord(
            f"qmpsnap-snapshot-keep-0000000{number}", name, TAKEN, {"vda": overlay}, {"vda": covered}
        )
        (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    said = machine("--shared-fs", "yes", "list").out.split("vda: current")[0]
    assert said.split().count("n3") == 1
    assert said.split("n3")[1].split()[-8:] == ["no", "longer", "in", "the", "chain", "of", "vda:", aside]
    assert said.count("no longer") == 1


def test_list_draws_no_tree_of_images_that_stand_alone(machine, server):
    disks(server, vda=("/d/a.qcow2",), vdb=("/d/b.qcow2",))
    assert machine("--shared-fs", "yes", "list").out == "no snapshots or checkpoints\n"


def test_list_warns_of_an_image_that_cannot_be_read(machine, both, tmp_path):
    (tmp_path / "broken.qcow2").write_bytes(b"QFI\xfb\0\0\0\x09")
    ended = machine("--shared-fs", "yes", "list")
    assert f"warning: not read: {tmp_path}/broken.qcow2: qcow2 of unknown version 9" in ended.err.splitlines()
    found = machine("--shared-fs", "yes", "--json", "list").json["unreadable"]
    assert f"{tmp_path}/broken.qcow2: qcow2 of unknown version 9" in found
