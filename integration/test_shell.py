"""`shell` on a terminal: completion, history, help, answers, and its ends; on every QEMU."""

from __future__ import annotations

import pytest

from integration.cli import Cli
from integration.machines import blockdev
from integration.prompt import PROMPT, Prompt


@pytest.fixture
def vda(images, machine):
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        yield running, Cli(running)


def test_shell_completes_refuses_and_remembers(vda):
    running, cli = vda
    refused = "may change something, and --dry was given next: without --dry this is sent: "
    with Prompt(cli, "--dry") as shell:
        assert "only commands that are known to change nothing are sent" in shell.text
        # Commands, arguments, enum values, nodes, drives and devices, as this QEMU has them.
        shell.offers("query-stat", "query-stats", "query-status")
        shell.complete("query-kv", "query-kvm")
        shell.enter("", '"enabled": false')
        shell.complete("block-stream on-e", "block-stream on-error=")
        shell.offers("", "report", "ignore", "enospc", "stop")
        shell.complete("block-stream on-error=ig", "block-stream on-error=ignore")
        shell.complete(" device=vda-n", "block-stream on-error=ignore device=vda-node")
        sent = '{"execute": "block-stream", "arguments": {"on-error": "ignore", "device": "vda-node"}}'
        shell.enter("", f"block-stream {refused}{sent}")
        shell.complete("eject id=v", "eject id=vda")
        shell.drop()
        shell.enter("frobnicate x=1", "this QEMU has no command 'frobnicate'")
        shell.enter("quit", "quit ends QEMU, and not this shell")
        shell.enter("help block-stream", "block-stream: may change something", "device: string", "(optional)")
        shell.enter("query-status", '"status": "prelaunch"')
        # An event is shown as `events` shows it, above the line that is being typed.
        running.qmp("block-stream", {"job-id": "theirs", "device": "vda-node", "speed": 1})
        shell.sees("JOB_STATUS_CHANGE status=running id=theirs")
        shell.complete("job-cancel id=th", "job-cancel id=theirs")
        shell.enter("", refused)
        shell.type("\x04")
        assert (shell.ended()[0], shell.settings) == (0, shell.before)
    assert [job["id"] for job in running.qmp("query-jobs")] == ["theirs"]
    with Prompt(cli) as shell:
        shell.enter("\x1b[A", '"status": "prelaunch"')  # the last line that was sent
        shell.enter("job-cancel id=theirs", "BLOCK_JOB_CANCELLED", "status=null id=theirs")
        shell.type("not sent")
        shell.drop()
        shell.enter('{"execute": "cont"}', "{}", "RESUME")
        shell.type("exit\r")
        assert shell.ended()[0] == 0
    assert (running.qmp("query-status")["status"], running.qmp("query-jobs")) == ("running", [])


def test_shell_ends_when_qemu_ends_while_it_waits(vda):
    running, cli = vda
    with Prompt(cli) as shell:
        shell.type("half a li")
        running.kill()
        code, text = shell.ended()
        assert (code, shell.settings) == (5, shell.before)
    assert "the connection to QEMU is lost" in text
    assert PROMPT in text
