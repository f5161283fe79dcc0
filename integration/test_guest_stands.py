"""status, cont, stop and any command of the monitor, against every run state that a test can bring about."""

from __future__ import annotations

import json
import re

import pytest

from integration.cli import Cli
from integration.machines import blockdev, wait_for
from qmpsnap.errors import CommandFailed, Unsupported
from tests.test_typed import texts


def state(running):
    return running.qmp("query-status")["status"]


@pytest.fixture
def vda(images, machine):
    with machine(*blockdev("vda", images("base").active), "-action", "shutdown=pause") as made:
        yield made


def _fails_a_load(running):
    running.qmp("cont")
    assert "nope" in running.qmp("human-monitor-command", {"command-line": "loadvm nope"})


def _saves_its_state(running):
    running.qmp("cont")
    running.qmp("migrate", uri=f"exec:cat > {running.folder}/state")
    wait_for(lambda: state(running) == "postmigrate", "the migration")  # it is completed a moment before


def _shuts_down(running):
    running.qmp("cont")
    running.qmp("set-action", reboot="shutdown")  # and that is a pause here
    running.qmp("system_reset")
    wait_for(lambda: state(running) == "shutdown", "the shutdown")
    running.qmp("set-action", reboot="reset")


# How it is brought about, the run state, words of the refusal, and what lets it run then.
STANDS = {
    "load failed": (_fails_a_load, "restore-vm", "a load of VM state has failed", ("qmp", "system_reset")),
    "state saved": (_saves_its_state, "postmigrate", "saved or migrated away", ("cont", "--after-migration")),
    "shut down": (_shuts_down, "shutdown", "only after a reset", ("qmp", "system_reset")),
}


@pytest.mark.parametrize("case", STANDS)
def test_cont_is_refused_and_what_the_refusal_names_lets_the_guest_run(vda, case):
    bring, reached, words, way = STANDS[case]
    bring(vda)
    assert state(vda) == reached
    cli = Cli(vda)
    ended = cli("cont")
    assert (ended.code, state(vda)) == (3, reached)
    assert words in ended.err
    assert " ".join(("qmpsnap", *way)) in ended.err
    told = cli("status")
    assert told.code == 0
    assert told.out.splitlines()[0] == reached
    assert " ".join(("qmpsnap", *way)) in " ".join(told.out.split())
    assert cli(*way).code == 0
    if way[0] == "qmp":
        wait_for(lambda: state(vda) == "prelaunch", "the reset")
        assert cli("cont").out == "the guest is running\n"
    assert state(vda) == "running"


async def test_cont_is_refused_before_vm_state_has_come_in(images, machine):
    with machine(*blockdev("vda", images("base").active), "-incoming", "defer") as running:
        async with running.connect() as vm:
            with pytest.raises(Unsupported, match="waits for VM state"):
                await vm.cont()
            assert (await vm.status()).state == "inmigrate"


def test_cont_and_stop_send_what_n_printed_and_say_how_the_guest_stands(vda):
    cli = Cli(vda)
    assert cli("status").out.endswith("  next: qmpsnap cont starts it\n")
    assert cli("cont", "-n").out == '  1. -> {"execute": "cont", "arguments": {}}\nnothing was sent (-n)\n'
    assert state(vda) == "prelaunch"
    assert cli("cont").out == "the guest is running\n"
    assert cli("--json", "status").json == {
        "version": 1, "status": "running", "running": True, "migration": "none", "pause": None,
    }  # fmt: skip
    assert cli("--json", "stop", "-n").json["plan"]["steps"] == [
        {"command": "stop", "arguments": {}, "on": "qmp"}
    ]
    assert state(vda) == "running"
    stopped = cli("--json", "stop").json
    assert (stopped["op"], stopped["status"], stopped["changed"]) == ("stop", "paused", False)
    assert state(vda) == "paused"


async def test_execute_returns_what_qemu_returns_and_raises_its_error(vda):
    async with vda.connect() as vm:
        assert (await vm.execute("query-status"))["status"] == "prelaunch"
        assert await vm.execute("object-add", {"qom-type": "throttle-group", "id": "tg"}) == {}
        assert "vda" in await vm.execute("human-monitor-command", {"command-line": "info block"})
        with pytest.raises(CommandFailed, match="nope") as failed:
            await vm.execute("object-del", {"id": "nope"})
        assert (failed.value.qmp_class, failed.value.arguments) == ("GenericError", {"id": "nope"})


def test_qemu_knows_the_commands_that_our_texts_tell_to_send(vda):
    known = {one["name"] for one in vda.qmp("query-commands")}
    pattern = r"qmpsnap (?:-s \S+ |--json )*qmp ([a-z][\w-]+)"
    named = {word for text in texts() for word in re.findall(pattern, text.text)}
    assert len(named) > 5
    assert named - known == set()


def test_qmp_prints_the_answer_and_exits_with_4_when_qemu_says_no(vda):
    cli = Cli(vda)
    asked = cli("qmp", "query-status")
    assert (asked.code, json.loads(asked.out)["status"]) == (0, "prelaunch")
    assert cli("--json", "qmp", "query-status").json["return"]["status"] == "prelaunch"
    human = cli("qmp", "human-monitor-command", '{"command-line": "info status"}')
    assert (human.code, human.out.split()[:2]) == (0, ["VM", "status:"])
    refused = cli("qmp", "blockdev-del", '{"node-name": "nope"}')
    assert (refused.code, refused.out) == (4, "")
    assert "nope" in refused.err
    assert "nothing was changed" in refused.err
    assert cli("qmp", "no-such-command").code == 4
    assert cli("qmp", "blockdev-del", "[]").code == 2
    assert cli("qmp", "blockdev-del", "{").code == 2
    dry = cli("qmp", "system_reset", "-n")
    assert dry.out == '  1. -> {"execute": "system_reset", "arguments": {}}\nnothing was sent (-n)\n'
