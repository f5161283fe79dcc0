"""Migrations against a scripted QEMU: what is sent, what is waited for, and how each can end."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from qmpsnap.errors import CommandFailed, InvalidTarget, LinkLost, MigrationFailed
from qmpsnap.plan.commands.migration import (
    Ending,
    await_closed,
    await_migration,
    migrate,
    migrate_cancel,
    migrate_incoming,
    pass_file,
    release_file,
    set_capabilities,
    set_parameters,
)
from qmpsnap.run import migration
from qmpsnap.run import session as sessions
from qmpsnap.run.memory_files import open_memory
from qmpsnap.run.migration import Migrations
from qmpsnap.testing.server import Emit, Fail, Hangup, Return
from tests.run.test_lock_holders import opening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from qmpsnap.model.step import Step
    from qmpsnap.testing.server import Action, QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

SAVE = migrate("fd:qmpsnap-7")
NEVER, SOON = 3600.0, 30.0  # seconds: what is waited out is too late, however busy the machine
ACTIVE: dict[str, object] = {
    "status": "active",
    "ram": {"transferred": 4096, "total": 8192, "remaining": 2048, "normal": 1},
}


@asynccontextmanager
async def migrations(server: QmpServer) -> AsyncIterator[Migrations]:
    server.answer("migrate", Return())
    async with sessions.connect(server.path) as session:
        made = Migrations(session)
        with session.subscribe(made.note):
            yield made


def looks(server: QmpServer, *answers: object) -> None:
    """What query-migrate says, one after the other; the last for good."""
    *first, last = [one if isinstance(one, tuple) else (Return(one),) for one in answers]
    for one in first:
        server.answer_once("query-migrate", *one)
    server.answer("query-migrate", *last)


def says(server: QmpServer, *states: str) -> None:
    """What query-status says, one after the other; the last for good."""
    for state in states[:-1]:
        server.answer_once("query-status", Return({"status": state, "running": state == "running"}))
    server.answer("query-status", Return({"status": states[-1], "running": states[-1] == "running"}))


async def perform(moving: Migrations, step: Step) -> None:
    """Do one step, as the performer of a running QEMU has it done."""
    match step.way:
        case "set":
            await moving.set(step)
        case "migrate" | "migrate-incoming":
            await moving.begin(step)
        case "pass-file":
            await moving.pass_file(step)
        case "release-file":
            await moving.release_file(step)
        case "migrate_cancel":
            await moving.cancel(step)
        case "await-migration":
            await moving.wait(step)
        case _:
            await moving.await_closed(step)


def status(word: str) -> dict[str, object]:
    return {"status": word}


@pytest.mark.parametrize(
    "step",
    [
        set_capabilities({"events": True}, {"events": False}),
        set_parameters({"max-bandwidth": 9}, {"max-bandwidth": 1}),
        SAVE,
        migrate_incoming("fd:qmpsnap-7"),
        release_file(7, "fd"),
        release_file(7, "fdset"),
    ],
    ids=lambda step: step.command,
)
async def test_migration_sends_a_step_word_for_word(server: QmpServer, step: Step) -> None:
    server.answer(step.command, Return())
    async with migrations(server) as moving:
        server.answer(step.command, Return())
        await perform(moving, step)
    assert (server.received[-1]["execute"], server.received[-1]["arguments"]) == (
        step.command,
        step.arguments,
    )


async def test_migration_sends_nothing_where_nothing_is_to_be_set(server: QmpServer) -> None:
    async with migrations(server) as moving:
        await perform(moving, set_capabilities({}, {}))
        await perform(moving, set_parameters({}, {}))
    assert server.commands == []


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fd", "fdset"])
async def test_pass_file_leaves_the_file_to_qemu_alone(server: QmpServer, tmp_path: Path, way: str) -> None:
    file = tmp_path / "m"
    file.touch(0o600)
    step = pass_file(str(file), 7, way, write=True)  # type: ignore[arg-type]
    server.answer(step.command, Return())
    async with migrations(server) as moving:
        await perform(moving, step)
    assert server.received[-1]["arguments"] == step.arguments


async def test_pass_file_closes_our_end_when_qemu_refuses(server: QmpServer, tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.touch(0o600)
    server.answer("getfd", Fail("No file descriptor supplied via SCM_RIGHTS"))
    async with migrations(server) as moving:
        with pytest.raises(CommandFailed):
            await perform(moving, pass_file(str(file), 7, "fd", write=True))


async def test_pass_file_is_refused_when_it_cannot_be_opened(server: QmpServer, tmp_path: Path) -> None:
    async with migrations(server) as moving:
        with pytest.raises(InvalidTarget, match="no such file"):
            await perform(moving, pass_file(str(tmp_path / "none"), 7, "fd", write=False))
    assert server.commands == []


@pytest.mark.parametrize("desc", ["File descriptor named 'qmpsnap-7' not found", "fdset 7 does not exist"])
async def test_release_file_is_content_when_qemu_has_closed_it(server: QmpServer, desc: str) -> None:
    server.answer("closefd", Fail(desc))
    async with migrations(server) as moving:
        await perform(moving, release_file(7, "fd"))


async def test_release_file_says_any_other_refusal(server: QmpServer) -> None:
    server.answer("remove-fd", Fail("in use"))
    async with migrations(server) as moving:
        with pytest.raises(CommandFailed, match="in use"):
            await perform(moving, release_file(7, "fdset"))


async def test_await_closed_returns_once_the_last_descriptor_is_closed(
    server: QmpServer, tmp_path: Path
) -> None:
    file = tmp_path / "m"
    file.touch(0o600)
    qemus = open_memory(str(file), write=True)
    async with migrations(server) as moving:
        waiting = asyncio.create_task(perform(moving, await_closed(str(file))))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        os.close(qemus)
        await waiting


async def test_await_closed_names_the_process_that_keeps_the_file_open(
    server: QmpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_MOMENT", 0.0)
    file = tmp_path / "m"
    file.touch(0o600)
    with opening(str(file)) as pid:
        async with migrations(server) as moving:
            with pytest.raises(MigrationFailed, match=rf"process {pid} \(.*\) has {file} open and locked"):
                await perform(moving, await_closed(str(file)))


# -- waits -----------------------------------------------------------------------------------------


async def test_settled_waits_for_the_migration_of_somebody_else(server: QmpServer) -> None:
    first, second = (
        (Return(status(word)), Emit("MIGRATION", status(word))) for word in ("active", "cancelling")
    )
    looks(server, first, second, {})
    async with migrations(server) as moving:
        await perform(moving, await_migration("settled"))
    assert server.commands.count("query-migrate") == 3


async def test_settled_needs_no_time_when_there_was_none(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_SETTLE", NEVER)
    looks(server, {})
    async with migrations(server) as moving:
        with anyio.fail_after(SOON):
            await perform(moving, await_migration("settled"))


async def test_settled_gives_the_thread_of_the_last_one_its_time(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_SETTLE", 0.05)
    looks(server, status("completed"))
    async with migrations(server) as moving:
        started = time.monotonic()
        await perform(moving, await_migration("settled"))
        assert time.monotonic() - started >= 0.04


async def test_settled_needs_no_time_when_its_file_is_known_to_be_closed(
    server: QmpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_SETTLE", NEVER)
    (tmp_path / "m").touch(0o600)
    looks(server, status("completed"))
    async with migrations(server) as moving:
        await perform(moving, await_closed(str(tmp_path / "m")))
        with anyio.fail_after(SOON):
            await perform(moving, await_migration("settled"))


ZERO_PAGES = {"status": "active", "ram": {"transferred": 9, "duplicate": 1}}


@pytest.mark.parametrize("last", [ACTIVE, ZERO_PAGES, status("completed")], ids=["pages", "zeros", "all"])
async def test_writing_waits_for_pages_of_memory(server: QmpServer, last: object) -> None:
    """A list of many blocks of memory is written before the devices' state; it counts as transferred."""
    looks(server, status("setup"), {"status": "active", "ram": {"transferred": 4000, "normal": 0}}, last)
    async with migrations(server) as moving:
        await perform(moving, await_migration("writing"))
    assert server.commands.count("query-migrate") == 3


