"""Records of sessions with real QEMUs replay to the same results, on the command line, too."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace as dataclasses_replace
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

import qmpsnap
from integration.cli import ROOT, Cli
from integration.known_images import KIB, QEMUS
from integration.machines import blockdev
from qmpsnap.cli.main import run
from qmpsnap.testing.replay import replay


def lasting(result):
    """A result without its times, which are others each time."""
    return dataclasses_replace(result, elapsed_s=0.0, standstill_s=None)


async def story(vm):
    """What is recorded and replayed: chains, a snapshot, a commit with a pivot, a checkpoint, a revert."""
    results = [(await vm.graph()).chains()]
    results.append(lasting(await vm.snapshot("n1", files={"vda": results[0]["vda"][0] + ".n1"})))
    results.append(lasting(await vm.commit("vda", base=results[0]["vda"][0])))
    results.append(lasting(await vm.checkpoint("c1", mode="internal")))
    results.append(lasting(await vm.revert("c1")))
    with pytest.raises(qmpsnap.CommandFailed) as caught:
        await vm.execute("block_resize", {"device": "no-such-device", "size": 1})
    return [*results, caught.value.desc, await vm.status()]


async def test_record_replays_to_the_same_results(qemu, images, machine, tmp_path):
    record = tmp_path / "session"
    active = images("base <- s1").active
    with machine(*blockdev("vda", active)) as running:
        running.write("vda", 0xA1, 0, 64 * KIB)
        running.qmp("cont")
        async with running.connect(shared_fs=False, record=record) as vm:
            first = await story(vm)
    async with replay(record, tmp_path / "s") as server:
        async with qmpsnap.connect(server.path, shared_fs=False, name="test") as vm:
            again = await story(vm)
        assert server.refused == []
    assert again == first


@pytest.mark.one_qemu
async def test_record_cut_anywhere_replays_up_to_there(images, machine, tmp_path, everything):
    record = tmp_path / "session"
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        async with running.connect(shared_fs=False, record=record) as vm:
            await vm.snapshot("n1", files={"vda": tmp_path / "n1"})
    data = record.read_bytes()
    cuts = range(1000, len(data), 97 if everything else len(data) // 9)
    for number, cut in enumerate(cuts):
        part = tmp_path / f"part-{number}"
        part.write_bytes(data[:cut])
        with pytest.raises((qmpsnap.LinkLost, qmpsnap.ConnectFailed, qmpsnap.InvalidTarget)):
            async with (
                replay(part, tmp_path / "s") as server,
                qmpsnap.connect(server.path, shared_fs=False) as vm,
            ):
                await vm.snapshot("n1", files={"vda": tmp_path / "n1"})


# Commands, in an order in which each works, or fails for its own reason. With --shared-fs no, none depends on
# the files that another one leaves.
VERBS = (
    "chain", "list", "jobs", "status", "top --once", "chain vda", "chain nope",
    "snapshot s2 -n", "snapshot s2 --disk vda=DIR/s2", "snapshot s3 --disk vda=DIR/s3",
    "snapshot s4 --disk vda=DIR/none/s4", "snapshot in --internal",
    "stream vda --base s1 -n", "commit vda -n", "commit vda --top s2 --base s1", "commit vda --keep-overlay",
    "mirror vda DIR/copy --finish", "mirror vda DIR/copy --finish", "stream vda",
    "checkpoint c1 --mode internal", "stop", "cont", "revert c1", "delete c1", "delete in", "list",
    "qmp query-version", "qmp block_resize {\"device\":\"none\",\"size\":1}", "qmp nonsense",
    "job cancel nobody",
)  # fmt: skip


def settled(ended, out):
    """How a command ended, without times."""
    timed = re.compile(r'("(?:elapsed_s|standstill_s|age_s|date|timestamp)": )[\d.e-]+')
    return ended, *(timed.sub(r"\1T", text) for text in out)


@pytest.mark.one_qemu
def test_records_of_every_kind_of_verb_replay_to_the_same_output(images, machine, tmp_path, capsys):
    first = []
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        running.qmp("cont")
        socket = running.socket
        for number, verb in enumerate(VERBS):
            words = verb.replace("DIR", str(tmp_path)).split(maxsplit=2 if verb.startswith("qmp") else -1)
            line = ["-s", socket, "--json", "--shared-fs", "no", "--record", f"{tmp_path}/r{number}", *words]
            first.append((line, settled(run(line), capsys.readouterr())))
    codes = {code for _, (code, *_) in first}
    assert codes == {0, 3, 4}
    with start_blocking_portal() as portal:
        for number, (line, expected) in enumerate(first):
            line.remove("--record")
            line.remove(f"{tmp_path}/r{number}")
            with portal.wrap_async_context_manager(replay(f"{tmp_path}/r{number}", socket)) as server:
                again = settled(run(line), capsys.readouterr())
            assert (server.refused, again) == ([], expected), VERBS[number]


@pytest.mark.parametrize("qemu", QEMUS[-1:], ids=[QEMUS[-1].short])
def test_howto_makes_a_unit_test_of_a_session(images, machine, tmp_path):
    text = (ROOT / "docs" / "howto" / "record.md").read_text()
    recorded, replayed, repeated = (
        shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ qmpsnap ")
    )
    printed = text.split("vda.monday.qcow2\n")[1].split("```")[0]
    with machine(*blockdev("vda", images("vda").active)) as running:
        cli = Cli(running)
        first = cli(*recorded)
    assert (first.code, first.err[: len(printed)]) == (4, printed)
    with cli.start(*replayed) as server:
        listening = server.stdout.readline()
        again = cli(*repeated)
        server.terminate()
    assert (listening, again) == ("listening on vm1.sock\n", first)

    def suite(code):
        (tmp_path / "test_it.py").write_text(code)
        words = ["-q", "-o", "asyncio_mode=auto", "test_it.py"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=cli.environment,
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    code = text.partition("```python\n")[2].partition("```")[0]
    assert "1 passed" in suite(code)
    assert "the session was another than the recorded one" in suite(code.replace('"monday"', '"tuesday"'))


@pytest.mark.one_qemu
def test_command_line_records_and_replays(images, machine, tmp_path):
    record = tmp_path / "session"
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        cli = Cli(running)
        first = cli("--json", "--shared-fs", "no", "--record", str(record), "chain")
        assert first.code == 0
        assert cli("--record", str(record), "chain").code == 3  # it is never overwritten
    assert record.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-m", "qmpsnap"]
    words = [*command, "--json", "replay", record, "--listen", tmp_path / "s"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert json.loads(server.stdout.readline())["socket"] == str(tmp_path / "s")
        asked = [*command, "-s", tmp_path / "s", "--json", "--shared-fs", "no", "chain"]
        again = subprocess.run(asked, capture_output=True, text=True, check=True)
        assert json.loads(again.stdout) == first.json
        assert server.stdout.read() == ""
        assert server.wait(60) == 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        asked = [*command, "-s", tmp_path / "s", "--shared-fs", "no", "qmp", "stop"]
        assert subprocess.run(asked, capture_output=True, check=False).returncode == 4
        assert "no stop {} here" in json.loads(server.stdout.read())["refused"]
        assert server.wait(60) == 4
    (tmp_path / "text").write_text("hello")
    assert cli("replay", tmp_path / "text").code == 3
    assert not Path(tmp_path / "s").exists()
