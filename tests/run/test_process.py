from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anyio
import pytest

from qmpsnap.errors import ConnectFailed, Unsupported
from qmpsnap.launching import launch
from qmpsnap.run.process import start_qemu

GREETING = b'{"QMP": {}}'

# Takes the place of QEMU: greets on the inherited descriptor, then does what the test says.
FAKE = """
import os, signal, socket, subprocess, sys, time
monitor = socket.socket(fileno=int(sys.argv[-3].rpartition("fd=")[2]))
def greet(): monitor.send(b'{"QMP": {}}')
"""
SERVE = "greet(); monitor.recv(1)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); greet(); time.sleep(60)"
WITH_CHILD = """
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, flush=True)
greet()
time.sleep(60)
"""


def fake_qemu(behaviour: str) -> list[str]:
    return [sys.executable, "-ISc", FAKE + behaviour]


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch):
    """A Python that ends takes longer from the end of its link to its own than QEMU does."""
    monkeypatch.setattr("qmpsnap.run.process._MOMENT", 60.0)


async def test_qemu_below_a_wrapper_is_known_and_ends_first():
    behaviour = (
        "signal.signal(signal.SIGTERM, lambda *_: (print('flushed', flush=True), os._exit(0)));"
        "print('child', os.getpid(), flush=True); greet(); time.sleep(60)"
    )
    wrapper = ["/bin/sh", "-c", '"$@"; echo status $?', "wrapper", *fake_qemu(behaviour)]
    async with start_qemu(wrapper) as process:
        assert process.socket.recv(100) == GREETING
        assert process.qemu_pid == child_in(process.output_tail) != process.pid
    assert process.output_tail.splitlines()[1:] == ["flushed", "status 0"]
    async with start_qemu(fake_qemu(SERVE)) as process:
        assert process.qemu_pid == process.pid


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def gone_within(seconds: float, *pids: int) -> bool:
    end = time.monotonic() + seconds
    while any(exists(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def child_in(tail: str) -> int:
    return int(tail.partition("child ")[2].split()[0])


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


async def test_start_qemu_gives_a_socket_with_the_greeting_unread():
    async with start_qemu(fake_qemu(SERVE)) as process:
        assert process.socket.recv(100) == GREETING
        assert exists(process.pid)


async def test_start_qemu_ends_the_process_when_the_block_is_left():
    async with start_qemu(fake_qemu(SERVE)) as process:
        pass
    assert not exists(process.pid)
    assert process.returncode == -signal.SIGTERM


async def test_start_qemu_leaves_no_child_and_no_descriptor():
    before = children(), descriptors()
    async with start_qemu(fake_qemu(SERVE)):
        pass
    assert (children(), descriptors()) == before


async def test_start_qemu_leaves_no_child_and_no_descriptor_when_the_binary_is_missing():
    before = children(), descriptors()
    with pytest.raises(ConnectFailed, match="cannot start '/missing/qemu': No such file"):
        async with start_qemu(["/missing/qemu"]):
            pass
    assert (children(), descriptors()) == before


async def test_start_qemu_says_that_its_working_directory_is_missing():
    with pytest.raises(ConnectFailed, match="No such file") as caught:
        async with start_qemu(fake_qemu(SERVE), cwd="/missing"):
            pass
    assert caught.value.hint == "give another cwd"


async def test_start_qemu_kills_when_sigterm_is_not_heeded():
    async with start_qemu(fake_qemu(STUBBORN), quit_limit=0.01) as process:
        pass
    assert process.returncode == -signal.SIGKILL


async def test_start_qemu_ends_what_the_process_started():
    async with start_qemu(fake_qemu(WITH_CHILD)) as process:
        child = child_in(process.output_tail)
        assert exists(child)
    assert gone_within(30, child)


async def test_start_qemu_raises_with_the_output_when_the_process_dies_before_the_greeting():
    dying = fake_qemu("sys.exit('-m: invalid size')")
    with pytest.raises(ConnectFailed, match=r"qemu has not greeted: .*ended with status 1: -m: invalid size"):
        async with start_qemu(dying):
            pass


async def test_launch_says_how_qemu_ended_and_its_last_words_after_the_greeting():
    dying = "greet(); print('one', 'two', sep=chr(10), flush=True); sys.exit('-device x: no such device')"
    with pytest.raises(ConnectFailed) as caught:
        async with launch(fake_qemu(dying), name="vm1"):
            pass
    assert caught.value.message == (
        "vm1 has not started: QEMU ended with status 1: one; two; -device x: no such device"
    )
    assert caught.value.hint == ""
    dying = "greet(); sys.exit('-qmp unix:/s: Address already in use')"
    with pytest.raises(ConnectFailed) as caught:
        async with launch(fake_qemu(dying), name="vm1"):
            pass
    assert caught.value.hint.startswith("another process has that address")


async def test_launch_says_by_which_signal_qemu_ended():
    with pytest.raises(ConnectFailed, match=r"vm1 .* by signal 11 .SIGSEGV.: it printed nothing"):
        async with launch(fake_qemu("greet(); os.kill(os.getpid(), 11)"), name="vm1"):
            pass


async def test_launch_gives_qemu_the_environment():
    with pytest.raises(ConnectFailed, match="status 1: A=1, HOME=None"):
        async with launch(
            fake_qemu("sys.exit('A=%s, HOME=%s' % (os.getenv('A'), os.getenv('HOME')))"), env={"A": "1"}
        ):
            pass


async def test_start_qemu_raises_when_the_monitor_stays_silent():
    before = children(), descriptors()
    with pytest.raises(ConnectFailed, match=r"was silent for 0\.05 s"):
        async with start_qemu(fake_qemu("time.sleep(60)"), greeting_limit=0.05):
            pass
    assert (children(), descriptors()) == before


async def test_start_qemu_leaves_nothing_when_the_start_is_cancelled():
    before = children(), descriptors()
    with anyio.move_on_after(0.02) as scope:
        async with start_qemu(fake_qemu("time.sleep(60)")):
            pass
    assert scope.cancelled_caught
    assert (children(), descriptors()) == before


async def test_start_qemu_lets_the_error_of_the_block_through():
    with pytest.raises(ZeroDivisionError):
        async with start_qemu(fake_qemu(SERVE)) as process:
            raise ZeroDivisionError
    assert not exists(process.pid)


async def test_start_qemu_refuses_daemonize():
    with pytest.raises(Unsupported) as refused:
        async with start_qemu(["/missing/qemu", "-daemonize"]):
            pass
    assert refused.value.feature == "-daemonize"


async def test_wait_returns_the_status_to_every_task_when_the_process_ends():
    statuses: list[int] = []

    async with start_qemu(fake_qemu(SERVE + "; sys.exit(3)")) as process:

        async def wait() -> None:
            statuses.append(await process.wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            process.socket.send(b"x")
    assert statuses == [3, 3]


def test_start_qemu_kills_the_process_and_its_children_when_we_are_killed():
    ours = textwrap.dedent(f"""
        import anyio
        from qmpsnap.run.process import start_qemu
        async def main():
            async with start_qemu({fake_qemu(WITH_CHILD)!r}) as process:
                print(process.pid, process.output_tail, flush=True)
                await anyio.sleep(60)
        anyio.run(main)
    """)
    with subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        line = launcher.stdout.readline()
        pids = int(line.split()[0]), child_in(line)
        assert all(exists(pid) for pid in pids)
        launcher.kill()
    assert gone_within(30, *pids)


def test_start_program_ends_it_well_and_removes_its_paths_when_we_are_killed(tmp_path):
    place, said = tmp_path / "place", tmp_path / "said"
    place.mkdir()
    (place / "socket").touch()
    child = f"""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
open({str(said)!r}, "w").write("ended")
"""
    ours = textwrap.dedent(f"""
        import anyio
        from qmpsnap.run.process import start_program
        async def main():
            argv = [{sys.executable!r}, "-ISc", {child!r}]
            async with start_program(argv, name="p", remove=[{str(place)!r}]) as process:
                while "ready" not in process.output_tail:
                    await anyio.sleep(0.01)
                print(process.pid, flush=True)
                await anyio.sleep(60)
        anyio.run(main)
    """)
    with subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert place.exists()
        launcher.kill()
    assert gone_within(30, pid)
    assert said.read_text() == "ended"
    end = time.monotonic() + 30
    while place.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_start_qemu_logs_no_secret_of_its_command_line(caplog):
    caplog.set_level("DEBUG", "qmpsnap")
    async with start_qemu([*fake_qemu(SERVE), "-object", "secret,id=s,data=hunter2"]):
        pass
    (started,) = [vars(record) for record in caplog.records if vars(record).get("event") == "process.started"]
    assert "secret,id=s,data=***" in started["argv"]
    assert "hunter2" not in repr(started)
