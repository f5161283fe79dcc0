"""Forks: what a parent is like while children run, and that nothing is left of them however they end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import CHEAP, SOON, blockdev, listing, traced
from qmpsnap.errors import (
    Changed,
    ConnectFailed,
    FileMoved,
    Incomplete,
    InvalidTarget,
    LinkLost,
    NotFound,
    Unsupported,
)
from qmpsnap.run.session_target import SessionTarget

WRITE, CHILD = (0xA1, 6 * MIB, 64 * KIB), (0xB0, 7 * MIB, 64 * KIB)


async def write(vm, pattern, offset, length):
    line = f'qemu-io -d /machine/peripheral/vda/virtio-backend "write -P {pattern} {offset} {length}"'
    assert await vm.execute("human-monitor-command", {"command-line": line}) == ""


async def generation(vm):
    return (await vm.execute("query-vm-generation-id"))["guid"]


@asynccontextmanager
async def parent(qemu, active):
    argv = [qemu.system, *CHEAP, *blockdev("vda", active), "-device", "vmgenid,guid=auto"]
    async with qmpsnap.launch([word for word in map(str, argv) if word != "-S"]) as vm:
        await vm.cont()
        yield vm


async def test_children_go_on_from_a_running_or_paused_machine_and_leave_nothing(qemu, images, tmp_path):
    vda = images("base <- s1")
    async with parent(qemu, vda.active) as vm:
        await write(vm, *WRITE)
        before, chains = listing(tmp_path), (await vm.graph()).chains()
        for runs in (True, False):
            if not runs:
                await vm.stop()
            files, generations = [], [await generation(vm)]
            async with vm.fork(3, directory=tmp_path if runs else None) as children:
                assert children.standstill_s < SOON
                async for child in children:
                    assert (await child.vm.status()).running
                    await write(child.vm, CHILD[0] + child.number, *CHILD[1:])
                    files.append((await child.vm.graph()).disks["vda"].active.file)
                    generations.append(await generation(child.vm))
                assert (len({*files}), len({*generations})) == (3, 4)
                assert (await vm.status()).running is runs
                await write(vm, 0xA3, 5 * MIB, 4 * KIB)
            assert (listing(tmp_path), (await vm.graph()).chains()) == (before, chains)
            assert (await vm.status()).running is runs
            assert await vm.jobs.list() == ()
    assert qemu.read(vda.active) == overwritten(overwritten(content(2), WRITE), (0xA3, 5 * MIB, 4 * KIB))
    qemu.check_chain(*vda.files[::-1])


async def test_child_that_cannot_be_started_says_why_and_the_others_live(qemu, images, tmp_path):
    vda = images("base")
    async with parent(qemu, vda.active) as vm:
        before, begun = listing(tmp_path), []

        def two_are_bad(start):
            begun.append(start)
            if len(begun) == 4:
                raise OSError(errno.EADDRINUSE, "its port is taken")
            return qmpsnap.launch(["/missing"]) if len(begun) == 3 else vm.launcher(start)

        await vm.checkpoint("c1", mode="in-place")
        with_moment = listing(tmp_path)
        async with vm.fork(4, of="c1", launcher=two_are_bad, directory=tmp_path) as children:
            known = [child async for child in children]
            bad = [child for child in known if child.error is not None]
            for child in bad:
                with pytest.raises(
                    ConnectFailed, match=r"/missing|the launcher has failed: OSError: .* its port is taken"
                ):
                    _ = child.vm
            assert [type(child.error.__cause__) for child in bad].count(OSError) == 1
            alive = [(await child.vm.status()).running for child in known if child not in bad]
            assert (alive, children.standstill_s) == ([True, True], None)
        assert listing(tmp_path) == with_moment
        await vm.delete("c1")
        with pytest.raises(NotFound):
            async with vm.fork(1, of="none", directory=tmp_path):
                raise AssertionError
        with pytest.raises(ConnectFailed):
            async with vm.fork(1, launcher=lambda _: qmpsnap.launch(["/missing"]), directory=tmp_path):
                raise AssertionError
        assert [name for name in listing(tmp_path) if "fork" in name or "run-" in name] == []
        assert set(before) - set(listing(tmp_path)) == set()


async def test_memory_that_no_clone_can_have_is_refused_before_anything_is_changed(qemu, images, tmp_path):
    vda = images("base")
    argv = [qemu.system, *CHEAP, *blockdev("vda", vda.active)]
    argv += ["-object", "memory-backend-ram,id=mem,size=64M", "-numa", "node,memdev=mem"]
    async with qmpsnap.launch([word for word in map(str, argv) if word != "-S"]) as vm:
        before = listing(tmp_path)
        with traced(vm) as sent:
            with pytest.raises(Unsupported, match="in the objects of its NUMA nodes") as caught:
                async with vm.fork(1, directory=tmp_path):
                    raise AssertionError
            assert caught.value.hint.startswith("start the machine with -m alone")
            with pytest.raises(Unsupported, match="in the objects of its NUMA nodes"):
                await vm.freeze_template(tmp_path / "t1")
        assert (sent, listing(tmp_path)) == ([], before)


async def test_template_of_a_child_is_made_once_its_disks_were_copied_to_files_that_stay(
    qemu, images, tmp_path
):
    vda = images("base <- s1")
    async with parent(qemu, vda.active) as vm:
        chains = (await vm.graph()).chains()
        async with vm.fork(1) as children:
            async for child in children:
                await write(child.vm, *CHILD)
                overlay = (await child.vm.graph()).disks["vda"].active.file
                with traced(child.vm) as sent, pytest.raises(Unsupported, match=overlay) as caught:
                    await child.vm.freeze_template(tmp_path / "t1")
                assert caught.value.hint.endswith(": qmpsnap mirror vda FILE --pivot")
                assert sent == []
                await child.vm.checkpoint("c1", mode="in-place")
                with pytest.raises(Unsupported, match="fork's child"):
                    await child.vm.freeze_template(tmp_path / "t1", of="c1")
                await child.vm.delete("c1")
                await child.vm.mirror("vda", tmp_path / "copy.qcow2", ending="pivot")
                template = await child.vm.freeze_template(tmp_path / "t1", name="t1")
        assert (await vm.graph()).chains() == chains
        assert qemu.read(tmp_path / "copy.qcow2") == overwritten(content(2), CHILD)
        async with template.clone(directory=tmp_path) as clone:
            assert (await clone.status()).running
        await template.remove()
    assert qemu.read(vda.active) == content(2)


async def test_template_takes_no_space_for_memory_that_is_zero(qemu, images):
    """On a tmpfs, where a page is allocated when QEMU reads it; of a stream that was written in one go, and
    one that was written while the guest ran.
    """
    vda = images("base <- s1")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        async with parent(qemu, vda.active) as vm:
            await vm.checkpoint("c1", mode="stop")
            first = await vm.freeze_template(f"{place}/first", of="c1")
            second = await vm.freeze_template(f"{place}/second", name="c2")
            for template in (first, second):
                status = Path(template.directory, "memory").stat()
                assert (status.st_size, status.st_blocks * 512 < 32 * MIB) == (64 * MIB, True)
                async with template.clone() as clone:
                    assert (await clone.status()).running
                await template.remove()
            moments = (await vm.moments()).moments
            assert {(moment.name, moment.mode) for moment in moments} == {
                ("c1", "stop"),
                ("c2", "background"),
            }


async def end_in_a_fork(vm):
    async with vm.fork(1):
        await write(vm, *WRITE)
        await vm.execute("quit")
        await vm.wait_ended()


async def test_parent_that_ends_in_the_block_is_an_error_that_names_what_to_start_it_from(
    qemu, images, tmp_path
):
    vda = images("base")
    async with parent(qemu, vda.active) as vm:
        with pytest.raises(Incomplete, match="could not be merged back") as caught:
            await end_in_a_fork(vm)
    (overlay,) = [file for file in listing(tmp_path) if re.search(r"fork-\w+\.qcow2$", file)]
    assert f"vda to {tmp_path / overlay}" in caught.value.message
    assert qemu.read(tmp_path / overlay) == overwritten(content(1), WRITE)
    assert qemu.read(vda.active) == content(1)
    async with parent(qemu, tmp_path / overlay) as vm:
        (moment,) = (await vm.moments()).moments
        await vm.delete(moment.name)
        assert len((await vm.graph()).disks["vda"].files) == 1


@pytest.mark.parametrize("what", ["fork", "template"])
async def test_call_that_is_cancelled_while_it_takes_its_checkpoint_leaves_none(
    qemu, images, tmp_path, what, monkeypatch
):
    """Before its transaction, as its memory is being written, and when that is complete."""
    vda, perform = images("base"), SessionTarget.perform
    async with parent(qemu, vda.active) as vm:
        await write(vm, *WRITE)
        before, chains, data = listing(tmp_path), (await vm.graph()).chains(), overwritten(content(1), WRITE)
        for number, command in enumerate(("transaction", "migrate", "await-migration", "seal-memory")):
            with anyio.CancelScope() as scope:

                async def cancels(target, step, command=command, scope=scope):
                    if step.command == command:
                        scope.cancel()
                    return await perform(target, step)

                monkeypatch.setattr(SessionTarget, "perform", cancels)
                if what == "template":
                    await vm.freeze_template(tmp_path / "t1")
                else:
                    async with vm.fork(1, directory=tmp_path):
                        raise AssertionError
            assert scope.cancelled_caught
            assert (listing(tmp_path), (await vm.graph()).chains()) == (before, chains)
            assert ((await vm.moments()).moments, (await vm.status()).running) == ((), True)
            later = (0xA3 + number, 5 * MIB, 4 * KIB)
            await write(vm, *later)
            data = overwritten(data, later)
    assert qemu.read(vda.active) == data
    qemu.check_chain(*vda.files[::-1])


async def test_clone_is_forked_too_although_qemu_cannot_follow_the_writes_to_its_memory(
    qemu, images, tmp_path
):
    vda = images("base")
    async with parent(qemu, vda.active) as vm, vm.fork(1, directory=tmp_path) as children:
        async for child in children:
            before = (await child.vm.graph()).chains()
            with pytest.raises(Unsupported, match="mapped from a file") as caught:
                await child.vm.checkpoint("c1", mode="background")
            assert "in-place" in caught.value.hint
            async with child.vm.fork(1, directory=tmp_path) as grandchildren:
                async for grandchild in grandchildren:
                    assert (await grandchild.vm.status()).running
            assert (await child.vm.graph()).chains() == before


def everybody_may_use_userfaultfd():
    with contextlib.suppress(OSError):
        if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() == "1\n":
            return True
    with contextlib.suppress(OSError):
        return bool(Path("/dev/userfaultfd").stat().st_mode & stat.S_IROTH)
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start QEMU as another user")
@pytest.mark.skipif(everybody_may_use_userfaultfd(), reason="every user may use userfaultfd here")
async def test_machine_is_forked_although_its_user_may_not_use_userfaultfd(qemu, temporary):
    """So it is with a user's QEMU on most hosts."""
    temporary.chmod(0o711)
    place = temporary / "images"
    place.mkdir()
    base = qemu.create(place / "base.qcow2")
    for path in (place, base):
        shutil.chown(path, "nobody")
    ours = [word for word in map(str, (qemu.system, *CHEAP, *blockdev("vda", base))) if word != "-S"]
    user = ["-runas", "nobody"] if qemu.short == "7.2" else ["-run-with", "user=nobody"]
    async with qmpsnap.launch([*ours, *user]) as vm:
        await vm.cont()
        with pytest.raises(Unsupported, match="its user may not use userfaultfd") as caught:
            await vm.checkpoint("c1", mode="background")
        assert (caught.value.changed, "--mode in-place" in caught.value.hint) == (Changed.NO, True)
        async with vm.fork(1, launcher=lambda start: qmpsnap.launch(ours, start=start)) as children:
            async for child in children:
                assert (await child.vm.status()).running
        assert (await vm.graph()).chains() == {"vda": (base,)}
        assert (await vm.status()).running
    assert listing(temporary) == ["images/base.qcow2"]


