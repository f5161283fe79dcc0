"""The Python of the howtos, as it is printed, on QEMUs without a guest."""

from __future__ import annotations

import asyncio
import re
import textwrap

import pytest

import qmpsnap
from integration.cli import ROOT
from integration.machines import drive

pytestmark = pytest.mark.one_qemu


def blocks(howto):
    """The blocks of Python of a howto."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "howto" / howto).read_text(), re.DOTALL)


def example(block, **names):
    """A block as a coroutine function, which may use these names."""
    names["qmpsnap"] = qmpsnap
    exec(f"async def example():\n{textwrap.indent(block, '    ')}", names)
    return names["example"]


@pytest.fixture
def arguments(qemu):
    return [str(qemu.system), "-M", "q35", "-m", "64", "-nodefaults", "-display", "none"]


def disk(file):
    node = f"qcow2,node-name=root,file.driver=file,file.filename={file}"
    return ["-blockdev", node, "-device", "virtio-blk-pci,drive=root,id=vda"]


async def test_each_block_on_embedding_runs(qemu, images, machine, tmp_path, monkeypatch):
    """Those that start QEMU themselves, then the others on one machine, each in a directory of its own."""
    imports, *all_blocks = blocks("embedding.md")
    names = {}
    exec(imports, names)
    assert len(all_blocks) == 16

    def enter(number):
        place = tmp_path / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        return place

    monkeypatch.setenv("PATH", str(qemu.directory), prepend=":")
    for number, block in enumerate(all_blocks):
        if "qmpsnap.launch(" in block:
            qemu.create(enter(number) / "vda.qcow2", size="16M")
            await example(block, **names)()
    printed = asyncio.Event()
    disks = [*drive("vda", images("a <- a1").active), *drive("vdb", images("b", folder="b").active)]
    with machine(*disks) as running:
        for number, block in enumerate(all_blocks):
            if "qmpsnap.launch(" in block:
                continue
            place = enter(number)
            (place / "qmp.sock").symlink_to(running.socket)
            if "QMPClient(" in block or 'connect("qmp.sock"' in block:
                await example(block, **names)()
                continue
            if "replay(" in block:
                async with qmpsnap.connect("qmp.sock", record="session.jsonl") as vm:
                    await vm.status()
                await example(block, **names)()
                continue
            async with qmpsnap.connect("qmp.sock") as vm:
                run = example(block, **names, vm=vm, print=lambda *_: printed.set())
                if "vm.watch()" not in block:
                    await vm.snapshot(f"layer-{number}")
                    await run()
                    continue
                printed.clear()
                task = asyncio.create_task(run())
                await printed.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert running.qmp("query-jobs") == []


async def test_each_block_on_checkpoints_runs(qemu, arguments, tmp_path, capsys):
    in_place, background, launcher = blocks("checkpoints.md")
    base = qemu.create(tmp_path / "vda.qcow2", size="16M")

    def another(start):
        return qmpsnap.launch([*arguments, *disk(start.disks["vda"]), *start.arguments])

    async with qmpsnap.launch([*arguments, *disk(base)]) as vm:
        await example(in_place, vm=vm)()
        await example(background, vm=vm, launcher=another)()
        assert "'working' reverts in place: its memory is in a store" in capsys.readouterr().out
        await example(launcher.replace("working", "again"), vm=vm, machine=arguments)()


async def test_each_block_on_clones_runs(qemu, tmp_path):
    template, fork = blocks("clones.md")
    disks = [qmpsnap.MachineDisk("vda", qemu.create(tmp_path / "vda.qcow2", size="16M"))]
    machine = qmpsnap.Machine(qemu=qemu.system, memory_mib=64, disks=disks)
    seen = []

    async def try_something(vm):
        seen.append((await vm.status()).running)

    async with qmpsnap.launch(machine) as vm:
        await example(fork, vm=vm, try_something=try_something)()
    assert seen == 5 * [True]

    def start(start):
        return qmpsnap.launch(machine, start=start)

    template = template.replace("/srv/templates/web", str(tmp_path / "web"))
    await example(template, machine=machine, start=start)()
    assert not (tmp_path / "web").exists()


async def test_block_on_groups_runs(qemu, arguments, tmp_path, monkeypatch, capsys):
    whole, recover = blocks("groups.md")
    monkeypatch.chdir(tmp_path)
    lines = [[*arguments, *disk(qemu.create(tmp_path / name, size="16M"))] for name in ("a.qcow2", "b.qcow2")]
    async with qmpsnap.launch(lines[0], qmp="web.sock"), qmpsnap.launch(lines[1], qmp="db.sock"):
        await example(whole)()
        async with qmpsnap.connect("web.sock") as web, qmpsnap.connect("db.sock") as db:
            await example(recover, group=qmpsnap.Group({"web": web, "db": db}))()
    assert "of each other" in capsys.readouterr().out