async def test_writing_misses_no_event_that_comes_together_with_an_answer(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_LOOK", NEVER)
    setup = (Return(status("setup")), Emit("MIGRATION", status("active")))
    looks(server, *[setup] * 3, ACTIVE)
    async with migrations(server) as moving:
        with anyio.fail_after(SOON):
            await perform(moving, await_migration("writing"))


async def test_saved_waits_until_qemu_takes_a_cont(server: QmpServer) -> None:
    looks(server, ACTIVE, status("completed"))
    says(server, "finish-migrate", "finish-migrate", "postmigrate")
    async with migrations(server) as moving:
        await perform(moving, SAVE)
        waiting = asyncio.create_task(perform(moving, await_migration("saved")))
        await server.wait_for("query-migrate")
        server.emit(Emit("MIGRATION", status("completed")))
        await waiting
    assert server.commands.count("query-status") == 3


async def test_saved_misses_no_event_that_comes_together_with_an_answer(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_AGAIN", NEVER)
    answer = (Return(ACTIVE), Emit("MIGRATION", status("completed")))
    looks(server, *[answer] * 3, status("completed"))
    says(server, "postmigrate")
    async with migrations(server) as moving:
        with anyio.fail_after(SOON):
            await perform(moving, await_migration("saved"))


async def test_saved_fails_when_somebody_lets_the_guest_run(server: QmpServer) -> None:
    looks(server, status("completed"))
    says(server, "finish-migrate", "running")
    async with migrations(server) as moving:
        with pytest.raises(MigrationFailed, match="another client resumed the guest"):
            await perform(moving, await_migration("saved"))


@pytest.mark.parametrize("until", ["saved", "writing"])
async def test_await_migration_ends_where_qemu_hangs(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch, until: Literal["saved", "writing"]
) -> None:
    monkeypatch.setattr(migration, "_MOMENT", 0.02)
    looks(server, status("completed") if until == "saved" else status("setup"))
    says(server, "finish-migrate")
    async with migrations(server) as moving:
        with pytest.raises(MigrationFailed, match="QEMU does not"):
            await perform(moving, await_migration(until))


async def test_kept_is_content_with_a_guest_that_ran_on(server: QmpServer) -> None:
    looks(server, status("completed"))
    async with migrations(server) as moving:
        server.emit(Emit("STOP"))  # before the migration began
        await moving.status()
        await perform(moving, SAVE)
        server.emit(Emit("RESUME"))
        await perform(moving, await_migration("kept"))


async def test_kept_fails_when_qemu_stopped_the_guest_once_more(server: QmpServer) -> None:
    looks(server, ACTIVE, (Emit("STOP"), Return(status("completed"))))
    async with migrations(server) as moving:
        await perform(moving, SAVE)
        waiting = asyncio.create_task(perform(moving, await_migration("kept")))
        await server.wait_for("query-migrate")
        server.emit(Emit("RESUME"), Emit("MIGRATION", status("completed")))
        with pytest.raises(MigrationFailed, match="newer than the disks") as caught:
            await waiting
    assert (caught.value.error, caught.value.hint) == ("the guest was paused twice", "try again")


@pytest.mark.parametrize("stands", ["paused", "running", "io-error", "shutdown", "guest-panicked"])
async def test_loaded_waits_until_the_machine_waits_no_more(server: QmpServer, stands: str) -> None:
    looks(server, status("completed"))
    says(server, "inmigrate", stands)
    async with migrations(server) as moving:
        await perform(moving, await_migration("loaded"))
    assert server.commands.count("query-status") == 2


@pytest.mark.parametrize("until", ["writing", "saved", "kept", "loaded"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "failed", "error-desc": "no space left"}, "no space left"),
        ({"status": "failed"}, "it was failed, QEMU gives no reason"),
        ({"status": "cancelled"}, "it was cancelled, QEMU gives no reason"),
    ],
)
async def test_await_migration_says_why_it_failed(
    server: QmpServer, until: str, answer: dict[str, object], said: str
) -> None:
    looks(server, status("active"), answer)
    async with migrations(server) as moving:
        waiting = asyncio.create_task(perform(moving, await_migration(until)))  # type: ignore[arg-type]
        await server.wait_for("query-migrate")
        server.emit(Emit("MIGRATION", answer))
        with pytest.raises(MigrationFailed) as caught:
            await waiting
    assert caught.value.error == said


