"""Why a guest is not running."""

from __future__ import annotations

from qmpsnap.model.machine import Status
from qmpsnap.model.meaning.states import RUN_STATES
from qmpsnap.model.pause import Pause
from qmpsnap.plan.vmstate.pause import pause_of
from qmpsnap.testing.drawing import graph
from tests.each import each

STATES = sorted(set(RUN_STATES) - {"running"})


def of(state, migration="none", records=(), failed=None, drawn=None):
    return pause_of(Status(state, running=False, migration=migration), records, failed or {}, drawn)


@each("state", STATES)
def test_each_run_state_has_a_cause_and_what_helps(state):
    pause = of(state)
    assert pause.state == state
    assert pause.cause == RUN_STATES[state].text
    assert pause.advice
    assert "`" not in pause.advice
    assert not pause.advice.endswith(".")


@each(
    ("state", "advice"),
    [
        ("paused", "qmpsnap jobs"),
        ("prelaunch", "qmpsnap cont starts it"),
        ("postmigrate", "qmpsnap cont --after-migration"),
        ("inmigrate", "qmpsnap restore FILE"),
        ("shutdown", "system_reset"),
        ("internal-error", "system_reset"),
        ("suspended", "system_wakeup"),
    ],
)
def test_what_helps_is_what_cont_would_say_or_the_commands_that_do(state, advice):
    assert advice in of(state).advice


def test_unknown_run_state_is_told_as_it_is():
    assert of("new-in-12") == Pause("new-in-12", "QEMU's run state is new-in-12.")


def test_io_error_names_the_disks_and_their_files():
    drawn = graph(vda="base <- top*", vdb="b*")
    top = drawn.disks["vda"].active.file
    found = of("io-error", failed={"vda": "nospace", "vdb": "failed", "gone": "failed"}, drawn=drawn)
    assert found.cause == (
        f"There was no space for a write to vda ({top}); a read or write of vdb "
        f"({drawn.disks['vdb'].active.file}) failed; a read or write of gone failed."
    )
    assert found.advice.startswith("make room there; then qmpsnap cont")
    assert of("io-error", failed={"vda": "failed"}).advice.startswith("remove the cause; then qmpsnap cont")
    assert of("io-error").cause == RUN_STATES["io-error"].text


def test_running_migration_is_the_cause():
    found = of("paused", migration="active")
    assert found.cause == "A migration is running (active)."
    assert "migrate_cancel" in found.advice
