"""Why a guest is not running, in each run state that can be had; the guest is a boot sector."""

from __future__ import annotations

import json
import subprocess

import pytest

import qmpsnap
from integration.cli import Cli
from integration.known_images import QEMUS
from integration.machines import blockdev, wait_for
from qmpsnap.model.pause import Pause

# Writes 64 KiB after 64 KiB to its own disk by the BIOS: mov ax,4300h; mov dl,80h; mov si,packet; int 13h;
# add dword [packet+8],128; jmp; packet: 16 bytes, 127 sectors from 1000:0000 to sector 128.
WRITES = bytes.fromhex(
    "31c0 8ed8 8ed0 bc007c b80043 b280 be1e7c cd13 668106267c80000000 ebeb"
    "1000 7f00 0000 0010 8000000000000000"
)
PANICS = bytes.fromhex("ba0505 b001 ee f4 ebfd")  # mov dx,505h; mov al,1; out dx,al; hlt
BOOTS = ("-device", "virtio-blk-pci,drive=n,id=vda,bootindex=1,werror=stop")


def boots(qemu, file, code):
    """An image of 64 MiB that boots into the code."""
    sector = file.with_suffix(".raw")
    sector.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa")
    with sector.open("r+b") as opened:
        opened.truncate(64 << 20)
    qemu.img("convert", "-f", "raw", "-O", "qcow2", sector, file)
    sector.unlink()
    return str(file)


def node(file, **more):
    options = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": file} | more}
    return ("-blockdev", json.dumps(options))


def reaches(machine, state):
    wait_for(lambda: machine.qmp("query-status")["status"] == state, state)


async def test_status_says_why_the_guest_is_not_running_and_what_helps(machine, qemu, small, tmp_path):
    place = small("1m")
    file = boots(qemu, place / "a.qcow2", WRITES)
    with machine(*node(file), *BOOTS) as running:
        async with qmpsnap.connect(running.socket) as vm:
            paused = await vm.why_paused()
            assert (paused.state, paused.advice) == ("prelaunch", "qmpsnap cont starts it")
            await vm.cont()
            reaches(running, "io-error")
            cause = f"There was no space for a write to vda ({file})."
            advice = "make room there; then qmpsnap cont resumes the guest, and QEMU repeats the request"
            assert await vm.why_paused() == Pause("io-error", cause, advice, {"vda": "nospace"})
        cli = Cli(running)
        shown = " ".join(cli("status").out.split())
        assert shown == f"io-error {cause} next: {advice}"
        assert " ".join(cli("chain").out.split()).startswith(f"not running (io-error): {cause} vda: [")
        subprocess.run(["mount", "-o", "remount,size=80m", place], check=True)
        async with qmpsnap.connect(running.socket) as vm:
            await vm.cont()
            assert await vm.why_paused() is None
            await vm.stop()
            assert "qmpsnap cont resumes it" in (await vm.why_paused()).advice
            await vm.save(tmp_path / "state")
            paused = await vm.why_paused()
            assert (paused.state, "--after-migration" in paused.advice) == ("postmigrate", True)


@pytest.mark.parametrize("qemu", QEMUS[:1], ids=["oldest"])
async def test_other_run_states_have_their_cause(machine, qemu, tmp_path):
    file = boots(qemu, tmp_path / "a.qcow2", WRITES)
    error = {"driver": "blkdebug", "image": {"driver": "file", "filename": file}}
    error |= {"inject-error": [{"event": "write_aio", "iotype": "write", "errno": 5}]}
    options = json.dumps({"driver": "qcow2", "node-name": "n", "file": error})
    with machine("-blockdev", options, *BOOTS) as running:
        async with qmpsnap.connect(running.socket) as vm:
            await vm.cont()
            reaches(running, "io-error")
            paused = await vm.why_paused()
            assert paused.failed == {"vda": "failed"}
            assert paused.cause.startswith("A read or write of vda")
    panics = boots(qemu, tmp_path / "b.qcow2", PANICS)
    with machine(*node(panics), *BOOTS, "-device", "pvpanic", "-action", "panic=pause") as running:
        async with qmpsnap.connect(running.socket) as vm:
            await vm.cont()
            reaches(running, "guest-panicked")
            assert "panic" in (await vm.why_paused()).cause
    with machine(*blockdev("vda", qemu.create(tmp_path / "c.qcow2")), "-incoming", "defer") as running:
        async with qmpsnap.connect(running.socket) as vm:
            paused = await vm.why_paused()
            assert (paused.state, "qmpsnap restore" in paused.advice) == ("inmigrate", True)