@pytest.mark.parametrize("until", ["settled", "writing", "saved", "kept", "loaded"])
async def test_await_migration_ends_when_the_link_is_lost(server: QmpServer, until: str) -> None:
    looks(server, (Return(status("active")), Emit("MIGRATION", status("active"))), (Hangup(),))
    async with migrations(server) as moving:
        with pytest.raises(LinkLost):
            await perform(moving, await_migration(until))  # type: ignore[arg-type]


# -- cancelled -------------------------------------------------------------------------------------


def numbers(server: QmpServer, number: int) -> None:
    """Which number QEMU gives to the next descriptor."""
    server.answer("add-fd", Return({"fdset-id": 4, "fd": number}))
    for command in ("remove-fd", "getfd"):
        server.answer(command, Return())


async def test_cancel_returns_once_it_has_stopped(server: QmpServer) -> None:
    looks(server, ACTIVE, status("cancelling"), status("cancelled"))
    server.answer("migrate_cancel", Return(), Emit("MIGRATION", status("cancelling")))
    says(server, "paused")
    async with migrations(server) as moving:
        cancelling = asyncio.create_task(perform(moving, migrate_cancel("cancel")))
        await server.wait_for("query-migrate", count=2)
        server.emit(Emit("MIGRATION", status("cancelled")))
        await cancelling
    assert server.commands.count("migrate_cancel") == 1


