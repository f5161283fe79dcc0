"""A process at its limit of open files: what it begins is done, or refused and leaves nothing."""

from __future__ import annotations

import pytest

import qmpsnap
from integration.known_images import MIB
from integration.machines import CHEAP, blockdev, listing
from qmpsnap.errors import Changed, InvalidTarget
from tests.run.limits import free_descriptors
from tests.run.test_process import descriptors


async def snapshot(vm, folder):
    await vm.snapshot("one")
    await vm.delete("one")


async def checkpoint(vm, folder):
    await vm.checkpoint("one", mode="stop")
    await vm.delete("one")


async def fork(vm, folder):
    async with vm.fork(2, directory=folder) as children:
        async for child in children:
            assert (await child.vm.status()).running


async def template(vm, folder):
    template = await vm.freeze_template(folder / "template", name="one")
    async with template.clone() as clone:
        assert (await clone.status()).running
    await template.remove()
    await vm.delete("one")


async def launch(vm, folder):
    async with qmpsnap.launch(qmpsnap.Machine(qemu=str(vm.argv[0]), memory_mib=16)) as other:
        assert (await other.status()).running


@pytest.mark.parametrize("operation", [snapshot, checkpoint, fork, template, launch])
async def test_operation_is_done_or_refused_and_leaves_nothing(qemu, tmp_path, monkeypatch, operation):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk, outcomes = tmp_path / "vda.qcow2", []
    qemu.create(disk, 8 * MIB)
    argv = [word for word in map(str, [qemu.system, *CHEAP, *blockdev("vda", disk)]) if word != "-S"]
    async with qmpsnap.launch(argv) as vm:
        await vm.moments()  # the first look leaves a thread, which has descriptors of its own

        async def state():
            names = [*listing(tmp_path), *tmp_path.glob("qmpsnap-run-*")]
            return await vm.graph(), await vm.moments(), names, descriptors()

        before = await state()
        for free in (*range(1, 20, 6), *range(20, 84, 4)):
            refused = None
            try:
                with free_descriptors(free):
                    await operation(vm, tmp_path)
            except InvalidTarget as error:
                refused = error
            outcomes.append(refused is None)
            if refused is not None:
                facts = refused.changed, refused.left, refused.hint
                assert facts == (Changed.NO, (), "raise the limit: ulimit -n")
            assert await state() == before
        assert (await vm.status()).running
    assert outcomes == sorted(outcomes)
    assert {*outcomes} == {False, True}
