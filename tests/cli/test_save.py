from __future__ import annotations

from pathlib import Path

from qmpsnap.plan.intent import Save
from qmpsnap.run.outcome import Done

SAVED = Done("save", {"vda": ("/d/top", "/d/base"), "vdb": ("/d/b",)}, elapsed_s=0.5, bytes=91 << 20)


def test_save_makes_the_file_absolute(intent):
    assert intent("save", "m") == Save(f"{Path.cwd()}/m")


def test_save_says_that_the_guest_stands_still_and_what_to_start(told):
    assert told(SAVED, "save", "/d/vm 1.state").out.splitlines() == [
        "save: done in 500 ms, VM state of 91 MiB",
        "vda: [base] <- [top*]",
        "vdb: [b*]",
        "the guest stands still: quit this QEMU; its disks are not to be written to",
        "then start the same machine with -S -incoming defer:",
        "start vda from /d/top",
        "start vdb from /d/b",
        "next: qmpsnap -s NEW restore '/d/vm 1.state'",
    ]


def test_save_prints_one_object_as_json(told):
    found = told(SAVED, "--json", "save", "/d/m").json
    assert (found["op"], found["bytes"], found["chains"]["vdb"]) == ("save", 91 << 20, ["/d/b"])
