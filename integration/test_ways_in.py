"""The ways into a guest: its own port, its console and the agent do the same; and what is stale is set."""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio
import pytest
from anyio.abc import ByteStream

import qmpsnap
from integration.known_images import QEMUS
from qmpsnap.errors import Changed, GuestFailed, Incomplete
from qmpsnap.run.agent import Agent
from qmpsnap.testing import guest as guests
from qmpsnap.testing import guest_requests
from qmpsnap.testing.agent import PORT_NAME as AGENT_PORT
from qmpsnap.testing.agent import open_agent
from qmpsnap.testing.cloud import build_seed, cloud_machine, write_seed
from qmpsnap.testing.console_shell import open_console
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import GuestDisk, find_guest_image, guest_machine
from qmpsnap.testing.shell import Ran
from qmpsnap.testing.wake import wake_by_agent, wake_guest

LATE = 60  # seconds that a busy guest may take until it sets its clock; it was years behind before
LOST = 8  # the guest waits for ten seconds before a lost command is sent again
CONSOLE_SHELL = "(while :; do setsid -c sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1; done) > /dev/null 2>&1 &"


@asynccontextmanager
async def booted(qemu, place):
    qemu.img("create", "-q", "-f", "qcow2", place / "vda.qcow2", "16M")
    disks = [GuestDisk(name="vda", file=place / "vda.qcow2")]
    machine = guest_machine(qemu.system, disks, image=find_guest_image(agent=True))
    async with qmpsnap.launch(replace(machine, ports=(PORT_NAME, AGENT_PORT))) as vm:
        guest = Guest(vm.port(PORT_NAME), vm=vm, console=lambda: vm.console.tail)
        await guest.wait_ready()
        yield vm, guest


@asynccontextmanager
async def way(kind, vm, guest):
    match kind:
        case "port":
            yield guest
        case "agent":
            async with open_agent(vm.port(AGENT_PORT), vm=vm, port_id="port1") as shell:
                yield shell
        case "console":
            async with open_console(vm.console, vm=vm) as shell:
                yield shell