@pytest.mark.parametrize("how", ["early", "error", "cancelled"])
async def test_fork_that_is_left_early_leaves_nothing(qemu, images, tmp_path, how):
    vda = images("base")
    async with parent(qemu, vda.active) as vm:
        before = listing(tmp_path)
        with contextlib.suppress(ZeroDivisionError), anyio.CancelScope() as scope:
            async with vm.fork(3, directory=tmp_path) as children:
                async for _ in children:
                    break
                if how == "error":
                    raise ZeroDivisionError
                if how == "cancelled":
                    scope.cancel()
                    await anyio.sleep_forever()
        assert listing(tmp_path) == before
        assert (await vm.graph()).chains() == {"vda": tuple(vda.files)}
        assert (await vm.status()).running


def telling(perform, command, event):
    """Perform steps, and set the event once one with this command is done."""

    async def performed(target, step):
        done = await perform(target, step)
        if step.command == command:
            event.set()
        return done

    return performed


@pytest.mark.parametrize("how", ["well", "memory", "cancelled", "moved", "killed"])
async def test_helper_loads_and_children_start_while_the_memory_is_written(
    qemu, images, tmp_path, how, monkeypatch
):
    """The guest is not paused before the helper is up, and the checkpoint not complete before that loads it,
    and a child's QEMU is up; if it fails, nothing of it is left.
    """
    vda, (helped, loads, up) = images("base <- s1", folder="a"), (anyio.Event() for _ in range(3))
    perform = telling(SessionTarget.perform, "migrate-incoming", loads)
    # Without the helper there is no memory from which a child could be started.
    waits = {"stop": [helped], "await-closed": [loads] if how == "killed" else [loads, up]}
    pids, written = [], []
    place, base, other = (tmp_path / name for name in ("place", "a/base.qcow2", "a/moved.qcow2"))
    place.mkdir()
    async with parent(qemu, vda.active) as vm:
        await write(vm, *WRITE)
        before, chains, scope = listing(tmp_path), (await vm.graph()).chains(), anyio.CancelScope()

        @asynccontextmanager
        async def launcher(start):
            async with vm.launcher(start) as started:
                pids.append(started.pid)
                (helped if start.memory.share else up).set()
                yield started

        async def performed(target, step):
            if target is vm._target:
                with anyio.fail_after(60):
                    for event in waits.pop(step.command, ()):
                        await event.wait()
            if how == "killed" and step.command == "await-migration" and pids[:1] == [target.pid]:
                os.kill(pids[0], signal.SIGKILL)  # the helper
            if step.command == "await-closed" and target is vm._target and not written:
                written.append(step)
                if how == "memory":
                    raise InvalidTarget("no room", file="checkpoint")
                if how == "cancelled":
                    scope.cancel()
                if how == "moved":
                    base.rename(other)
            return await perform(target, step)

        async def views(name):
            try:
                return await type(vm).views(vm, name)
            finally:
                if how == "moved":
                    other.rename(base)

        monkeypatch.setattr(SessionTarget, "perform", performed)
        monkeypatch.setattr(vm, "views", views)
        alive = []
        error = {"memory": InvalidTarget, "moved": FileMoved, "killed": LinkLost}.get(how)
        with scope, pytest.raises(error) if error else contextlib.nullcontext():
            async with vm.fork(2, launcher=launcher, directory=place) as children:
                alive += [(await child.vm.status()).running async for child in children]
        assert (alive, scope.cancelled_caught) == ([True, True] if how == "well" else [], how == "cancelled")
        assert len(pids) >= (1 if how == "killed" else 2)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert (listing(tmp_path), list(place.iterdir())) == (before, [])
        assert ((await vm.graph()).chains(), (await vm.moments()).moments) == (chains, ())
        assert ((await vm.status()).running, await vm.jobs.interrupted()) == (True, ())
    assert qemu.read(vda.active) == overwritten(content(2), WRITE)
    qemu.check_chain(*vda.files[::-1])


