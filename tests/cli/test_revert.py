from __future__ import annotations

import pytest

from qmpsnap.plan.intent import Revert
from qmpsnap.run.outcome import Done

CHAINS = {"vda": ("/d/top", "/d/base"), "vdb": ("/d/b",)}
OVERLAYS = {"vda": "/d/base.c1-2", "vdb": "/d/b.c1-2"}


def test_revert_has_the_promised_defaults(intent):
    assert intent("revert", "c1") == Revert("c1")


def test_revert_says_all_that_can_be_said(intent):
    words = ("--leave", "vdb", "--leave", "vdc", "--discard", "--via", "jobs")
    assert intent("revert", "c1", *words) == Revert("c1", ("vdb", "vdc"), discard=True, via="jobs")


def test_revert_with_a_new_qemu_is_two_steps(intent):
    assert intent("revert", "c1", "--prepare") == Revert("c1", into="new")
    assert intent("revert", "c1", "--into-incoming") == Revert("c1", into="incoming")


@pytest.mark.parametrize(
    "words",
    [
        ("--prepare", "--into-incoming"),
        ("--prepare", "--leave", "vda"),
        ("--prepare", "--discard"),
        ("--into-incoming", "--via", "hmp"),
        ("--into-incoming", "--discard"),
    ],
    ids=" ".join,
)
def test_revert_refuses_two_ways_at_once(qmpsnap, words):
    ended = qmpsnap("-s", "/none", "revert", "c1", *words)
    assert (ended.code, ended.out) == (2, "")


def test_revert_says_where_each_disk_writes_from_now_on(printed):
    done = Done("revert", CHAINS, {"vda": "/d/top"}, 0.09, 0.1)
    assert printed(done, "revert", "c1").out.splitlines() == [
        "revert to c1: done in 100 ms, the guest was paused for 90 ms",
        "vda: [base] <- [top*]",
        "vdb: [b*]",
        "from now on, start vda from /d/top",
    ]


def test_revert_of_a_machine_that_is_off_says_what_to_start(printed):
    done = Done("revert-prepare", CHAINS, elapsed_s=0.1, prepared=OVERLAYS)
    assert printed(done, "revert", "c1").out.splitlines()[1:] == [
        "start vda from /d/base.c1-2",
        "start vdb from /d/b.c1-2",
    ]


def test_prepare_says_what_to_start_and_what_to_type_then(printed):
    done = Done("revert-prepare", CHAINS, elapsed_s=0.1, prepared=OVERLAYS, memory="/d/c1.vmstate")
    words = ("--state-dir", "/var/lib/r s", "--shared-fs", "yes", "revert", "c1", "--prepare")
    assert printed(done, *words).out.splitlines()[1:] == [
        "start vda from /d/base.c1-2",
        "start vdb from /d/b.c1-2",
        "the VM state is in /d/c1.vmstate: start the same machine with -S -incoming defer",
        "next: qmpsnap -s NEW --state-dir '/var/lib/r s' --shared-fs yes revert c1 --into-incoming",
    ]


def test_prepare_of_disks_alone_needs_no_second_step(printed):
    done = Done("revert-prepare", CHAINS, elapsed_s=0.1, prepared=OVERLAYS)
    assert printed(done, "revert", "c1", "--prepare").out.splitlines()[-1] == "start vdb from /d/b.c1-2"


def test_prepare_prints_the_overlays_and_the_memory_as_json(printed):
    done = Done("revert-prepare", CHAINS, elapsed_s=0.1, prepared=OVERLAYS, memory="/d/c1.vmstate")
    found = printed(done, "--json", "revert", "c1", "--prepare").json
    assert (found["prepared"], found["memory"]) == (OVERLAYS, "/d/c1.vmstate")
