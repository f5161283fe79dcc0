"""Going back to a checkpoint with its memory in a new QEMU (G2): prepare, start, load; and refusals."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.harness import Ordinals, interrupt
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, listing, messages, traced
from integration.states import note, opened, refuses, settings, status
from qmpsnap.errors import (
    InvalidTarget,
    LinkLost,
    MachineDiffers,
    NotFound,
    NotInChain,
    Refused,
    Unsupported,
)
from qmpsnap.plan.intent import Revert

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)
INCOMING = ("-incoming", "defer")


@pytest.fixture(params=["stop", "background"])
def mode(request):
    return request.param


@pytest.fixture
def two(images):
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


@asynccontextmanager
async def started(machine, way, start, begun=None, extra=None):
    assert start.paused
    extra = start.arguments if extra is None else extra
    with machine(
        *way("vda", start.disks["vda"]), *blockdev("vdb", start.disks["vdb"]), extra=extra
    ) as running:
        async with running.connect() as vm:
            if begun is not None:
                begun.append(running)
            yield vm


@pytest.mark.parametrize(
    ("way", "mode"), [("drive", "stop"), ("blockdev", "background"), ("throttle", "in-place")]
)
async def test_reverted_gives_a_new_machine_at_the_moment_and_the_old_one_goes_on(
    qemu, two, machine, way, mode
):
    vda, vdb = two
    way = WAYS[way]
    with machine(*way("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode=mode)
            running.write("vda", *LATER)
            begun, files = [], []
            for number in range(3):
                async with vm.reverted("c1", lambda start: started(machine, way, start, begun)) as new:
                    (other,) = begun[number:]
                    assert (status(other), status(running)) == ("running", "running")
                    assert (opened(other), settings(other)[2]) == ([], [])
                    other.read("vda", WRITE[0], *WRITE[1:])
                    chains = (await new.graph()).chains()
                    pictures = [qmpsnap.draw(chain[1:]) for chain in chains.values()]
                    assert pictures == ["[base] <- [s1*]", "[base*]"]
                    assert [one.name for one in (await new.moments()).moments] == ["c1"]
                    other.write("vda", number + 1, 7 * MIB, 64 * KIB)
                    files.append(chains)
            assert (await vm.graph()).chains() == taken.chains
            (moment,) = (await vm.moments()).moments
            assert [dict(one) for one in moment.record.branches] == [
                {disk: chain[0] for disk, chain in chains.items()} for chains in files
            ]
            assert await vm.jobs.interrupted() == ()
    at = overwritten(content(2), WRITE)
    assert qemu.read(vda.active) == at
    assert qemu.read(taken.active["vda"]) == overwritten(at, LATER)
    for number, chains in enumerate(files):
        assert qemu.read(chains["vda"][0]) == overwritten(at, (number + 1, 7 * MIB, 64 * KIB))
        for chain in chains.values():
            qemu.check_chain(*chain)


@pytest.mark.parametrize("runs", [False, True], ids=["paused", "running"])
async def test_prepare_and_incoming_in_two_steps(two, machine, mode, runs):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        if not runs:
            running.qmp("stop")
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode=mode)
            plan = await vm.plan(Revert("c1", into="new"))
            with traced(vm) as sent:
                made = await vm.run(plan)
            assert (sent, made.chains) == ([], taken.chains)
            assert made.memory == (await vm.moments()).moments[0].vm_state_file
            assert not set(made.prepared.values()) & set(taken.active.values())
    with machine(*blockdev("vda", made.prepared["vda"]), *blockdev("vdb", made.prepared["vdb"]),
                 extra=INCOMING) as running:  # fmt: skip
        before = settings(running)
        async with running.connect() as vm:
            plan = await vm.plan(Revert("c1", into="incoming"))
            with traced(vm) as sent:
                back = await vm.run(plan)
            assert sent == messages(plan)
            assert status(running) == ("running" if runs else "paused")
            assert (settings(running), opened(running)) == (before, [])
            assert (back.op, {disk: files[0] for disk, files in back.chains.items()}) == (
                "revert",
                dict(made.prepared),
            )
            running.qmp("cont")
            await vm.checkpoint("c2", mode=mode)
            assert [one.name for one in (await vm.moments()).moments] == ["c1", "c2"]


async def test_reverted_leaves_no_overlay_when_the_launcher_fails(two, machine, mode):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode=mode)
            before = listing(running.folder)
            seen = []

            @asynccontextmanager
            async def broken(start):
                seen.extend(Path(file).exists() for file in start.disks.values())
                raise RuntimeError("no QEMU today")
                yield

            with pytest.raises(RuntimeError, match="today"):
                async with vm.reverted("c1", broken):
                    raise AssertionError
            assert (seen, listing(running.folder)) == ([True, True], before)
            with pytest.raises(Unsupported, match="not waiting"):
                async with vm.reverted("c1", lambda start: started(machine, blockdev, start, extra=())):
                    raise AssertionError
            assert listing(running.folder) == before
            async with vm.reverted("c1", lambda start: started(machine, blockdev, start)) as new:
                assert len((await new.graph()).chains()) == 2


async def test_incoming_refuses_a_machine_that_does_not_fit(two, machine, mode):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode=mode)
            running.write("vda", *LATER)
            made = await vm.revert("c1", into="new")
            later = await vm.checkpoint("c2", mode="in-place")
    new, old = made.prepared, taken.active
    cases = [
        (new, (), Unsupported, "not waiting"),
        (old, INCOMING, MachineDiffers, "already has data"),
        (later.active, INCOMING, NotInChain, "not an overlay on"),
        (new, (*INCOMING, "-m", "96"), MachineDiffers, "bytes of memory"),
        (new, (*INCOMING, "-device", "virtio-rng-pci,id=rng"), MachineDiffers, "another device, rng"),
    ]
    for active, extra, error, text in cases:
        with machine(
            *blockdev("vda", active["vda"]), *blockdev("vdb", active["vdb"]), extra=extra
        ) as running:
            async with running.connect() as vm:
                await refuses(running, vm, Revert("c1", into="incoming"), error, text)
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw"),
                 extra=INCOMING) as running:  # fmt: skip
        async with running.connect() as vm:
            await refuses(running, vm, Revert("c1", into="incoming"), NotFound, "'c1'")
    with machine(*blockdev("vda", new["vda"]), extra=INCOMING) as running:
        async with running.connect() as vm:
            with pytest.raises(Refused):
                await vm.revert("c1", into="incoming")
    with machine(*blockdev("vda", new["vda"]), *blockdev("vdb", new["vdb"]), extra=INCOMING) as running:
        async with running.connect() as vm:
            await refuses(running, vm, Revert("c3", into="incoming"), NotFound, "'c3'")
            await refuses(running, vm, Revert("c2", into="incoming"), Unsupported, "in a store")
            await vm.revert("c1", into="incoming")
            assert status(running) == "running"


@pytest.mark.parametrize("how", ["lost", "cut", "foreign", "of another checkpoint", "of a save"])
async def test_a_memory_file_that_is_not_whole_or_not_the_one_is_refused(two, machine, how, tmp_path):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1")
            await vm.checkpoint("c2")
            made = await vm.revert("c1", into="new")
            one, two_ = (Path(moment.vm_state_file) for moment in (await vm.moments()).moments)
            await vm.save(tmp_path / "saved")
            kept = one.read_bytes()
            match how:
                case "lost":
                    one.unlink()
                case "cut":
                    one.write_bytes(kept[:-1])
                case "foreign":
                    one.write_bytes(kept[: note(one).stream_bytes])
                case "of another checkpoint":
                    one.write_bytes(two_.read_bytes())
                case _:
                    one.write_bytes((tmp_path / "saved").read_bytes())
            error = await refuses(running, vm, Revert("c1", into="new"), InvalidTarget, "memory")
            assert error.file == str(one)
    with machine(*blockdev("vda", made.prepared["vda"]), *blockdev("vdb", made.prepared["vdb"]),
                 extra=INCOMING) as running:  # fmt: skip
        async with running.connect() as vm:
            error = await refuses(running, vm, Revert("c1", into="incoming"), InvalidTarget, "memory")
            assert error.file == str(one)
            one.write_bytes(kept)
            await vm.revert("c1", into="incoming")
            assert status(running) == "running"


async def test_a_stream_that_is_broken_inside_ends_the_new_qemu_and_nothing_else(two, machine):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1")
            (moment,) = (await vm.moments()).moments
            file = Path(moment.vm_state_file)
            kept = file.read_bytes()
            middle = note(file).stream_bytes // 2
            file.write_bytes(kept[:middle] + b"\xff" * 4096 + kept[middle + 4096 :])
            before = listing(running.folder)
            begun = []
            with pytest.raises(LinkLost):
                async with vm.reverted("c1", lambda start: started(machine, blockdev, start, begun)):
                    raise AssertionError
            assert begun[0].process.poll() is not None
            assert (listing(running.folder), status(running)) == (before, "running")
            file.write_bytes(kept)
            async with vm.reverted("c1", lambda start: started(machine, blockdev, start)):
                pass


async def test_reverted_leaves_no_overlay_when_it_is_cancelled_at_any_await(two, machine):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1")
            before = listing(running.folder)

            class LaunchFailed(Exception):
                pass

            @asynccontextmanager
            async def failing(_start):
                raise LaunchFailed
                yield

            async def operation():
                async with vm.reverted("c1", failing):
                    raise AssertionError

            for cancel in ("task", "scope"):
                for number in (1, 3, *range(10, 90, 3)):
                    try:
                        came, _ = await interrupt(operation, Ordinals(number), cancel=cancel)
                    except LaunchFailed:  # there are fewer awaits
                        came = False
                    assert listing(running.folder) == before, f"{cancel} at {number}"
                    assert await vm.jobs.interrupted() == ()
                    if not came:
                        break
                assert number > 20
            with anyio.CancelScope() as scope:

                @asynccontextmanager
                async def cancelled(start):
                    assert all(Path(file).exists() for file in start.disks.values())
                    scope.cancel()
                    await anyio.sleep_forever()
                    yield

                async with vm.reverted("c1", cancelled):
                    raise AssertionError
            assert scope.cancelled_caught
            assert listing(running.folder) == before


async def test_reverted_with_a_launcher_that_ends_the_old_machine(two, machine, mode):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode=mode)

            def instead(start):
                running.quit()
                return started(machine, blockdev, start)

            async with vm.reverted("c1", instead) as new:
                assert [one.name for one in (await new.moments()).moments] == ["c1"]
                await new.checkpoint("c2", mode=mode)
