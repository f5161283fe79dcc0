from __future__ import annotations

import os

import anyio
import pytest

from qmpsnap.errors import GuestFailed
from qmpsnap.testing import console_shell, witness
from qmpsnap.testing.console_shell import open_console
from qmpsnap.testing.shell import Ran
from tests.run.test_process import gone_within
from tests.testing.shells import on_a_terminal, sleeping_in_a_session

SH = ("sh", "-i")
LOGIN = """
printf '\\033[1;32mDebian\\033[0m GNU/Linux vm ttyS0\\r\\n\\r\\n'
while :; do
    printf 'vm login: '; read -r user; [ -n "$user" ] || continue
    printf 'Password: '; read -r password; echo
    [ "$user $password" != 'root secret' ] || exec sh -i
    echo 'Login incorrect'
done
"""


async def enter(console, **options) -> None:
    async with open_console(console, **options):
        pass


async def _drop(item: bytes) -> None:
    pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a shell that is killed leaves its file
    monkeypatch.setattr(console_shell, "_QUIET_S", 0.03)
    monkeypatch.setattr(witness, "_REST_S", 0.05)


async def test_console_runs_scripts_and_returns_what_they_print(tmp_path):
    with on_a_terminal(*SH, PS1="me@vm:~$ ") as console:
        async with open_console(console) as shell:
            printed = Ran(3, b"\0\xff\r\n\x03no\n")
            assert await shell.execute("printf '\\000\\377\\r\\n\\003'; echo no >&2; exit 3") == printed
            cut = Ran(0, bytes(60_000), cut=True)
            assert await shell.execute("head -c 100000 /dev/zero", most=60_000) == cut
            assert await shell.run("") == ""
            await shell.write_file(str(tmp_path / "file"), bytes(range(256)))
            assert await shell.read_file(str(tmp_path / "file")) == bytes(range(256))


async def test_what_a_script_leaves_running_prints_into_no_other_answer(tmp_path):
    go, printed = tmp_path / "go", tmp_path / "printed"
    with on_a_terminal(*SH) as console:
        async with open_console(console) as shell:
            late = f"(until [ -e {go} ]; do sleep 0.01; done; echo late; touch {printed}) &"
            assert await shell.run(f"{late}\necho now") == "now"
            wait = f"until [ -e {printed} ]; do sleep 0.01; done"
            assert await shell.run(f"touch {go}; {wait}; echo next") == "next"


async def test_script_that_is_killed_takes_all_that_it_has_started_with_it(tmp_path):
    with on_a_terminal(*SH) as console:
        async with open_console(console) as shell:
            script = f"echo $((6 * 7)) is printed\n{sleeping_in_a_session(tmp_path / 'pid')}"
            with pytest.raises(GuestFailed, match="killed at its limit") as caught:
                await shell.run(script, limit=1)
            assert "42 is printed" in str(caught.value)
            assert gone_within(30, int((tmp_path / "pid").read_text()))


async def test_console_has_its_login_shell_again_at_the_end():
    with on_a_terminal("bash", "--norc", "-i") as console:
        async with open_console(console) as shell:
            assert await shell.run("echo once") == "once"
        await console.send(b"echo $0 $((6 * 7)) $-\n")
        with anyio.fail_after(30):
            while b"bash 42 " not in await console.receive():
                pass
        async with open_console(console) as shell:
            assert await shell.run("echo again") == "again"


async def test_console_logs_in():
    with on_a_terminal("sh", "-c", LOGIN) as console:
        async with open_console(console, password="secret") as shell:
            assert await shell.run("echo in") == "in"


async def test_console_says_when_the_guest_does_not_let_the_user_in():
    with on_a_terminal("sh", "-c", LOGIN) as console:
        await anyio.wait_readable(console.descriptor)
        with pytest.raises(GuestFailed, match=r"refused logins of 'root': \d+") as failed:
            await enter(console, password="wrong", limit=2)
    assert "Login incorrect\nvm login:" in failed.value.output
    assert "vm login: root\nPassword:" in failed.value.output


async def test_console_goes_on_where_another_client_left_in_the_middle():
    with on_a_terminal(*SH) as console:
        async with open_console(console) as shell:
            assert await shell.run("echo first") == "first"
            await console.send(b"run 12 30 10 400\nZWNobyBoYWxmCg==\n")
            console.send = _drop  # as when our process is killed
        del console.send
        async with open_console(console) as shell:
            assert await shell.run("echo next") == "next"


