"""-i, and what goes with it; the images are headers, and no daemon is started. And what --launcher says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import anyio
import pytest

import qmpsnap
from qmpsnap.cli import machine, signals
from qmpsnap.cli.app import App
from qmpsnap.cli.machine import images_of, launcher_given, opened, telling, words
from qmpsnap.errors import ConnectFailed
from qmpsnap.model.start import Start
from tests.headers import qcow2_bytes, with_tables


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A chain of two images in the current directory."""
    (tmp_path / "base.qcow2").write_bytes(with_tables(qcow2_bytes()))
    overlay = with_tables(qcow2_bytes(backing="base.qcow2", backing_format="qcow2"))
    (tmp_path / "s1.qcow2").write_bytes(overlay)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QMPSNAP_STORAGE_DAEMON", "/none")
    return tmp_path


def test_chain_of_images_needs_no_daemon(qmpsnap, chain):
    ended = qmpsnap("-i", "vda=s1.qcow2", "--json", "chain")
    (disk,) = ended.json["disks"]
    assert [layer["file"] for layer in disk["layers"]] == [f"{chain}/s1.qcow2", f"{chain}/base.qcow2"]
    assert disk["name"] == "vda"
    for verb in ("list", "jobs"):
        assert qmpsnap("-i", "vda=s1.qcow2", verb).code == 0


def test_options_may_follow_the_verb_and_name_several_disks(qmpsnap, chain):
    (chain / "raw").write_bytes(bytes(512))
    ended = qmpsnap("chain", "vdb", "-i", "vda=s1.qcow2", "-i", "vdb=raw", "--format", "vdb=raw", "--json")
    assert [disk["layers"][0]["format"] for disk in ended.json["disks"]] == ["raw"]


