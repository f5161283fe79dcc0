from __future__ import annotations

import base64
import os

import anyio
import pytest

from qmpsnap.errors import CommandFailed, GuestFailed
from qmpsnap.testing.agent import AgentShell
from qmpsnap.testing.shell import Ran
from tests.run.test_process import gone_within
from tests.testing.shells import sleeping_in_a_session


class Agent:
    """Answers each command with the next of its answers."""

    def __init__(self, **answers: list[object]) -> None:
        self.answers = {name.replace("_", "-"): list(given) for name, given in answers.items()}
        self.sent: list[tuple[str, object]] = []

    async def execute(self, command, arguments=None, *, limit=30.0):
        self.sent.append((command, arguments))
        answer = self.answers[command].pop(0)
        if isinstance(answer, str):
            raise CommandFailed(answer, command=command, arguments={}, qmp_class="GenericError", desc=answer)
        return answer


def shell(agent: Agent) -> AgentShell:
    return AgentShell(agent)  # type: ignore[arg-type]


def ended(**fields: object) -> dict[str, object]:
    return {"exited": True, **fields}


@pytest.mark.parametrize(
    ("answer", "ran"),
    [
        (ended(exitcode=3), Ran(3, b"")),
        (ended(exitcode=0, **{"out-data": "AP8="}), Ran(0, b"\0\xff")),
        (ended(signal=9), Ran(137, b"")),
        (ended(exitcode=0, **{"out-data": base64.b64encode(b"12345").decode()}), Ran(0, b"1234", cut=True)),
    ],
)
async def test_execute_waits_for_the_end(answer, ran):
    agent = Agent(guest_exec=[{"pid": 7}], guest_exec_status=[{"exited": False}, answer])
    assert await shell(agent).execute("true", most=4) == ran
    assert agent.sent[1:] == [("guest-exec-status", {"pid": 7})] * 2


async def test_execute_bounds_time_and_output_in_the_guest():
    agent = Agent(guest_exec=[{"pid": 7}], guest_exec_status=[ended(exitcode=0)])
    await shell(agent).execute("echo $1", limit=1.2, most=10)
    _, arguments = agent.sent[0]
    assert isinstance(arguments, dict)
    assert (arguments["path"], arguments["arg"][2:]) == ("/bin/sh", ["sh", "2", "11", "echo $1"])


async def test_script_reads_what_the_agent_is_given_for_it():
    agent = Agent(guest_exec=[{"pid": 7}], guest_exec_status=[ended(exitcode=0)])
    await shell(agent).execute("cat", stdin=b"\0\xff")
    _, arguments = agent.sent[0]
    assert isinstance(arguments, dict)
    done = await anyio.run_process(
        [arguments["path"], *arguments["arg"]], input=base64.b64decode(arguments["input-data"])
    )
    assert done.stdout == b"\0\xff"


async def test_script_that_is_killed_takes_all_that_it_has_started_with_it(tmp_path):
    agent = Agent(guest_exec=[{"pid": 7}], guest_exec_status=[ended(exitcode=137)])
    script = f"echo begun\n{sleeping_in_a_session(tmp_path / 'pid')}"
    await shell(agent).execute(script, limit=1)
    _, arguments = agent.sent[0]
    assert isinstance(arguments, dict)
    (tmp_path / "tmp").mkdir()
    done = await anyio.run_process(
        [arguments["path"], *arguments["arg"]],
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    assert (done.returncode, done.stdout.startswith(b"begun\n")) == (137, True)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert gone_within(30, int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("started", "status", "reason"),
    [
        ("guest-exec has been disabled", {}, "has been disabled"),
        ([], {}, "returns no object"),
        ({}, {}, "has no pid"),
        ({"pid": 7}, ended(), "has no exitcode"),
        ({"pid": 7}, ended(exitcode=0, **{"out-data": "?"}), "not base64"),
    ],
)
async def test_execute_takes_no_other_answer(started, status, reason):
    with pytest.raises(GuestFailed, match=reason):
        await shell(Agent(guest_exec=[started], guest_exec_status=[status])).execute("true")


async def test_set_clock_works_without_hwclock_in_the_guest():
    agent = Agent(
        guest_set_time=["not supported"], guest_exec=[{"pid": 7}], guest_exec_status=[ended(exitcode=0)]
    )
    await shell(agent).set_clock()
    assert [command for command, _ in agent.sent] == ["guest-set-time", "guest-exec", "guest-exec-status"]
