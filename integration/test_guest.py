"""The guest itself: what the other tests stand on."""

from __future__ import annotations

import json
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from qmpsnap.errors import ConnectFailed, GuestFailed
from qmpsnap.run.process import start_qemu
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_argv

MATRIX = subprocess.run(
    [Path(__file__).parents[1] / "scripts/qemu-matrix"], capture_output=True, text=True, check=True
).stdout.splitlines()


@pytest.fixture(params=[line.split()[1] for line in MATRIX], ids=[line.split()[0] for line in MATRIX])
def qemu(request) -> Path:
    return Path(request.param)


class Machine(NamedTuple):
    process: object
    port: Path
    disks: list[Path]


@asynccontextmanager
async def machine(qemu: Path, directory: Path, *disks: GuestDisk, **options):
    for disk in disks:
        create = [qemu / "qemu-img", "create", "-q", "-f", disk.format, disk.file, "16M"]
        await anyio.run_process(create)
    argv = guest_argv(
        qemu / "qemu-system-x86_64",
        disks,
        image=find_guest_image(),
        port=directory / "port",
        console=directory / "console",
        **options,
    )
    async with start_qemu(argv) as process:
        yield Machine(process, directory / "port", [disk.file for disk in disks])


def disk(directory: Path, name: str = "vda", **options) -> GuestDisk:
    image_format = options.setdefault("format", "raw")
    return GuestDisk(name=name, file=directory / f"{name}.{image_format}", **options)


async def counted_past(writer, count):
    """Return when the writer has written more blocks than that."""
    with anyio.fail_after(60):
        while await writer.count() <= count:
            await anyio.sleep(0.05)


