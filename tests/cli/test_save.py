from __future__ import annotations

from pathlib import Path

from qmpsnap.plan.intent import Save
from qmpsnap.run.outcome import Done

SAVED = Done(
    "save", {"vda": ("/d/top", "/d/base"), "vdb": ("/d/b",)}, elapsed_s=0.5, bytes=91 << 20,
    notes=("the guest stands still from then on",),
)  # fmt: skip


def test_save_makes_the_file_absolute(intent):
    assert intent("save", "m") == Save(f"{Path.cwd()}/m")


def test_save_says_what_to_start_and_what_to_type_then(printed):
    assert printed(SAVED, "save", "/d/vm 1.state").out.splitlines() == [
        "save: done in 500 ms, VM state of 91 MiB",
        "vda: [base] <- [top*]",
        "vdb: [b*]",
        "note: the guest stands still from then on",
        "quit this QEMU; the file can be used as long as nobody writes to these disks",
        "start vda from /d/top",
        "start vdb from /d/b",
        "next: qmpsnap -s NEW restore '/d/vm 1.state'",
    ]


def test_save_prints_one_object_as_json(printed):
    found = printed(SAVED, "--json", "save", "/d/m").json
    assert (found["op"], found["bytes"], found["chains"]["vdb"]) == ("save", 91 << 20, ["/d/b"])
