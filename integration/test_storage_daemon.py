"""A trial: a real qemu-storage-daemon as a target, for images of a machine that is off.

`Daemon` shows what such a target has to have of its own: how images are opened, which node each disk reads
from, and how a graph is read where no device says it. All the rest, planners and executor among them, is that
of a running QEMU.
"""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.names import node_name
from qmpsnap.model.parse import GraphReplies, parse_graph
from qmpsnap.model.step import MoveRoot, PutOverlays
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.session import connect
from qmpsnap.vm import VM

pytestmark = pytest.mark.timeout(120)


class Daemon(LiveTarget):
    """Images that a storage daemon has open.

    Args:
        socket: Path of its monitor.
        roots: node-name of each disk's root.
    """

    def __init__(self, socket, roots):
        super().__init__(lambda: connect(socket), again=False, shared_fs=None, images=Images(), name="images")
        self.roots = dict(roots)

    async def _open(self, stack):
        await super()._open(stack)
        self.guest = None

    async def refuse_migrated(self):
        """Nothing migrates images alone."""

    async def perform(self, step):
        """Do the step, and note which root a disk has from then on: no device knows it."""
        seconds = await super().perform(step)
        match step.effect:
            case PutOverlays(overlays):
                self.roots |= {overlay.disk: overlay.node for overlay in overlays}
            case MoveRoot(root):
                self.roots[root.disk] = root.node
        return seconds

    async def graph(self):
        """The chains, joined by file names: without devices query-blockstats tells no backing nodes."""
        named = await self.session.query("query-named-block-nodes", {"flat": True})
        by_name = {node["node-name"]: node for node in named}
        by_file = {node["file"]: node["node-name"] for node in named if node["drv"] == "qcow2"}
        files = {node["file"]: node["node-name"] for node in named if node["drv"] == "file"}

        def nested(name):
            below = by_file.get(by_name[name].get("backing_file"))
            return {"node-name": name, **({"backing": nested(below)} if below else {})}

        block = [{"device": "", "qdev": d, "inserted": by_name[root]} for d, root in self.roots.items()]
        stats = [{"device": "", "qdev": disk, **nested(root)} for disk, root in self.roots.items()]
        graph = parse_graph(GraphReplies.read(block, stats, named), cwd="/", real={})
        disks = {
            name: replace(disk, layers=tuple(replace(one, file_node=files[one.file]) for one in disk.layers))
            for name, disk in graph.disks.items()
        }
        return replace(graph, disks=Frozen(disks))


@asynccontextmanager
async def opened(qemu, folder, *, kill=False, **disks):
    """A VM over images, base first, of each disk; every layer is opened by itself, to be closed by itself."""
    socket = folder / "qsd.sock"
    words = ["--chardev", f"socket,id=m,path={socket},server=on,wait=off", "--monitor", "chardev=m"]
    process = subprocess.Popen([qemu.directory / "qemu-storage-daemon", *words])
    try:
        while not socket.exists():
            await asyncio.sleep(0.02)
        roots, number = {}, 0
        nodes = []
        for disk, files in disks.items():
            below = None
            for file in files:
                number += 1
                name = node_name(f"{number:08x}", owned=True)
                nodes.append(
                    {
                        "driver": "qcow2",
                        "node-name": name,
                        "read-only": file != files[-1],
                        "backing": below,
                        "file": {"driver": "file", "filename": file, "auto-read-only": True},
                    }
                )
                below = name
            roots[disk] = below
        async with Daemon(str(socket), roots) as target:
            for node in nodes:
                await target.execute("blockdev-add", node)
            yield VM(target)
            if not kill:
                await target.execute("quit")
                process.wait(10)
            process.kill()
    finally:
        process.kill()
        process.wait()


def backing(qemu, file):
    return [line for line in qemu.img("info", file).splitlines() if line.startswith("backing file:")]


async def test_snapshot_stream_and_commits_of_images(qemu, images, tmp_path):
    made = images("base <- s1 <- s2")
    base, s1, s2 = made.files
    whole = made.content[-1]
    async with opened(qemu, tmp_path, vda=made.files) as vm:
        done = await vm.snapshot("n1")
        n1 = done.active["vda"]
        assert done.chains["vda"] == (n1, s2, s1, base)
        assert [moment.name for moment in (await vm.moments()).moments] == ["n1"]

        done = await vm.stream("vda", into="s2", base="base")
        assert done.chains["vda"] == (n1, s2, base)
        Path(s1).unlink()  # it is backed by the base, and needed no more

        done = await vm.commit("vda", top="s2", base="base")
        assert (done.chains["vda"], done.invalid) == ((n1, base), (f"{s2}.invalid",))

        await vm.snapshot("n2")
        done = await vm.commit("vda")
        assert done.chains["vda"] == (base,)
        assert await vm.jobs.list() == ()
        assert {node.file for node in (await vm.graph()).nodes.values()} == {base}
        with pytest.raises(Unsupported, match="images has no guest"):
            await vm.status()
    assert qemu.read(base) == whole
    assert backing(qemu, base) == []


@pytest.mark.parametrize("operation", ["stream", "commit"])
async def test_what_was_merged_is_on_the_disk_when_the_daemon_is_killed(qemu, images, tmp_path, operation):
    made = images("base <- s1 <- s2")
    async with opened(qemu, tmp_path, kill=True, vda=made.files) as vm:
        if operation == "stream":
            done = await vm.stream("vda")
        else:
            done = await vm.commit("vda", top="s1", base="base")
    assert qemu.read(done.chains["vda"][0]) == made.content[-1]
    if operation == "stream":
        assert backing(qemu, made.files[-1]) == []


@pytest.mark.parametrize("sync", ["full", "top"])
async def test_mirror_of_images(qemu, images, tmp_path, sync):
    made = images("base <- s1")
    base, s1 = made.files
    copy = str(tmp_path / "copy.qcow2")
    async with opened(qemu, tmp_path, vda=made.files) as vm:
        done = await vm.mirror("vda", copy, ending="finish", sync=sync)
        assert done.chains["vda"] == (s1, base)
        pivot = str(tmp_path / "pivot.qcow2")
        done = await vm.mirror("vda", pivot, ending="pivot", sync=sync)
        assert done.chains["vda"] == ((pivot,) if sync == "full" else (pivot, base))
        files = {node.file for node in (await vm.graph()).nodes.values()}
        assert files == {*done.chains["vda"]}
    assert qemu.read(copy) == qemu.read(pivot) == made.content[-1]