class Monitor:
    """As little QMP as these tests need."""

    def __init__(self, process) -> None:
        self._socket = process.socket
        self._received = b""

    async def execute(self, command: str, **arguments):
        self._socket.send(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            while b"\n" not in self._received:
                await anyio.wait_readable(self._socket)
                self._received += self._socket.recv(65536)
            line, _, self._received = self._received.partition(b"\n")
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer


async def raw(qemu: Path, file: Path, to: Path) -> Path:
    """The content of an image that is in use no more, as a raw file."""
    await anyio.run_process([qemu / "qemu-img", "convert", "-O", "raw", file, to])
    return to


def count_in(writer, file: Path, *, low: int, high: int) -> int:
    with file.open("rb") as image:
        return writer.writes.count_in(image, low=low, high=high)


@pytest.mark.one_qemu
async def test_guest_is_there_again_after_a_reset_and_gone_after_poweroff(qemu, tmp_path):
    async with machine(qemu, tmp_path, disk(tmp_path)) as vm, open_guest(vm.port) as guest:
        await guest.run("echo written > /dev/vda; sync; echo lost > /tmp/file")
        boot = await guest.wait_ready()
        await guest.reset()
        assert await guest.wait_ready() != boot
        assert await guest.run("head -n 1 /dev/vda; cat /tmp/file || true") == (
            "written\ncat: can't open '/tmp/file': No such file or directory"
        )
        await guest.poweroff()
        with anyio.fail_after(60):
            assert await vm.process.wait() == 0
        with pytest.raises(GuestFailed, match="port was closed"):
            await guest.run("true")


@pytest.mark.one_qemu
@pytest.mark.parametrize("kind", ["q35", "pc"])
async def test_guest_has_a_disk_of_each_bus_and_can_mount_it(qemu, tmp_path, kind):
    disks = [
        disk(tmp_path, "virtio0"),
        disk(tmp_path, "virtio1", legacy=True, format="qcow2"),
        disk(tmp_path, "scsi0", bus="scsi"),
        disk(tmp_path, "scsi1", bus="scsi"),
        disk(tmp_path, "ide0", bus="ide", device="werror=report"),
        disk(tmp_path, "ide1", bus="ide"),
    ]
    async with machine(qemu, tmp_path, *disks, machine=kind) as vm, open_guest(vm.port) as guest:
        devices = [await guest.device(each.name) for each in disks]
        assert devices[:2] == ["/dev/vda", "/dev/vdb"]
        assert sorted(devices[2:]) == ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd"]
        for device in devices:
            await guest.run(f"mke2fs {device} > /dev/null 2>&1 && mount -t ext4 {device} /mnt && umount /mnt")
        with pytest.raises(GuestFailed, match="no disk with serial 'vdx'"):
            await guest.device("vdx", limit=0.1)


@pytest.mark.one_qemu
async def test_writer_has_written_exactly_what_it_counted_on_each_bus(qemu, tmp_path):
    disks = [disk(tmp_path, f"{bus}0", bus=bus) for bus in ("virtio", "scsi", "ide")]
    async with machine(qemu, tmp_path, *disks) as vm, open_guest(vm.port) as guest:
        writers = [
            await guest.start_writer(await guest.device(each.name), seed=seed)
            for seed, each in enumerate(disks)
        ]
        for writer in writers:
            await counted_past(writer, 0)
        lows = [await writer.count() for writer in writers]
        counts = [await writer.stop() for writer in writers]
        gaps = [await writer.longest_gap() for writer in writers]
        await guest.poweroff()
        await vm.process.wait()
    assert all(0 < low <= count for low, count in zip(lows, counts, strict=True))
    assert all(gap > 0 for gap in gaps)
    for writer, file, count in zip(writers, vm.disks, counts, strict=True):
        assert count_in(writer, file, low=count, high=count) == count


@pytest.mark.one_qemu
async def test_writer_is_at_a_count_between_two_when_its_disk_is_snapshotted(qemu, tmp_path):
    base = disk(tmp_path, format="qcow2")
    async with machine(qemu, tmp_path, base, disk(tmp_path, "vdb")) as vm, open_guest(vm.port) as guest:
        monitor = Monitor(vm.process)
        await monitor.execute("qmp_capabilities")
        writer = await guest.start_writer("/dev/vda", blocks=64, burst=1)
        other = await guest.start_writer("/dev/vdb", seed=1, pause_s=0.01)
        await counted_past(writer, 0)
        low = await writer.count()
        overlay = tmp_path / "overlay.qcow2"
        target = {"snapshot-file": str(overlay), "format": "qcow2", "snapshot-node-name": "overlay"}
        await monitor.execute("blockdev-snapshot-sync", **{"node-name": "vda-format", **target})
        high = await writer.count() + 1
        await counted_past(writer, high)
        end, other_end = await writer.stop(), await other.stop()
        await guest.poweroff()
        await vm.process.wait()
    assert (
        low <= count_in(writer, await raw(qemu, base.file, tmp_path / "r0"), low=low, high=high) <= high < end
    )
    assert count_in(writer, await raw(qemu, overlay, tmp_path / "r1"), low=end, high=end) == end
    assert count_in(other, vm.disks[1], low=other_end, high=other_end) == other_end


@pytest.mark.one_qemu
async def test_stop_raises_when_a_write_had_failed(qemu, tmp_path):
    node = {"driver": "blkdebug", "node-name": "bad", "image": {"driver": "null-co", "size": 16 << 20}}
    node["inject-error"] = [{"event": "none", "iotype": "write", "errno": 5, "sector": 128 * 200}]
    async with machine(qemu, tmp_path, disk(tmp_path)) as vm, open_guest(vm.port) as guest:
        monitor = Monitor(vm.process)
        await monitor.execute("qmp_capabilities")
        await monitor.execute("blockdev-add", **node)
        await monitor.execute("qom-set", path="/machine/peripheral/vda", property="drive", value="bad")
        writer = await guest.start_writer("/dev/vda")
        await guest.run("while [ ! -e /run/writer/vda/ended ]; do usleep 10000; done")
        with pytest.raises(GuestFailed, match=r"ended by itself: .*error"):
            await writer.stop()


async def test_start_qemu_says_what_qemu_said_when_it_does_not_start(qemu):
    with pytest.raises(ConnectFailed, match="nonsense"):
        async with start_qemu([str(qemu / "qemu-system-x86_64"), "-m", "nonsense"]):
            pass