@pytest.mark.one_qemu
@pytest.mark.parametrize("who", ["helper", "child"])
async def test_cancelled_fork_does_not_wait_for_a_qemu_of_its_own_that_hangs(
    qemu, images, tmp_path, who, monkeypatch
):
    """It hangs while it loads; what is waited for of a machine that matters is 30 s, and its end 10 s."""
    vda, perform, pids = images("base"), SessionTarget.perform, {}
    scope, limit = anyio.CancelScope(), anyio.CancelScope()
    async with parent(qemu, vda.active) as vm:
        before, chains = listing(tmp_path), (await vm.graph()).chains()

        @asynccontextmanager
        async def launcher(start):
            async with vm.launcher(start) as started:
                pids["helper" if start.memory.share else "child"] = started.pid
                yield started

        async def performed(target, step):
            if step.command == "migrate-incoming" and target.pid == pids.get(who):
                os.kill(pids[who], signal.SIGSTOP)
                scope.cancel()
                limit.deadline = anyio.current_time() + 30
            return await perform(target, step)

        monkeypatch.setattr(SessionTarget, "perform", performed)
        with limit, scope:
            async with vm.fork(1, launcher=launcher, directory=tmp_path) as children:
                async for _ in children:
                    raise AssertionError
        assert (scope.cancelled_caught, limit.cancelled_caught) == (True, False)
        assert anyio.current_time() < limit.deadline
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
        assert (listing(tmp_path), (await vm.graph()).chains()) == (before, chains)
        assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