@pytest.mark.parametrize(
    ("ending", "over"),
    [
        *itertools.product(["cancel", "wait"], [{}, *map(status, ["completed", "failed", "cancelled"])]),
        ("cancel-later", {}),
        ("cancel-later", status("completed")),
    ],
    ids=str,
)
async def test_cancel_does_nothing_when_it_is_over(
    server: QmpServer, ending: Ending, over: dict[str, object]
) -> None:
    looks(server, over)
    says(server, "finish-migrate", "paused")  # `cont` would be refused before
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel(ending))
    assert server.commands == ["query-migrate", "query-status", "query-status"]


@pytest.mark.parametrize("over", ["failed", "cancelled"])
@pytest.mark.parametrize(("number", "kept"), [(21, []), (0, ["getfd"])])
async def test_cancel_takes_a_free_descriptor_0_after_a_failure(
    server: QmpServer, over: str, number: int, kept: list[str]
) -> None:
    looks(server, status(over))
    says(server, "paused")
    numbers(server, number)
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("cancel-later"))
        await perform(moving, migrate_cancel("cancel-later"))
    once = ["query-migrate", "add-fd", "remove-fd", *kept, "query-status"]
    assert server.commands == once * 2
    sent = [(each["execute"], each.get("arguments")) for each in server.received]
    assert sent.count(("remove-fd", {"fdset-id": 4})) == 2
    names = {str(arguments) for command, arguments in sent if command == "getfd"}
    assert len(names) == 2 * len(kept)


async def test_cancel_does_not_fail_where_qemu_takes_no_descriptor(server: QmpServer) -> None:
    looks(server, status("failed"))
    says(server, "paused")
    server.answer("add-fd", Fail("GenericError", "No file descriptor supplied via SCM_RIGHTS"))
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("cancel-later"))
    assert server.commands == ["query-migrate", "add-fd", "query-status"]


