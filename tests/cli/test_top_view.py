from __future__ import annotations

import pytest

from qmpsnap.cli.top_view import block, event_line, screen
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.job import IoStatus, Job, JobStatus
from qmpsnap.model.job_place import JobPlace
from qmpsnap.model.machine import Status
from qmpsnap.model.pause import Pause
from qmpsnap.run.progress import Progress
from qmpsnap.run.session import Event
from qmpsnap.watching import JobNow, Overview

MIB = 1 << 20
HOSTILE = "x\n\x1b[2J\x9b31m\u202e"


def disk(name, *files, read_only=False):
    layers = tuple(Layer(f"{name}-{file}", f"/d/{file}.qcow2", "qcow2", 64 * MIB) for file in files)
    return Disk(name, root=f"{name}-root", layers=layers, read_only=read_only)


def disks(*each):
    return Graph({one.name: one for one in each})


def job(offset=50, *, op="commit", rate=None, remaining=None, target="", **facts):
    facts = {"status": JobStatus.RUNNING, **facts}
    running = Job(f"qmpsnap-{op}-pivot-0a1b2c3d", op, offset=offset * MIB, length=100 * MIB, **facts)
    return JobNow(Progress(running, rate, remaining), JobPlace("vda", target))


def event(name="STOP", **data):
    return Event(name, data, 1764465376.25)


def shown(overview, width=80, height=24, **options):
    return [line.plain for line in screen(overview, "vm1", width=width, height=height, **options)]


FULL = Overview(
    status=Status("running", running=True),
    graph=disks(disk("vda", "active", "s1", "base"), disk("cd0"), disk("vdb", "data", read_only=True)),
    jobs=(job(rate=10 * MIB, remaining=5.0, target="/d/base.qcow2", speed=10 * MIB),),
    events=(event(), event("BLOCK_JOB_READY", device="j", speed=0)),
    heard=2,
)


def test_screen_has_the_state_disks_jobs_and_events():
    lines = shown(FULL)
    time = event_line(event()).split()[0]
    assert lines == [
        "running  vm1",
        "DISKS",
        "vda: [base] <- [s1] <- [active*]",
        "cd0: (empty)",
        "vdb: [data*] (read-only)",
        "JOBS",
        "commit of vda: running",
        f"  {'█' * 15}{'░' * 15} 50% of 100 MiB, 10 MiB/s, 5 s left",
        "  qmpsnap-commit-pivot-0a1b2c3d",
        "  into /d/base.qcow2",
        "EVENTS",
        f"{time} STOP",
        f"{time} BLOCK_JOB_READY device=j speed=0",
    ]


def test_screen_and_block_say_why_the_guest_is_not_running():
    pause = Pause("io-error", "There was no space for a write to vda.", "make room there")
    overview = Overview(status=Status("io-error", running=False), pause=pause, graph=disks(disk("cd0")))
    head = ["io-error  vm1", "There was no space for a write to vda.", "next: make room there"]
    assert shown(overview) == [*head, "DISKS", "cd0: (empty)"]
    assert block(overview, "vm1") == [*head, "cd0: (empty)"]


def test_screen_of_40_columns_folds_what_is_too_long():
    lines = shown(FULL, width=40)
    assert max(map(len, lines)) <= 40
    assert f"  {'█' * 15}{'░' * 15}" in lines
    assert "  50% of 100 MiB, 10 MiB/s, 5 s left" in lines
    assert lines[-1].endswith("…")


def test_screen_without_other_characters_draws_the_bar_in_ascii():
    assert f"  {'#' * 15}{'-' * 15} 50% of 100 MiB, 10 MiB/s, 5 s left" in shown(FULL, ascii_only=True)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (80, 2), (10, 5), (40, 8), (40, 24), (80, 24), (300, 60)]
)
def test_screen_never_exceeds_the_terminal(width, height):
    crowded = Overview(
        status=Status("io-error", running=False, migration="active"),
        graph=disks(*(disk(f"disk{number}", *(f"layer{n}" for n in range(30))) for number in range(30))),
        jobs=tuple(job(number, error="no space left " * 10) for number in range(8)),
        events=(event("X" * 300),) * 50,
        unread="because " * 30,
        silent_s=5,
    )
    lines = screen(crowded, "vm1", width=width, height=height)
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width


