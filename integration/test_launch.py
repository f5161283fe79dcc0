"""A QEMU that is our child: how it ended is in every error."""

# A row that is broken into its arguments says less than one that is long:
# ruff: noqa: E501

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket

import pytest

import qmpsnap
from integration.cli import ROOT
from integration.machines import CHEAP, SOON, blockdev
from qmpsnap.helper import loaded, source_of


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-device", "nonsense-pci"), "'nonsense-pci' is not a valid device model name"),
        (("-device", "virtio-blk-pci,drive=none"), "none"),
        (("-nonsense",), "invalid option"),
        (("-blockdev", "qcow2,node-name=a,file.driver=file,file.filename=/missing"), "No such file"),
    ],
)
async def test_launch_with_a_bad_argument_has_qemu_s_words_its_status_and_the_name(qemu, arguments, words):
    with pytest.raises(qmpsnap.ConnectFailed) as caught:
        async with qmpsnap.launch([qemu.system, *CHEAP, *arguments], name="vm1"):
            pass
    assert caught.value.message.startswith("vm1 ")
    assert "ended with status 1: qemu-system-x86_64: " in caught.value.message
    assert words in caught.value.message


MEMORY = ("-object", "memory-backend-ram,id=pc.ram,size=64M")
JSON_MEMORY = ("-object", '{{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}}')


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((*MEMORY, *MEMORY), "leave out the machine's own memory object"),
        ((*MEMORY, *JSON_MEMORY), "leave out the machine's own memory object"),
        (("-qmp", "tcp:127.0.0.1:{},server=on,wait=off"), "another process has that address"),
        (("-nic", "user,hostfwd=tcp:127.0.0.1:{}-:22"), "another process has that address"),
    ],
    ids=["memory", "JSON", "monitor", "port"],
)
async def test_launch_of_what_another_qemu_has_already_says_what_to_do(qemu, arguments, hint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.format(taken.getsockname()[1]) for word in arguments]
        with pytest.raises(qmpsnap.ConnectFailed) as caught:
            async with qmpsnap.launch([qemu.system, *CHEAP, *words]):
                pass
    assert hint in caught.value.hint


async def test_lost_link_of_a_child_says_how_it_ended(qemu, tmp_path):
    disk = qemu.create(tmp_path / "vda.qcow2")
    async with qmpsnap.launch([qemu.system, *CHEAP, *blockdev("vda", disk)], name="vm1") as vm:
        waiting = asyncio.create_task(vm.wait_lost())
        await asyncio.sleep(0)
        os.kill(vm.pid, signal.SIGKILL)
        async with asyncio.timeout(SOON):
            assert await waiting == "QEMU ended by signal 9 (SIGKILL): it printed nothing"
        with pytest.raises(qmpsnap.LinkLost) as caught:
            await vm.snapshot("n1")
    assert caught.value.message.startswith("lost vm1 with ")
    assert caught.value.message.endswith(": QEMU ended by signal 9 (SIGKILL): it printed nothing")


async def test_machine_without_a_cpu_can_be_worked_on(qemu, tmp_path):
    """`-M none`: no board, no CPU; query-cpus-fast gives an empty list."""
    disk = qemu.create(tmp_path / "vda.qcow2")
    argv = [qemu.system, "-M", "none", "-nodefaults", "-display", "none", "-S"]
    argv += ["-drive", f"if=none,id=d,file={disk}"]
    async with qmpsnap.launch(argv) as vm:
        taken = await vm.snapshot("n1")
        assert (await vm.graph()).chains() == taken.chains
        await vm.checkpoint("c1", mode="internal")
        assert {one.name for one in (await vm.moments()).moments} == {"n1", "c1"}
        await vm.delete("c1")
        active = (await vm.graph()).disks["d"].active.file
        await vm.save(tmp_path / "m")
    argv[-1] = f"if=none,id=d,file={active}"
    async with qmpsnap.launch([*argv, "-incoming", "defer"]) as vm:
        await vm.restore(tmp_path / "m")
        assert (await vm.status()).state in {"paused", "prelaunch"}


