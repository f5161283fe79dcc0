"""What tests of VM state in files look at: settings, open files, run states, and the files themselves."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.machines import blockdev, listing, traced
from qmpsnap.errors import Changed, Refused
from qmpsnap.run.memory_files import look

ENDINGS = {"stop": "memory", "background": "memory", "in-place": "vmstate.qcow2"}
"""What the file of VM state is called, by mode."""

MODES = tuple(ENDINGS)


def status(running):
    return running.qmp("query-status")["status"]


def settings(running):
    """What a migration does in this QEMU and how, and the files that it was given."""
    capabilities = {one["capability"]: one["state"] for one in running.qmp("query-migrate-capabilities")}
    return capabilities, running.qmp("query-migrate-parameters")["max-bandwidth"], running.qmp("query-fdsets")


def opened(running):
    """Files of VM state that QEMU has open."""
    found = []
    for entry in Path(f"/proc/{running.pid}/fd").iterdir():
        path = os.readlink(entry)  # noqa: PTH115 - it need not lead to a file
        if ".memory" in path or ".vmstate" in path:
            found.append(path)
    return found


def note(file):
    """The note at a memory file's end; the file has to be whole."""
    fact = look([str(file)])[str(file)]
    assert fact.note is not None, fact.problem
    return fact.note


async def refuses(running, vm, intent, error, text, *, folder=None):
    """Demand that an intent is refused by that error, and that nothing is sent, made or changed."""
    folder = folder or running.folder

    def now():
        return listing(folder), running.roots(), settings(running), status(running)

    before = now()
    with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
        await vm.run(await vm.plan(intent))
    assert (type(caught.value), caught.value.changed, caught.value.exit_code) == (error, Changed.NO, 3)
    assert (sent, now()) == ([], before)
    return caught.value


@contextmanager
def unlike_its_checkpoint(machine, active):
    """A running machine with less memory than when c1 was taken inside its disk: a load fails late."""
    with machine(*blockdev("vda", active)) as running:
        running.qmp.hmp("savevm c1")
    with machine(*blockdev("vda", active), extra=("-m", "96")) as running:
        running.qmp("cont")
        yield running


async def take(vm, name, kind):
    """Take a moment that is gone back to in place: of disks alone ("disks"), or with the memory."""
    if kind == "disks":
        return await vm.snapshot(name)
    return await vm.checkpoint(name, mode=kind)


def fill(place, leave):
    """Fill a small file system up to so many bytes; return the file that does it."""
    file = Path(place) / "filler"
    with file.open("wb") as filler:
        space = os.statvfs(place)
        left = space.f_bavail * space.f_frsize - leave
        while left > 0:
            left -= filler.write(bytes(min(left, 1 << 20)))
    return file


def patterns(qemu, file, block):
    """The pattern of each block of a qcow2 image, as it is read; QEMU may have it open."""
    raw = Path(f"{file}.raw")
    qemu.img("convert", "-U", "-f", "qcow2", "-O", "raw", file, raw)
    data = raw.read_bytes()
    raw.unlink()
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    assert all(len(set(one)) == 1 for one in blocks)
    return [one[0] for one in blocks]
