"""The command is ended in the middle of a job on VM state: it says how the guest runs on, and so it does."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from integration.cli import Cli, Terminal, records
from integration.machines import blockdev, wait_for
from integration.states import status
from integration.test_cli import files_in

pytestmark = pytest.mark.one_qemu

LARGE = ("-m", "1G")  # so that the job takes long enough to be caught at it

CASES = {
    "checkpoint-in-place": ("checkpoint", "c2", "--mode", "in-place"),
    "checkpoint-by-jobs": ("checkpoint", "c2", "--mode", "internal", "--via", "jobs"),
    "revert-in-place": ("revert", "c1"),
    "revert-by-jobs": ("revert", "c0", "--via", "jobs"),
}


@pytest.fixture(params=CASES)
def case(request, images, machine):
    """A guest that runs, and a command on VM state."""
    with machine(*blockdev("vda", images("base").active), extra=LARGE) as running:
        running.qmp("cont")
        cli = Cli(running)
        words = CASES[request.param]
        if words[0] == "revert":
            mode = ("--mode", "internal") if words[1] == "c0" else ("--mode", "in-place")
            assert cli("checkpoint", words[1], *mode).code == 0
        # The test has to stop QEMU within the job, a tenth of a second: on a busy host it comes first.
        os.setpriority(os.PRIO_PROCESS, running.pid, 10)
        running.qmp("query-status")  # reads the events until now
        running.qmp.events.clear()
        yield running, cli, words


def freeze_at_the_job(running):
    """Stop QEMU as it works on the VM state; return the job's id."""
    event = running.qmp.wait_event("JOB_STATUS_CHANGE", status="running")
    running.process.send_signal(signal.SIGSTOP)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, running.pid, 0)
    return event["data"]["id"]


def check_job_wait_ends_it(running, cli, words, job, before):
    """Demand that the guest runs afterwards, and that nothing else is left."""
    running.process.send_signal(signal.SIGCONT)
    running.qmp("query-status")  # in the job QEMU answers nobody, it may be for longer than a client waits
    if "--via" not in words:  # our `stop` was sent, and nobody sends `cont`
        wait_for(lambda: running.qmp("query-jobs")[0]["status"] == "concluded", "the job's end")
        # Under TCG a guest is stopped for a revert as by a load.
        assert status(running) == ("restore-vm" if words[0] == "revert" else "paused")
    ended = cli("job", "wait", job)
    assert ended.code == 0, ended.err
    assert status(running) == "running"
    assert (records(running), cli("jobs").out, running.qmp("query-jobs")) == ([], "no jobs\n", [])
    if words[:1] == ("checkpoint",) and "in-place" in words:  # no overlay was put on yet
        assert (files_in(running), running.roots()) == before
        assert cli("list").out == "no snapshots or checkpoints\n"
    assert cli("checkpoint", "later", "--mode", "in-place").code == 0


def test_a_second_interrupt_in_the_midst_of_a_job_on_vm_state_says_how_the_guest_runs_on(case):
    running, cli, words = case
    before = files_in(running), running.roots()
    process = cli.start(*words)
    job = freeze_at_the_job(running)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        "stopping: what was begun is rolled back, or else finished; interrupt again to leave it\n"
    )
    process.send_signal(signal.SIGINT)
    ended = cli.end(process)
    assert (ended.code, ended.out) == (130, f"{job}\n")
    assert f"stopped in the middle of {job}" in ended.err
    assert f"qmpsnap job wait {job} finishes it" in ended.err
    stops = words != CASES["checkpoint-by-jobs"]  # there QEMU alone stops the guest, and lets it run on
    assert ("the guest may stay paused" in ended.err) is stops
    assert ("resumes the guest" in ended.err) is stops
    check_job_wait_ends_it(running, cli, words, job, before)


def test_a_terminal_offers_no_detaching_from_a_job_on_vm_state(case):
    running, cli, words = case
    before = files_in(running), running.roots()
    with Terminal(cli, *words) as terminal:
        job = freeze_at_the_job(running)
        terminal.type("\x03")
        terminal.wait_for(f"job {job} keeps running meanwhile\r\n[c]ancel, c[o]ntinue? ")
        terminal.type("d\n")
        terminal.wait_for("[c]ancel, c[o]ntinue? ")
        terminal.type("\x03")
        terminal.wait_for(f"qmpsnap job wait {job} finishes it")
        ended = terminal.end()
    assert (ended.code, ended.out) == (130, f"{job}\n")
    check_job_wait_ends_it(running, cli, words, job, before)
