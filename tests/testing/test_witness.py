from __future__ import annotations

from collections.abc import Callable

import anyio.lowlevel
import pytest

from qmpsnap.errors import GuestFailed
from qmpsnap.run.session import Event
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.witness import Witness, last_lines
from qmpsnap.vm import VM

CONSOLE = "\x1b[1;32mDebian\x1b[0m\r\n\r\nvm login: \x07"


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (CONSOLE, "Debian\nvm login:"),
        ("\x1b]0;title\x07a\x1b(Bb\x1b[?2004hc\rd", "abc\nd"),
        ("".join(f"{line}\n" for line in range(20)), "\n".join(map(str, range(5, 20)))),
        ("", ""),
    ],
)
def test_last_lines_are_text(printed, lines):
    assert last_lines(printed) == lines


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


class _Listening:
    def __init__(self, sinks: list[Callable[[Event], None]], sink) -> None:
        self.sinks, self.sink = sinks, sink

    def __enter__(self) -> None:
        self.sinks.append(self.sink)

    def __exit__(self, *error: object) -> None:
        self.sinks.remove(self.sink)