LINES = {
    "pc": "-M pc a.qcow2 -cdrom b.raw -hdb c.qcow2 -fda d.raw -drive file=e.qcow2 -drive if=virtio,file=f.qcow2 "
    "-vnc :DISPLAY -qmp unix:q,server,nowait -serial unix:s,server,nowait -pidfile pid "
    "-net nic -net user,hostfwd=tcp:127.0.0.1:PORT-:22",
    "q35": "-M q35 a.qcow2 -hdb c.qcow2 -drive if=pflash,format=raw,readonly=on,file=b.raw "
    "-drive if=pflash,format=raw,file=d.raw -drive if=none,id=x,file=e.qcow2 -device virtio-scsi-pci -device scsi-hd,drive=x "
    "-chardev socket,id=c,path=s,server=on,wait=off,logfile=log -serial chardev:c -monitor unix:m,server,nowait",
    "without ids": "-M q35 -nodefaults -device virtio-rng-pci -drive if=virtio,file=a.qcow2 "
    "-blockdev qcow2,node-name=n1,file.driver=file,file.filename=c.qcow2 -device virtio-blk-pci,drive=n1 "
    "-blockdev qcow2,node-name=n2,file.driver=file,file.filename=e.qcow2 "
    """-device '{"driver":"virtio-blk-pci","drive":"n2"}' -drive if=none,id=dd,file=f.qcow2 -device virtio-blk-pci,drive=dd""",
    "nodes": "-M q35,pflash0=p0,pflash1=p1,memory-backend=mm -object memory-backend-file,id=mm,size=64M,mem-path=mem,share=on "
    "-blockdev raw,node-name=p0,read-only=on,file.driver=file,file.filename=b.raw "
    "-blockdev raw,node-name=p1,file.driver=file,file.filename=d.raw "
    "-blockdev file,node-name=f2,filename=c.qcow2 -blockdev qcow2,node-name=q2,read-only=on,file=f2 "
    "-blockdev file,node-name=f1,filename=a.qcow2 -blockdev qcow2,node-name=q1,file=f1,backing=q2 "
    "-object throttle-group,id=tg -blockdev throttle,throttle-group=tg,node-name=t1,file=q1 -device virtio-blk-pci,id=vda,drive=t1",
}  # fmt: skip


def free_ports():
    """Free ports below those that the kernel gives away, which a test beside this one may be given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for port in range(10000 + worker * 500, 10500 + worker * 500):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            yield port


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
async def test_another_qemu_of_a_command_line_runs_beside_the_first_on_images_of_its_own(
    qemu, tmp_path, line
):
    """What is known of QEMU's names of drives, and what only one process can have, on the real one."""
    for name in "acef":
        qemu.create(tmp_path / f"{name}.qcow2")
    for name in "bd":
        qemu.create(tmp_path / f"{name}.raw", form="raw", size=1 << 20)
    display, port, *_ = free_ports()
    line = line.replace("DISPLAY", str(display - 5900)).replace("PORT", str(port))
    argv = [qemu.system, "-m", "64", "-display", "none", "-S", *shlex.split(line)]
    (tmp_path / "own").mkdir()
    async with qmpsnap.launch(argv, cwd=tmp_path) as vm:
        await vm.snapshot("n1")
        disks = {}
        for name, disk in (await vm.graph()).disks.items():
            if len(disk.layers) > 1:
                below = disk.layers[1]
                disks[name] = str(tmp_path / f"{name}.own")
                qemu.img("create", "-q", "-f", "qcow2", "-b", below.file, "-F", below.format, disks[name])
        assert len(disks) > 1
        start = qmpsnap.Start(disks=disks, directory=str(tmp_path / "own"), paused=True)
        async with vm.launcher(start) as other:
            graph = await other.graph()
            assert {name: graph.disks[name].active.file for name in disks} == disks
            assert (tmp_path / "own/qmp").is_socket()
            assert (tmp_path / "own/s").is_socket() == ("path=s" in line or "unix:s" in line)
    assert not (tmp_path / "own/qmp").exists()


async def test_script_of_the_guide_starts_another_qemu_that_loads_a_checkpoint(qemu, tmp_path, monkeypatch):
    script = tmp_path / "start vm1"
    script.write_text((ROOT / "docs/howto/another-qemu.md").read_text().split("```sh\n")[1].split("```")[0])
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")
    disk = qemu.create(tmp_path / "vda.qcow2")
    monkeypatch.setenv("QMPSNAP_DISK_vda", disk)
    launcher = qmpsnap.launcher_of([script])
    async with qmpsnap.launch([script, "-S"]) as vm:
        await vm.checkpoint("c1")
        async with vm.reverted("c1", launcher) as new:
            assert new.launcher is launcher
            assert (await new.graph()).disks["vda"].layers[1].file == disk
        async with loaded(await source_of(vm, "c1"), launcher) as helper:
            assert len((await helper.graph()).disks["vda"].layers) == 2