def test_images_go_before_a_socket_of_the_environment(qmpsnap, chain, monkeypatch):
    monkeypatch.setenv("QMPSNAP_SOCKET", "/none")
    assert qmpsnap("-i", "vda=s1.qcow2", "chain").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("-s", "/none", "-i", "vda=s1.qcow2"),
        ("-i", "s1.qcow2"),
        ("-i", "=s1.qcow2"),
        ("-i", "vda="),
        ("-i", "vda=s1.qcow2", "-i", "vda=base.qcow2"),
        ("-i", "vda=s1.qcow2", "--format", "raw"),
        ("-s", "/none", "--format", "vda=raw"),
        ("-s", "/none", "--allow-dir", "/"),
        ("--allow-dir", "/"),
        ("-i", "vda=s1.qcow2", "--format", "vdb=raw"),
        ("-i", "vda=s1.qcow2", "--allow-dir", "/none"),
        ("-s", "tcp:host"),
        ("-s", "tcp:host:port"),
        ("-i", "vda=s1.qcow2", "--launcher", ""),
        ("-i", "vda=s1.qcow2", "--launcher", "start 'vm"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(qmpsnap, chain, arguments):
    ended = qmpsnap(*arguments, "chain")
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.parametrize(
    ("command", "said"),
    [("/none/x", "'/none/x' does not exist"), ("", "give a command"), ("a 'b", "a shell could not read it")],
)
def test_launcher_that_cannot_be_called_is_named_by_its_option_alone(qmpsnap, chain, command, said):
    ended = qmpsnap("-i", "vda=s1.qcow2", "--launcher", command, "chain")
    assert f"Invalid value for --launcher: {said}" in ended.err


@pytest.mark.parametrize("words", [("events",), ("qmp", "stop"), ("qmp", "stop", "-n")], ids=" ".join)
def test_what_speaks_to_a_running_qemu_is_refused(qmpsnap, chain, words):
    ended = qmpsnap("-i", "vda=s1.qcow2", *words)
    assert (ended.code, ended.out) == (3, "")
    assert f"{words[0]} needs a running QEMU" in ended.err


@pytest.mark.parametrize("words", [("job", "wait", ""), ("delete", ""), ("stream", ""), ("qmp", "")])
def test_an_empty_name_is_a_usage_error(qmpsnap, chain, words):
    ended = qmpsnap("-i", "vda=s1.qcow2", *words)
    assert (ended.code, "is empty" in ended.err) == (2, True)


def test_backing_files_elsewhere_are_refused_with_the_option_that_allows_them(qmpsnap, chain):
    (chain / "o").mkdir()
    over = chain / "o" / "over.qcow2"
    over.write_bytes(qcow2_bytes(backing="../s1.qcow2", backing_format="qcow2"))
    refused = qmpsnap("-i", "vda=o/over.qcow2", "chain")
    assert refused.code == 3
    assert f"--allow-dir {chain}" in refused.err
    assert qmpsnap("-i", "vda=o/over.qcow2", "--allow-dir", ".", "chain").code == 0


def test_a_change_needs_the_daemon(qmpsnap, chain):
    ended = qmpsnap("-i", "vda=s1.qcow2", "--json", "stream", "vda")
    assert (ended.code, ended.json["error"]["type"]) == (4, "ConnectFailed")


async def test_launcher_that_is_given_is_the_machines(chain):
    app = App(images=("vda=s1.qcow2",), launcher="false -x")
    async with opened(app, looks=True) as vm:
        assert vm.launcher is not None
        with pytest.raises(ConnectFailed, match="'false' ended with status 1"):
            async with vm.launcher(Start()):
                pass
    async with opened(App(images=("vda=s1.qcow2",)), looks=True) as vm:
        assert vm.launcher is None


def test_commands_name_the_images_again(chain):
    app = App(images=("vda=s1.qcow2",), formats=("vda=qcow2",), allow_dirs=("x",))
    assert images_of(app) == {"vda": f"{chain}/s1.qcow2"}
    assert words(app) == [
        "-i", f"vda={chain}/s1.qcow2", "--format", "vda=qcow2", "--allow-dir", f"{chain}/x",
    ]  # fmt: skip


def test_process_that_is_stopped_in_the_middle_says_that_the_outcome_is_not_known():
    error = signals.stopped("qmpsnap-commit-keep-00000000")
    assert (error.changed.value, error.job_id) == ("unknown", "qmpsnap-commit-keep-00000000")


async def test_launcher_that_is_silent_says_what_it_waits_for(monkeypatch):
    told, said = [], anyio.Event()

    def tell(text):
        told.append(text)
        said.set()

    @asynccontextmanager
    async def silent(_):
        await said.wait()
        yield

    monkeypatch.setattr(machine, "to_stderr", tell)
    monkeypatch.setattr(machine, "_SILENT_S", 0.0)
    monkeypatch.setattr(qmpsnap, "launcher_of", lambda _: silent)
    async with launcher_given(App(launcher="./start.sh\x1b"), "fork")(Start()):
        pass
    assert told == ["waiting for ./start.sh\\x1b: no QEMU has answered yet, 0 s after its start"]


async def later():
    """Return when a timer has fired that begins now: so have all that began before, and are as short."""
    fired = anyio.Event()
    asyncio.get_running_loop().call_later(0.001, fired.set)
    await fired.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_launcher_that_answers_or_fails_says_nothing_more(monkeypatch, fails):
    @asynccontextmanager
    async def quick(_):
        if fails:
            raise ConnectFailed("QEMU ended")
        yield

    told: list[str] = []
    monkeypatch.setattr(machine, "to_stderr", told.append)
    monkeypatch.setattr(machine, "_SILENT_S", 0.0)
    try:
        async with telling(quick, "./start.sh")(Start()):
            await later()
    except ConnectFailed:
        await later()
    assert told == []


async def test_launcher_that_starts_no_qemu_is_told_what_it_has_to_do():
    @asynccontextmanager
    async def fails(_):
        raise ConnectFailed("QEMU ended")
        yield

    @asynccontextmanager
    async def works(_):
        yield

    with pytest.raises(ConnectFailed) as caught:
        async with telling(fails, "./start.sh")(Start()):
            pass
    assert caught.value.hint == './start.sh has to start the same machine, with "$@" as its last arguments'
    with pytest.raises(ConnectFailed) as caught:
        async with telling(works, "./start.sh")(Start()):
            raise ConnectFailed("another one")
    assert caught.value.hint == ""