async def test_cancel_does_not_fail_where_no_descriptor_can_be_opened(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "devnull", "/none/null")
    looks(server, status("failed"))
    says(server, "paused")
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("cancel-later"))
    assert server.commands == ["query-migrate", "query-status"]


async def test_cancel_waits_for_the_first_page(server: QmpServer) -> None:
    """QEMU 10.0 and 11.1 would close their descriptor 0."""
    early = ({"status": "setup"}, {"status": "active", "ram": {"transferred": 4000}})
    looks(server, *early, *early, ZERO_PAGES, status("completed"))
    says(server, "paused")
    server.answer("migrate_cancel", Return())
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("cancel-later"))
    assert server.commands == [*["query-migrate"] * 5, "migrate_cancel", "query-migrate", "query-status"]


async def test_cancel_does_not_wait_for_the_first_page_for_ever(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_BEGINNING", 0.02)
    looks(server, *[status("setup")] * 2, status("setup"))
    says(server, "paused")
    server.answer("migrate_cancel", Return(), Emit("MIGRATION", status("completed")))
    async with migrations(server) as moving:
        cancelling = asyncio.create_task(perform(moving, migrate_cancel("cancel-later")))
        with anyio.fail_after(SOON):
            await server.wait_for("migrate_cancel")
        looks(server, status("completed"))
        await cancelling


async def test_cancel_waits_instead_where_qemu_would_hang_the_guest(server: QmpServer) -> None:
    answers: tuple[Action, ...] = (Return(ACTIVE), Emit("MIGRATION", status("completed")))
    looks(server, ACTIVE, answers, status("completed"))
    says(server, "running")
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("wait"))
    assert "migrate_cancel" not in server.commands


def written(pages: int, state: str = "active") -> dict[str, object]:
    return {
        "status": state,
        "ram": {"total": 1 << 20, "remaining": (1 << 20) - 4096 * pages, "normal": pages},
    }


@pytest.mark.parametrize(
    ("ending", "state", "verb"), [("wait", "active", "end"), ("cancel-later", "cancelling", "stop")]
)
async def test_cancel_gives_up_when_qemu_writes_no_more(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch, ending: Ending, state: str, verb: str
) -> None:
    """A file system that takes no data blocks QEMU's write, also once the migration is cancelled."""
    monkeypatch.setattr(migration, "_MOMENT", 0.02)
    looks(server, *[written(192)] * 2, written(192, state))
    server.answer("migrate_cancel", Return())
    async with migrations(server) as moving:
        with anyio.fail_after(SOON), pytest.raises(MigrationFailed) as caught:
            await perform(moving, migrate_cancel(ending))
    assert caught.value.message == (
        f"the migration of the guest's memory does not {verb}: QEMU has written nothing for 0.02 s "
        f"({state}, 256 KiB remaining)"
    )
    assert "takes no data" in caught.value.hint
    assert "query-status" not in server.commands


async def test_cancel_waits_as_long_as_qemu_writes(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_MOMENT", 60.0)
    monkeypatch.setattr(migration, "_AGAIN", 0.001)
    clock = itertools.count(step=50)
    monkeypatch.setattr(migration, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    looks(server, *(written(pages) for pages in range(20)), status("completed"))
    says(server, "running")
    async with migrations(server) as moving:
        await perform(moving, migrate_cancel("wait"))
    assert server.commands.count("query-migrate") == 21


async def test_progress_tells_how_much_has_moved_until_all_has(server: QmpServer) -> None:
    looks(server, ACTIVE, status("completed"))
    async with migrations(server) as moving:
        seen = [report.job async for report in moving.progress(0)]
    assert [(job.offset, job.length) for job in seen] == [(6144, 8192)]


async def test_await_migration_can_be_given_up(server: QmpServer) -> None:
    looks(server, status("active"))
    async with migrations(server) as moving:
        with anyio.move_on_after(0.01) as scope:
            await perform(moving, await_migration("saved"))
        assert scope.cancelled_caught
        assert (await moving.status()).status == "active"
