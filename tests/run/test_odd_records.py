"""A record that was changed by hand is refused when it is read, or ends in an error of ours."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import QmpsnapError
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.intent import Checkpoint, Commit, Delete, Revert, Save, Snapshot
from tests.run.operations import INTENTS, machine, vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from qmpsnap.model.record import Record
    from qmpsnap.plan.intent import Intent
    from qmpsnap.testing.fake import FakeTarget

SECOND = MomentRecord(
    id="1",
    name="second",
    created="2024-05-01T12:00:00+00:00",
    overlays={"vda": "/images/s1.qcow2"},
    covered={"vda": "/images/base.qcow2"},
)
WORDS = (
    "", "/d/x", "vda", "vdz", "json:{}", "rename", "keep", "2024-05-01T12:00:00", "0001-01-01T00:00:00+00:00",
    "stream", "commit", "mirror", "snapshot", "checkpoint", "revert", "save", "checkpoint-internal",
    "revert-internal", "stop", "in-place", "qmpsnap-00000001",
)  # fmt: skip


async def _intent(fake: FakeTarget, intent: Intent) -> list[Record]:
    """The record that the operation writes before it changes anything."""
    steps = (await vm_of(fake).plan(intent)).steps
    written: list[Record] = [record for step in steps if (record := record_of(step)) is not None]
    return written[:1]


async def records() -> list[tuple[Callable[[], FakeTarget], Record]]:
    """One record of each kind, with the machine that it is of."""
    found: list[tuple[Callable[[], FakeTarget], Record]] = []
    for case, intent in INTENTS.items():
        found += [(partial(machine, case), one) for one in await _intent(machine(case), intent)]
    made: list[Record] = await _intent(fake_of(), Save("/d/x"))
    for mode in ("stop", "background", "in-place"):
        made += await _intent(fake_of(), Checkpoint("c1", mode))
        fake = fake_of()
        await vm_of(fake).checkpoint("c1", mode=mode)
        made += fake.files.records
    return found + [(fake_of, one) for one in [*made, *await _intent(fake, Revert("c1"))]]


def changed(value: Any, dice: random.Random) -> Any:
    """The value with something in it taken away, put in another place, or replaced."""
    match value:
        case dict() if value:
            key, other = dice.choice(list(value)), dice.choice(["vda", "vdb", "vdz", ""])
            rest = {name: inner for name, inner in value.items() if name != key}
            return dice.choice(
                [{}, rest, {**value, other: value[key]}, {**rest, other: value[key]}]
                + 3 * [{**value, key: changed(value[key], dice)}]
            )
        case list() if value:
            place = dice.randrange(len(value))
            before, after = value[:place], value[place + 1 :]
            return dice.choice(
                [[], before + after, [*value, value[place]], value[::-1]]
                + 2 * [[*before, changed(value[place], dice), *after]]
            )
        case bool():
            return not value
        case int():
            return dice.choice([0, 1, 2**70])
        case str():
            return dice.choice(WORDS)
        case None:
            return {"running": True, "capabilities": {}, "parameters": {}, "process": ""}
        case _:
            return value


async def _uses(fake: FakeTarget, record: Record) -> list[Coroutine[Any, Any, object]]:
    """Every call that reads the record."""
    vm = vm_of(fake)
    uses = [vm.moments(), vm.jobs.interrupted(), vm.plan(Commit("vda")), vm.plan(Snapshot("new"))]
    if record.name:
        uses += [vm.plan(Delete(record.name)), vm.plan(Revert(record.name))]
    if isinstance(record, IntentRecord):
        uses += [vm.jobs.plan(record.id), vm.jobs.wait(record.id), vm.jobs.cancel(record.id)]
    return uses


@pytest.mark.parametrize("seed", range(4))
async def test_a_record_that_was_changed_is_refused_or_ends_in_an_error_of_ours(seed: int) -> None:
    dice, accepted = random.Random(seed), 0
    for make, record in 5 * await records():
        body = json.loads(to_json(record))
        for key in dice.sample(sorted(body.keys() - {"version", "kind"}), dice.choice([1, 1, 2])):
            body[key] = changed(body[key], dice)
        try:
            read = from_json(json.dumps(body), directory="/images/base.qmpsnap")
        except ValueError:
            continue
        accepted += 1
        fake = make()
        fake.files.records += [read, SECOND]
        for use in await _uses(fake, read):
            with suppress(QmpsnapError):
                await use
    assert accepted > 40
