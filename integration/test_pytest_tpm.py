"""A TPM in a shared machine: swtpm's state is part of what QEMU saves, so it is reset with the memory."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

import qmpsnap
from qmpsnap import MachineDisk
from qmpsnap.testing.machine import guest_machine
from qmpsnap.testing.shared.pool import Pool
from qmpsnap.testing.shared.source import Overrides, source_of

pytestmark = pytest.mark.one_qemu

PCR = "cat /sys/class/tpm/tpm0/pcr-sha256/16"


def octal(command):
    return "".join(f"\\{byte:03o}" for byte in command)


def sent(code, *parts):
    """A command of TPM 2.0 with an empty authorisation, as bytes."""
    handle, *rest = parts
    body = handle + struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0) + b"".join(rest)
    return struct.pack(">HII", 0x8002, 10 + len(body), code) + body


# TPM2_PCR_Extend of PCR 16 (lost with a reset), TPM2_NV_DefineSpace of an index (kept by a TPM for good).
EXTEND = sent(0x182, struct.pack(">I", 16), struct.pack(">IH", 1, 0x000B) + b"x" * 32)
DEFINE = sent(
    0x12A, struct.pack(">I", 0x40000001), struct.pack(">HHIHIHH", 0, 14, 0x01500001, 0x0B, 0x00060006, 0, 8)
)


def answered(command):
    """A script that sends a command, and prints the code of the TPM's answer: 00 00 00 00 is success."""
    return (
        f"exec 5<> /dev/tpm0; printf '{octal(command)}' >&5; "
        "dd bs=4096 count=1 <&5 2> /dev/null | head -c 10 | tail -c 4 | od -An -tx1; exec 5>&-"
    )


@pytest.fixture
def launcher(qemu):
    program = shutil.which("swtpm", path=f"{os.environ['PATH']}:/usr/local/bin")
    if program is None:
        pytest.skip("swtpm is not installed")

    @asynccontextmanager
    async def start(wanted):
        place = Path(wanted.directory)
        state = place / "tpm"
        state.mkdir()
        words = [program, "socket", "--tpm2", "--tpmstate", f"dir={state}"]
        words += ["--ctrl", f"type=unixio,path={state}/socket", "--flags", "startup-clear"]
        disk = MachineDisk(name="vda", file=wanted.disks["vda"])
        machine = guest_machine(qemu.system, [disk], memory_mib=128)
        argv = machine.argv(
            console="null",
            ports={name: f"socket,path={place / name},server=on,wait=off" for name in machine.ports},
        )
        argv += ["-chardev", f"socket,id=tpm,path={state}/socket", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        argv += ["-device", "tpm-tis,tpmdev=tpm0", *wanted.arguments]
        with subprocess.Popen(words) as tpm:
            try:
                with anyio.fail_after(60):
                    while not (state / "socket").exists():
                        await anyio.sleep(0.02)
                async with qmpsnap.launch(argv) as vm:
                    yield vm
            finally:
                tpm.terminate()

    return start


@pytest.mark.parametrize("reset", ["memory", "clone"])
def test_tpm_is_reset_with_the_memory(qemu, tmp_path, launcher, reset):
    image = qemu.create(tmp_path / "vda.qcow2", size="16M")
    source = source_of(launcher, {"vda": image}, None, overrides=Overrides())
    with Pool(reset=reset) as pool:
        for test in ("first", "second"):
            with closing(pool.begin("tpm", source, None, test=test)) as in_use:
                guest = in_use.guest
                assert guest.run(PCR) == "0" * 64
                assert guest.run(answered(EXTEND)).split() == ["00"] * 4
                assert guest.run(PCR) != "0" * 64
                assert guest.run(answered(DEFINE)).split() == ["00"] * 4
        assert (len(pool.accounts[0].resets), pool.accounts[0].again) == (1, [])
