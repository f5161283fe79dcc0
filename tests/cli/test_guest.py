"""`qmpsnap status`, and the first line of `chain`, of a guest that is not running."""

from __future__ import annotations

from qmpsnap.testing.server import Return

from .conftest import disks, stands

FULL = "There was no space for a write to vda (/d/top.qcow2)."
NEXT = "make room there; then qmpsnap cont resumes the guest, and QEMU repeats the request"


def is_full(server):
    """The guest is paused because vda's file system is full."""
    stands(server, "io-error")
    disks(server, vda=("/d/top.qcow2", "/d/base.qcow2"), vdb=("/d/b.qcow2",))
    rows = [
        {"device": "", "qdev": f"/machine/peripheral/{disk}/virtio-backend", "io-status": status,
         "inserted": {"node-name": f"{disk}-0", "file": "", "ro": False, "drv": "qcow2"}}
        for disk, status in (("vda", "nospace"), ("vdb", "ok"))
    ]  # fmt: skip
    server.answer("query-block", Return(rows))


def test_status_names_the_disk_that_has_no_space(machine, server):
    is_full(server)
    ended = machine("status")
    assert ended.out.splitlines()[:2] == ["io-error", FULL]
    assert " ".join(ended.out.split()).endswith(f"next: {NEXT}")
    assert machine("status", "--json").json == {
        "version": 1,
        "status": "io-error",
        "running": False,
        "migration": "none",
        "pause": {"state": "io-error", "cause": FULL, "advice": NEXT, "failed": {"vda": "nospace"}},
    }


def test_status_of_a_running_guest_is_one_word(machine, server):
    stands(server)
    assert machine("status").out == "running\n"
    assert machine("status", "--json").json["pause"] is None


def test_chain_begins_with_what_keeps_the_guest_from_running(machine, server):
    is_full(server)
    first, *rest = machine("chain").out.splitlines()
    assert first.startswith("not running (io-error): There was no space")
    assert any(line.startswith("vda: [base] <- [top*]") for line in rest)
    stands(server, "shutdown")
    disks(server)
    assert machine("chain").out.startswith("not running (shutdown): The guest has shut down")