async def use(shell, place, kind: str, size: int) -> None:
    """All that a shell can do, on the guest's /tmp."""
    assert await shell.run("id -u; echo no >&2") == "0\nno"
    assert await shell.execute("printf '\\000\\377\\r\\n\\004'; exit 3") == Ran(3, b"\0\xff\r\n\x04")
    assert await shell.execute("yes | head -c 100000", most=10) == Ran(0, b"y\n" * 5, cut=True)
    with pytest.raises(GuestFailed, match="killed at its limit"):
        await shell.run("sleep 60", limit=1)
    with anyio.move_on_after(0.05):
        await shell.run("usleep 300000; echo late")
    assert await shell.run("echo next") == "next"
    source, back, inside = place / f"{kind}.in", place / f"{kind}.out", f"/tmp/a {kind}'s"
    source.write_bytes((bytes(range(256)) * (size // 256 + 1))[:size])
    source.chmod(0o750)
    await shell.copy_in(source, inside)
    await shell.copy_out(inside, back)
    assert back.read_bytes() == source.read_bytes()
    assert await shell.run(f'stat -c %a "{inside}"; ls /tmp | grep -c partial; true') == "750\n0"
    with pytest.raises(GuestFailed, match="it exists"):
        await shell.write_file(inside, b"")
    await shell.write_file(inside, b"new", replace=True)
    assert await shell.read_file(inside) == b"new"
    full = f"/tmp/full-{kind}"
    await shell.run(f"mkdir {full} && mount -t tmpfs -o size=16k tmpfs {full} && echo old > {full}/x")
    with pytest.raises(
        GuestFailed, match=r"No space left on device; .* is as it was, and no part of the copy"
    ):
        await shell.write_file(f"{full}/x", bytes(size), replace=True)
    assert await shell.run(f"cat {full}/*; umount {full}") == "old"


class HalfPort(ByteStream):
    """A port that takes and gives so many bytes, and then no more until that is changed."""

    def __init__(self, port, takes: int) -> None:
        self._port, self.takes, self.gives = port, takes, 10**9
        self.full = anyio.Event()

    async def send(self, item: bytes) -> None:
        if len(item) > self.takes:
            self.full.set()
            await anyio.sleep_forever()
        self.takes -= len(item)
        await self._port.send(item)

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.gives <= 0:
            self.full.set()
            await anyio.sleep_forever()
        data: bytes = await self._port.receive(max_bytes)
        self.gives -= len(data)
        return data

    async def aclose(self) -> None:
        raise NotImplementedError


async def copy_is_cut_by_a_cancel_and_by_a_revert(vm, monkeypatch) -> None:
    """The port answers after a copy that was cancelled, and after a revert into the middle of a copy."""
    port = HalfPort(vm.port(PORT_NAME), 600_000)
    guest = Guest(port, vm=vm)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guest.write_file, "/tmp/cut", bytes(range(256)) * 8000)
        with anyio.fail_after(60):
            await port.full.wait()
        await anyio.sleep(0.5)  # for the guest to read what it was sent
        await vm.checkpoint("cut", mode="in-place")
        tasks.cancel_scope.cancel()
    port.takes = 10**9
    with monkeypatch.context() as patch:
        patch.setattr(guest_requests, "_SILENCE_S", math.inf)  # the next call knows what the guest waits for
        assert await guest.run("echo next") == "next"
    await vm.revert("cut")
    await guest.reseed(clock=True)  # it is lost, and sent again once the guest waits no more for the copy
    assert (await stale(guest))[1] < LOST
    await guest.write_file("/tmp/whole", bytes(range(256)) * 8000)
    port.full, port.gives = anyio.Event(), 600_000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guest.read_file, "/tmp/whole")
        with anyio.fail_after(60):
            await port.full.wait()
        tasks.cancel_scope.cancel()
    port.gives = 10**9
    assert await guest.run("cd /tmp; rm cut.*.partial whole; echo after") == "after"


async def stale(guest) -> tuple[str, int]:
    """A random number of the guest's kernel, and how far its clock is from ours, in seconds."""
    asked = int(time.time())
    number, now = (await guest.run("cat /proc/sys/kernel/random/uuid; date +%s")).split()
    return number, max(asked - int(now), int(now) - int(time.time()), 0)


async def children_are_woken(vm, place) -> None:
    """Each child draws numbers of its own, and one that cannot be woken says why."""
    called = []

    async def hook(child) -> None:
        called.append(child)
        last = len(called) == 3
        await wake_guest(child)
        if last:
            await Guest(child.port(PORT_NAME)).run("echo broken; exit 1")

    async with vm.fork(3, directory=place, wake=hook) as children:
        known = [child async for child in children]
        alive = [child.vm for child in known if child.error is None]
        found = [await stale(Guest(child.port(PORT_NAME))) for child in alive]
    assert len({number for number, _ in found}) == 2
    assert max(distance for _, distance in found) < LATE
    assert [child.error.__cause__.output for child in known if child.error is not None] == ["broken"]


@asynccontextmanager
async def agent_socket(port, path):
    """The agent's port as a socket, as a launcher has it for other programs."""

    async def pass_on(source, to) -> None:
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            while True:
                await to.send(await source.receive())

    async def serve(client) -> None:
        async with client, anyio.create_task_group() as both:
            both.start_soon(pass_on, port, client)
            await pass_on(client, port)
            both.cancel_scope.cancel()

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield str(path)
        tasks.cancel_scope.cancel()


async def frozen_guest_is_thawed(vm, guest, place) -> None:
    """A backup froze the guest and died: the doctor says so, and what it names thaws the guest."""
    await guest.run("mke2fs -q /dev/vda && mkdir -p /mnt/frozen && mount /dev/vda /mnt/frozen")
    async with agent_socket(vm.port(AGENT_PORT), place / "agent") as agent:
        assert await vm.diagnose(agent=agent) == ()
        async with await anyio.connect_unix(agent) as stream:
            assert await Agent(stream).execute("guest-fsfreeze-freeze") >= 1
        (found,) = await vm.diagnose(agent=agent)
        assert (found.code, found.remedy) == ("guest-frozen", ("qmpsnap", "thaw", agent))
        assert await qmpsnap.thaw(agent) >= 1
        assert await vm.diagnose(agent=agent) == ()
        await vm.stop()
        (found,) = await vm.diagnose(agent=agent)
        assert (found.code, found.subject) == ("agent-silent", agent)
        await vm.cont()
    await guest.run("echo > /mnt/frozen/x && umount /mnt/frozen")


WAYS = ("port", "agent", "console")


def ways(qemu) -> tuple[str, ...]:
    """They end in the guest: each QEMU but the first takes one of them."""
    return WAYS if qemu == QEMUS[0] else (WAYS[QEMUS.index(qemu) % len(WAYS)],)


@pytest.mark.one_qemu
async def test_each_way_into_a_guest_does_the_same_and_stale_guests_are_woken(qemu, tmp_path, monkeypatch):
    async with booted(qemu, tmp_path) as (vm, guest):
        await guest.run(CONSOLE_SHELL)
        for kind in ways(qemu):
            async with way(kind, vm, guest) as shell:
                await use(shell, tmp_path, kind, 50_000 if kind == "console" else 1_200_000)

        if qemu == QEMUS[0]:
            await copy_is_cut_by_a_cancel_and_by_a_revert(vm, monkeypatch)
            await frozen_guest_is_thawed(vm, guest, tmp_path)
        await guest.run("date -s @946684800; head -c 1 /dev/urandom > /dev/null")
        await vm.checkpoint("old", mode="in-place")
        await vm.revert("old")
        assert (await stale(guest))[1] > 10**8
        found = []
        for hook in (wake_guest, wake_guest, wake_guest, wake_by_agent):
            await vm.revert("old", wake=hook)
            found.append(await stale(guest))
        assert len({number for number, _ in found}) == 4  # without a new key it is 1 or 2
        assert max(distance for _, distance in found) < LATE

        async def fail(_) -> None:
            await guest.run("echo broken; exit 1")

        with pytest.raises(Incomplete, match=r"the revert to 'old' is done .*: broken") as failed:
            await vm.revert("old", wake=fail)
        assert (failed.value.changed, (await vm.status()).running) == (Changed.YES, True)

        if qemu == QEMUS[0]:
            await children_are_woken(vm, tmp_path)

        monkeypatch.setattr(guests, "_GRACE_S", 0.5)
        await vm.stop()
        with pytest.raises(GuestFailed, match="the machine does not run, its state is 'paused'"):
            await guest.run("true", limit=1)
        await vm.revert("old", wake=fail)  # it stays paused: nobody could answer
        await vm.cont()
        monkeypatch.undo()

        async with way("agent", vm, guest) as agent, anyio.create_task_group() as tasks:
            kill = "kill -9 $(ps | grep '[q]emu-agent' | awk '{print $1}'); killall -9 ld-linux-x86-64.so.2"
            tasks.start_soon(guest.run, f"usleep 300000; {kill}")
            with anyio.fail_after(60), pytest.raises(GuestFailed, match="has closed its port"):
                await agent.run("sleep 60", limit=60)
        async with way("console", vm, guest) as console:
            with anyio.fail_after(60), pytest.raises(GuestFailed, match="has panicked") as failed:
                await console.run("echo c > /proc/sysrq-trigger; sleep 60", limit=60)
        assert "Kernel panic - not syncing: sysrq triggered crash" in failed.value.output


HASH = "$6$qmpsnap$50db3MzZw.voiOFGlAeSq8Kzj8mNDmxyVl.UOVJ90cgjZglrMDCBjhA7J4s75K7PGix4aG0hcqoS3XeezIRSr."
# What Alpine and others with busybox have on a serial console; the hash is that of "it's".
GETTY = """
busybox --install -s /bin; mkdir -p /etc /root
echo root:x:0:0:root:/root:/bin/ash > /etc/passwd; echo root:x:0: > /etc/group; echo ttyS0 > /etc/securetty
echo 'root:HASH:1:0:99999:7:::' > /etc/shadow
printf '\\nWelcome to \\\\s\\nKernel \\\\r on an \\\\m (\\\\l)\\n\\n' > /etc/issue
echo "export PS1='\\h:\\w\\$ '" > /etc/profile
(while :; do setsid getty -L 0 ttyS0 vt100; done) > /dev/null 2>&1 &
""".replace("HASH", HASH)


@pytest.mark.one_qemu
async def test_console_logs_in_at_busybox_s_getty_and_finds_the_shell_or_the_login_again(qemu, tmp_path):
    async with booted(qemu, tmp_path) as (vm, guest):
        await guest.run(GETTY)
        with pytest.raises(GuestFailed, match=r"refused logins of 'root': [1-9]"):
            async with open_console(vm.console, password="its", limit=30, vm=vm):
                pass
        async with open_console(vm.console, password="it's", vm=vm) as shell:
            assert await shell.run("id -un") == "root"
            await shell.write_file("/root/a b", bytes(range(256)))
            assert await shell.read_file("/root/a b") == bytes(range(256))
        async with open_console(vm.console, password="", vm=vm) as shell:  # still logged in
            with pytest.raises(GuestFailed, match="the shell on the console has ended"):
                await shell.run("kill -9 $(pidof ash); sleep 60", limit=60)
        async with open_console(vm.console, password="it's", vm=vm) as shell:
            assert await shell.run("cat '/root/a b' | wc -c") == "256"


@pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])
async def test_seed_of_a_cloud_image_is_read_only_and_in_no_snapshot(qemu, tmp_path):
    image, seed = tmp_path / "vda.qcow2", tmp_path / "seed,1.img"
    qemu.img("create", "-q", "-f", "qcow2", image, "16M")
    content = build_seed(password="secret")
    write_seed(seed, content)
    machine = cloud_machine(image, seed, memory_mib=64, qemu=qemu.system)
    async with qmpsnap.launch(replace(machine, arguments=[*machine.arguments, "-S"])) as vm:
        graph = await vm.graph()
        assert {disk.active.file: disk.active.read_only for disk in graph.disks.values()} == {
            str(image): False,
            str(seed): True,
        }
        taken = await vm.checkpoint("first", mode="in-place")
        assert list(taken.chains) == ["vda"]
        await vm.revert("first")
    assert seed.read_bytes() == content