async def test_console_that_stays_silent_ends_the_wait_with_its_last_lines():
    with on_a_terminal("sh", "-c", "echo booting; exec sleep 9") as console:
        await anyio.wait_readable(console.descriptor)
        with pytest.raises(GuestFailed, match=r"no shell on the console within 0\.3 s") as failed:
            await enter(console, limit=0.3)
    assert failed.value.output == "booting"


async def test_console_that_ends_ends_the_wait():
    with (
        on_a_terminal("sh", "-c", "echo bye") as console,
        pytest.raises(GuestFailed, match="the console was closed"),
    ):
        await enter(console)


async def test_console_knows_a_panic():
    with on_a_terminal(*SH) as console:
        async with open_console(console) as shell:
            with pytest.raises(GuestFailed, match="has panicked") as failed:
                await shell.run("echo '[ 1.0] Kernel panic - not syncing: test' > /dev/tty; sleep 9")
    assert "Kernel panic - not syncing: test" in failed.value.output


# $PPID is timeout, whose parent is the loop that we have started; the parent of that is the login shell.
_FIND = "read -r _ _ _ loop _ < /proc/$PPID/stat; read -r _ _ _ login _ < /proc/$loop/stat"


@pytest.mark.parametrize(
    ("words", "killed"),
    [
        (("bash", "--norc", "-i"), "$loop"),
        # Without job control, else the login is no longer in the foreground, and cannot read.
        (("sh", "-c", LOGIN.replace("exec sh -i", "sh -i +m")), "$login $loop"),
    ],
)
async def test_console_knows_that_its_shell_was_killed(words, killed):
    with on_a_terminal(*words) as console:
        async with open_console(console, password="secret") as shell:
            with pytest.raises(GuestFailed, match="the shell on the console has ended"):
                await shell.run(f"{_FIND}; kill -9 {killed}", limit=600)


async def test_console_asks_again_for_what_a_kernel_message_has_cut_in_two():
    with on_a_terminal(*SH) as console:
        receive = console.receive
        cut: list[bytes] = []

        async def receive_cut(max_bytes: int = 65536) -> bytes:
            data: bytes = await receive(max_bytes)
            if not cut and b"H4sI" in data:
                cut.append(data)
                return data.replace(b"H4sI", b"H4[    1.234] eth0: link up\r\nsI")
            return data

        console.receive = receive_cut
        async with open_console(console) as shell:
            assert await shell.run("echo data") == "data"
        assert cut


@pytest.fixture(params=["gzip", "no gzip"])
def gzip(request, tmp_path, monkeypatch):
    """Whether the guest has gzip."""
    if request.param == "no gzip":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/gzip").write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / "bin/gzip").chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return request.param == "gzip"


async def test_script_reads_what_it_is_given_compressed_where_the_guest_has_gzip(gzip):
    data, typed = bytes(range(256)) * 400, 0  # 100 kB: three parts
    with on_a_terminal(*SH) as console:
        send = console.send

        async def count(item: bytes) -> None:
            nonlocal typed
            typed += len(item)
            await send(item)

        async with open_console(console) as shell:
            console.send = count
            assert await shell.run_bytes("cat", stdin=data) == data
            assert await shell.run_bytes("cat", stdin=b"\0") == b"\0"
            assert await shell.run_bytes("cat") == b""
            del console.send
    assert (typed < 10_000) is gzip


@pytest.mark.parametrize("sent", [b"H4sI\n\n", b"H4sI"], ids=["the middle", "the end"])
async def test_what_a_script_reads_is_sent_again_when_some_of_it_was_lost(sent, monkeypatch):
    monkeypatch.setattr(console_shell, "_GRACE_S", 1.5)
    with on_a_terminal(*SH) as console:
        send = console.send
        lost: list[bytes] = []

        async def lose(item: bytes) -> None:
            if item.startswith(b"stdin") and not lost:
                lost.append(item)
                item = item.splitlines(keepends=True)[0] + sent
            await send(item)

        async with open_console(console) as shell:
            console.send = lose
            assert await shell.run("cat", stdin=b"data") == "data"
            del console.send
        assert lost


async def test_call_that_was_cancelled_while_it_typed_is_followed_by_another():
    with on_a_terminal(*SH) as console:
        send = console.send

        async def half(item: bytes) -> None:
            await send(item[: len(item) // 2])
            await anyio.sleep_forever()

        async with open_console(console) as shell:
            for script, stdin in (("echo " + "x" * 500, b""), ("cat", bytes(range(256)) * 20)):
                console.send = half
                with anyio.move_on_after(0.2):
                    await shell.run(script, stdin=stdin)
                del console.send
                assert await shell.run("cat", stdin=b"next") == "next"