def test_screen_leaves_room_for_jobs_and_the_last_events_beside_many_disks():
    many = Overview(
        graph=disks(*(disk(f"disk{number}", "a") for number in range(30))),
        jobs=(job(),),
        events=tuple(event(f"E{number}") for number in range(50)),
    )
    lines = shown(many, height=20)
    assert len(lines) == 20
    assert "  ... 21 more lines" in lines
    assert "commit of vda: running" in lines
    assert [line.split()[-1] for line in lines[-3:]] == ["E47", "E48", "E49"]


def test_screen_shows_the_base_and_the_newest_layers_of_a_deep_chain():
    deep = Overview(graph=disks(disk("vda", "active", *(f"s{n}" for n in range(198, 0, -1)), "base")))
    lines = shown(deep, width=60)[2:]
    assert lines[0].startswith("vda: [base] <- ... 1")
    assert lines[-1].endswith("<- [s198] <- [active*]")
    assert len(lines) == 3


def test_screen_says_when_qemu_is_silent_and_when_chains_may_be_out_of_date():
    lines = shown(Overview(silent_s=7, unread="stream job 'j' has concluded"))
    assert lines[:3] == [
        "no guest  vm1",
        "QEMU has not answered for 7 s",
        "the chains may be out of date: stream job 'j' has concluded",
    ]


def test_screen_colours_the_run_state_and_a_job_that_stands_still():
    for state, colour in (("running", "green"), ("paused", "yellow"), ("io-error", "red")):
        first = screen(Overview(status=Status(state, running=False)), "vm1", width=80, height=24)[0]
        assert [str(span.style) for span in first.spans] == [f"bold {colour}"]
    stopped = job(paused=True, status=JobStatus.PAUSED, io_status=IoStatus.NOSPACE)
    lines = screen(Overview(jobs=(stopped,)), "vm1", width=80, height=24)
    (line,) = [line for line in lines if "paused" in line.plain]
    assert (line.plain, str(line.style)) == ("commit of vda: paused: no space", "red")


def test_nothing_foreign_is_more_than_text_on_the_screen_or_in_a_block():
    foreign = Overview(
        status=Status(HOSTILE, running=False, migration=HOSTILE),
        pause=Pause(HOSTILE, HOSTILE, HOSTILE),
        graph=disks(disk(HOSTILE, HOSTILE, "base")),
        jobs=(
            JobNow(
                Progress(Job(HOSTILE, HOSTILE, JobStatus.RUNNING, length=9, error=HOSTILE), None, None),
                JobPlace(HOSTILE, HOSTILE),
            ),
        ),
        events=(event(HOSTILE, **{HOSTILE: HOSTILE, "inner": [HOSTILE, {HOSTILE: 1}]}),),
        unread=HOSTILE,
    )
    lines = [line.plain for line in screen(foreign, HOSTILE, width=200, height=60)]
    lines += block(foreign, HOSTILE)
    assert len(lines) > 12
    assert [line for line in lines if not line.isprintable()] == []


def test_block_is_the_same_while_only_progress_and_events_change():
    later = Overview(status=FULL.status, graph=FULL.graph, jobs=(job(70, target="/d/base.qcow2"),))
    assert block(later, "vm1") == block(FULL, "vm1") == [
        "running  vm1",
        "vda: [base] <- [s1] <- [active*]",
        "cd0: (empty)",
        "vdb: [data*] (read-only)",
        "job qmpsnap-commit-pivot-0a1b2c3d: commit of vda: running, into /d/base.qcow2",
    ]  # fmt: skip


def test_block_that_is_printed_once_has_the_progress_of_each_job():
    assert block(FULL, "vm1", progress=True)[-1] == (
        "job qmpsnap-commit-pivot-0a1b2c3d: commit of vda: running, "
        "50% of 100 MiB, 10 MiB/s, 5 s left, into /d/base.qcow2"
    )
