"""The guest's commands and writers, on one guest that the plugin puts back before each test."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path

import anyio
import pytest

from integration.known_images import MIB, QEMUS
from qmpsnap.errors import GuestFailed
from qmpsnap.model.machine_description import MachineDisk
from qmpsnap.testing.guest import open_guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import guest_machine


@pytest.fixture(scope="module", params=QEMUS, ids=[qemu.short for qemu in QEMUS])
def qmpsnap_machine(request, tmp_path_factory):
    file = request.param.create(tmp_path_factory.mktemp("images") / "vda.qcow2", size="16M")
    return guest_machine(request.param.system, [MachineDisk(name="vda", file=file)], memory_mib=128)


async def test_run_returns_what_the_guest_printed_and_raises_when_it_fails(guest):
    assert await guest.run("echo one; echo two >&2") == "one\ntwo"
    assert await guest.run("printf %s 'sp  ace \"q\" $HOME \\n é'") == 'sp  ace "q" $HOME \\n é'
    program = await guest.run_bytes("head -c 100000 /bin/busybox")
    assert (len(program), program[:4]) == (100000, b"\x7fELF")
    summed = await guest.run("head -c 100000 /bin/busybox | sha256sum")
    assert summed.split()[0] == hashlib.sha256(program).hexdigest()
    assert await guest.run("") == ""
    assert await guest.quick("echo $((6 * 7))") == "42"
    with pytest.raises(GuestFailed, match="ended with status 3: no") as failed:
        await guest.run("echo no; exit 3")
    assert (failed.value.status, failed.value.output) == (3, "no")
    with pytest.raises(GuestFailed, match="killed at its limit"):
        await guest.run("sleep 60", limit=1)
    with pytest.raises(ValueError, match="EOT"):
        await guest.run("echo \x04")
    assert await guest.run("echo still here") == "still here"


async def test_what_a_script_leaves_running_prints_into_no_other_answer(guest):
    later = "(while [ ! -e /tmp/go ]; do usleep 10000; done; echo late; touch /tmp/gone) &"
    assert await guest.run(f"{later}\necho now") == "now"
    assert (
        await guest.run("touch /tmp/go; while [ ! -e /tmp/gone ]; do usleep 10000; done; echo next") == "next"
    )


async def test_script_that_is_killed_takes_all_that_it_has_started_with_it(guest):
    await guest.run("sleep 8888 &")
    with pytest.raises(GuestFailed, match="killed at its limit"):
        await guest.run("setsid sleep 9998 & sleep 9999 | cat", limit=1)
    assert await guest.run("ps -o args | grep '^sleep'") == "sleep 8888"


async def test_guest_answers_the_next_client_when_one_left_in_the_middle_of_an_answer(vm, qmpsnap_directory):
    async with open_guest(qmpsnap_directory / PORT_NAME) as guest:
        with anyio.move_on_after(0.1) as left:
            await guest.run("head -c 1000000 /dev/zero; sleep 1")
        assert left.cancelled_caught
        assert await guest.run("echo same client") == "same client"
        with anyio.move_on_after(0.1):
            await guest.run("sleep 1; head -c 1000000 /dev/zero")
    for _ in range(3):
        async with open_guest(qmpsnap_directory / PORT_NAME) as guest:
            assert await guest.run("echo next client") == "next client"


async def test_guest_answers_when_the_machine_stood_still_in_the_middle(vm, guest):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(guest.run, "usleep 300000; echo slept"))
        await vm.stop()
        await anyio.sleep(0.5)
        await vm.cont()
    assert await guest.run("echo on") == "on"


def test_plain_test_forks_its_machine(vm):
    before = vm.graph().chains()
    with vm.fork(2) as children:
        assert [child.vm.status().running for child in children] == [True, True]
    assert vm.graph().chains() == before


async def test_children_have_the_memory_of_a_guest_that_writes_while_it_is_forked(vm, guest):
    """The file of that memory takes no space for what is zero."""
    await guest.run("head -c 8000000 /dev/urandom > /tmp/random; sha256sum /tmp/random > /tmp/sum")
    await guest.run("while head -c 2000000 /tmp/random > /tmp/copy; do echo >> /tmp/count; done &")
    count = "wc -c < /tmp/count"
    async with vm.fork(2) as children:
        async for child in children:
            argv = Path(f"/proc/{child.vm.pid}/cmdline").read_text()
            (socket,) = re.findall(rf"path=([^,\0]*/{PORT_NAME})", argv)
            async with open_guest(socket) as other:
                assert await other.run("sha256sum -c /tmp/sum") == "/tmp/random: OK"
                before = await other.run(count)
                more = f'until [ "$({count})" -gt {before} ]; do usleep 10000; done; echo more'
                assert await other.run(more) == "more"
        maps = Path(f"/proc/{child.vm.pid}/maps").read_text().splitlines()
        (file,) = {line.split()[-1] for line in maps if line.endswith("/template/memory")}
        status = Path(file).stat()
    assert (status.st_size, status.st_blocks * 512 < 112 * MIB) == (128 * MIB, True)


async def test_machine_is_reverted_in_another_qemu(vm):
    await vm.checkpoint("here", mode="stop")
    async with vm.reverted("here") as other:
        assert (other.pid, (await other.status()).running) != (vm.pid, False)


async def test_writer_is_refused_when_the_disk_is_missing_or_has_one(guest):
    with pytest.raises(GuestFailed, match="no such disk"):
        await guest.start_writer("/dev/vdz", blocks=4)
    writer = await guest.start_writer("/dev/vda")
    with pytest.raises(GuestFailed, match="a writer is there"):
        await guest.start_writer("/dev/vda")
    await writer.stop()
    again = await guest.start_writer("/dev/vda", seed=2)
    await again.stop()
