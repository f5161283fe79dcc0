from __future__ import annotations

from collections.abc import Callable

import anyio.lowlevel
import pytest

from qmpsnap.errors import GuestFailed
from qmpsnap.run.session import Event
from qmpsnap.testing import witness
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.witness import Witness
from qmpsnap.vm import VM

CONSOLE = "\x1b[1;32mDebian\x1b[0m\r\n\r\nvm login: \x07"


async def test_explain_says_that_the_machine_is_paused_and_what_it_printed():
    target = FakeTarget(graph(vda="base*"))
    vm = VM(target)
    assert str(await Witness(vm, lambda: CONSOLE).explain("no answer", "")) == (
        "no answer; the console's last lines:\nDebian\nvm login:"
    )
    target.guest._set("paused", running=False)
    error = await Witness(vm, lambda: "").explain("no answer", "true")
    assert str(error) == "no answer: the machine does not run, its state is 'paused'"
    assert (error.script, error.hint) == ("true", "qmpsnap cont resumes a paused machine")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Event("GUEST_PANICKED", {"action": "pause"}, 0.0), "the guest has panicked during 'true'"),
        (Event("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, 0.0), "the guest has shut down"),
        (Event("RESET", {"guest": True, "reason": "guest-reset"}, 0.0), "the guest was reset during 'true'"),
        (Event("VSERPORT_CHANGE", {"id": "ga", "open": False}, 0.0), "the guest has closed its port"),
    ],
)
async def test_watch_ends_the_wait_when_the_guest_ends(event, reason):
    target = FakeTarget(graph(vda="base*"))
    sinks: list[Callable[[Event], None]] = []
    target.events = lambda sink: _Listening(sinks, sink)  # type: ignore[method-assign]
    witness = Witness(VM(target), lambda: CONSOLE, port_id="ga")

    async def wait() -> None:
        with witness.watch("true"):
            for each in (
                Event("VSERPORT_CHANGE", {"id": "other", "open": False}, 0.0),
                Event("VSERPORT_CHANGE", {"id": "ga", "open": True}, 0.0),
                Event("STOP", {}, 0.0),
            ):
                sinks[0](each)
                await anyio.lowlevel.checkpoint()
            sinks[0](event)
            await anyio.sleep_forever()

    with pytest.raises(GuestFailed, match=reason) as failed:
        await wait()
    assert (failed.value.script, failed.value.output) == ("true", "Debian\nvm login:")
    assert sinks == []


def listening() -> tuple[VM, list[Callable[[Event], None]]]:
    target = FakeTarget(graph(vda="base*"))
    sinks: list[Callable[[Event], None]] = []
    target.events = lambda sink: _Listening(sinks, sink)  # type: ignore[method-assign]
    return VM(target), sinks


async def test_watch_of_a_boot_goes_on_after_a_reset_but_not_after_a_panic():
    vm, sinks = listening()

    async def wait() -> None:
        with Witness(vm).watch(doing="the boot", boots=True):
            sinks[0](Event("RESET", {"guest": True}, 0.0))
            await anyio.lowlevel.checkpoint()
            sinks[0](Event("GUEST_PANICKED", {}, 0.0))
            await anyio.sleep_forever()

    with pytest.raises(GuestFailed, match="the guest has panicked during the boot"):
        await wait()


@pytest.mark.parametrize("event", ["RESET", "SHUTDOWN"])
async def test_watch_says_that_a_guest_has_panicked_which_is_reset_for_it_before_that_is_looked_for(event):
    vm, sinks = listening()
    printed = ["Kernel panic - not syncing: an earlier one\n"]

    async def wait(*more: str) -> None:
        with Witness(vm, lambda: "".join(printed)).watch("true"):
            printed.extend(more)
            sinks[0](Event(event, {"guest": True}, 0.0))
            await anyio.sleep_forever()

    with pytest.raises(GuestFailed, match="the guest has panicked during 'true'"):
        await wait("init runs\nKernel panic - not syncing: test\nRebooting in 1 seconds..\n")
    with pytest.raises(GuestFailed, match=r"the guest (was reset|has shut down) during 'true'"):
        await wait("init runs\n")


async def test_watch_ends_without_an_error_by_the_event_that_is_wanted():
    vm, sinks = listening()
    with Witness(vm).watch("poweroff", wanted="SHUTDOWN"):
        sinks[0](Event("SHUTDOWN", {"guest": True}, 0.0))
        raise GuestFailed("the guest's port was closed", script="poweroff")


async def test_watch_says_how_the_guest_ended_rather_than_that_its_port_was_closed():
    vm, sinks = listening()

    async def wait(status: int | None) -> None:
        with Witness(vm).watch("true"):
            sinks[0](Event("GUEST_PANICKED", {}, 0.0))
            raise GuestFailed("it is closed", script="true", status=status)

    with pytest.raises(GuestFailed, match="the guest has panicked during 'true'"):
        await wait(None)
    with pytest.raises(GuestFailed, match="it is closed"):
        await wait(1)


@pytest.mark.parametrize(
    "rest", ["---[ end Kernel panic - not syncing: test ]---", "Rebooting in 1 seconds.."]
)
async def test_watch_ends_the_wait_when_the_console_shows_a_panic(rest, monkeypatch):
    monkeypatch.setattr(witness, "_LOOK_S", 0.01)
    monkeypatch.setattr(witness, "_REST_S", 0.05)
    old = "Kernel panic - not syncing: an earlier one\n"
    printed = [old]

    async def wait() -> None:
        with Witness(None, lambda: "".join(printed)).watch("true"):
            printed.append(f"init runs\nKernel panic - not syncing: test\n{rest}")
            await anyio.sleep_forever()

    with pytest.raises(GuestFailed, match="the guest has panicked during 'true'") as failed:
        await wait()
    assert failed.value.output == f"{old}init runs\nKernel panic - not syncing: test\n{rest}"


class _Listening:
    def __init__(self, sinks: list[Callable[[Event], None]], sink) -> None:
        self.sinks, self.sink = sinks, sink

    def __enter__(self) -> None:
        self.sinks.append(self.sink)

    def __exit__(self, *error: object) -> None:
        self.sinks.remove(self.sink)
