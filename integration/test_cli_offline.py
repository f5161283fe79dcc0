"""The command line on a machine that is off."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from integration.cli import Cli
from integration.machines import blockdev, listing, wait_for
from integration.off import daemons
from qmpsnap.model.record_file import to_json
from qmpsnap.plan.commands.records import keep_moment
from tests.model.records import CHECKPOINT, overlaying, stages

pytestmark = pytest.mark.one_qemu


@pytest.fixture
def command(qemu, tmp_path):
    """The command, with that QEMU's storage daemon on PATH and no monitor."""
    return Cli(SimpleNamespace(qemu=qemu, folder=tmp_path, socket=""))


def test_verbs_work_on_images_and_say_what_to_start(qemu, images, machine, command, tmp_path):
    made = images("base <- s1")
    before = listing(tmp_path)
    planned = command("-i", "vda=s1.qcow2", "snapshot", "n1", "-n", "--json")
    steps = [step["command"] for step in planned.json["plan"]["steps"] if step["on"] == "qmp"]
    assert (planned.code, steps, listing(tmp_path)) == (0, ["blockdev-add", "transaction"], before)
    done = command("-i", "vda=s1.qcow2", "snapshot", "n1")
    assert done.code == 0, done.err
    assert "from now on, start vda from" in done.out
    assert "base.n1.qcow2" in done.out
    old = command("-i", "vda=s1.qcow2", "commit", "vda")  # an image is backed by it now
    assert (old.code, listing(tmp_path / "base.qmpsnap")) == (3, listing(tmp_path / "base.qmpsnap"))
    assert "base.n1.qcow2" in old.err
    done = command("-i", "vda=base.n1.qcow2", "--json", "commit", "vda")
    assert (done.code, done.json["active"]) == (0, {"vda": made.files[0]})
    assert done.json["standstill_s"] is None
    with machine(*blockdev("vda", made.files[0])) as running:
        running.read("vda", 0, 7 << 20, 512)
    assert qemu.read(made.files[0]) == made.content[-1]


def test_chain_and_list_are_those_of_qemu_img(qemu, images, command, tmp_path):
    made = images("base <- s1 <- s2", relative=True)
    chain = command("-i", "vda=s2.qcow2", "chain", "--json").json["disks"][0]["layers"]
    told = qemu.chain(made.active)
    assert [
        (layer["file"], layer["format"], layer["virtual_size"], layer["allocated"], layer["backing"])
        for layer in chain
    ] == [
        (file, one["format"], one["virtual-size"], one["actual-size"], one.get("backing-filename"))
        for file, one in zip(made.chain, told, strict=True)
    ]
    assert command("-i", "vda=s2.qcow2", "list").code == 0


def test_what_needs_a_guest_exits_3(images, command):
    images("base")
    for words in (("save", "state"), ("stop",)):
        ended = command("-i", "vda=base.qcow2", *words)
        assert (ended.code, ended.out) == (3, ""), ended
        assert "no guest" in ended.err


def until_it_copies(process):
    """Read its progress until the job has begun: a line may come before it, which has no sizes."""
    assert any("KiB" in line for line in process.stderr)


@pytest.mark.parametrize("signals", [1, 2])
def test_interrupted_commit_leaves_no_daemon_and_job_wait_ends_it(qemu, images, command, tmp_path, signals):
    made = images("base <- s1 <- s2")
    image = ("-i", "vda=s2.qcow2")
    process = command.start(
        *image, "commit", "vda", "--top", "s1", "--speed", "16K", "--progress", stderr=subprocess.PIPE
    )
    until_it_copies(process)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
    ended = command.end(process)
    assert ended.code == 130, ended.err
    wait_for(lambda: not daemons(tmp_path), "the daemon's end")
    for record in json.loads(command(*image, "jobs", "--json").out).get("interrupted", []):
        command(*image, "job", "wait", record["id"])
    assert command(*image, "commit", "vda", "--top", "s1").code == 0
    assert json.loads(command(*image, "jobs", "--json").out)["interrupted"] == []
    assert qemu.read(made.active) == made.content[-1]


@pytest.mark.parametrize("verb", ["stream", "commit"])
def test_jobs_names_what_a_killed_client_has_left(qemu, images, command, tmp_path, verb):
    made = images("base <- s1 <- s2")
    image = ("-i", "vda=s2.qcow2")
    process = command.start(*image, verb, "vda", "--speed", "16K", "--progress", stderr=subprocess.PIPE)
    until_it_copies(process)
    process.kill()
    command.end(process)
    wait_for(lambda: not daemons(tmp_path), "the daemon's end")
    (left,) = command(*image, "jobs", "--json").json["interrupted"]
    listed = command(*image, "jobs")
    assert (listed.code, left["op"], left["disk"]) == (0, verb, "vda")
    assert listed.out.startswith(f"{left['id']}: {verb} of vda, started ")
    assert f"to finish it: {left['ways'][0]}" in listed.out
    words = left["ways"][0].split()[1:]  # the commit again, or what is left of the stream
    ended = command(*image, *words)
    assert ended.code == (4 if verb == "stream" else 0), ended  # 4: the job was gone before its end
    assert command(*image, "jobs", "--json").json["interrupted"] == []
    assert qemu.read(made.active if verb == "stream" else made.files[0]) == made.content[-1]


def test_what_a_killed_machine_has_left_of_a_checkpoint_waits_for_its_start(images, command):
    made = images("base")
    directory, overlay = f"{made.active.removesuffix('.qcow2')}.qmpsnap", f"{made.active}.c1"
    record = replace(
        CHECKPOINT,
        id="qmpsnap-checkpoint-keep-0a1b2c3d",
        chains={"vda": (made.active,)},
        after={"vda": (overlay, made.active)},
        stages=stages(
            *overlaying({"vda": overlay}, {"vda": made.active}),
            tidy=(keep_moment(directory, "qmpsnap-checkpoint-keep-0a1b2c3d", "c1"),),
        ),
        name="c1",
        moves=("vda",),
    )
    Path(directory).mkdir()
    Path(directory, record.file_name).write_text(to_json(record))
    way = f"start the machine, and then: qmpsnap job wait {record.id}"
    listed = command("-i", "vda=base.qcow2", "jobs")
    assert (listed.code, listed.err) == (0, "")
    assert listed.out.endswith(f"  to finish it: {way}\n")
    found = command("-i", "vda=base.qcow2", "doctor")
    assert (found.code, found.out.split()[0], found.out.count("mend:")) == (8, "operation-left:", 0)
    assert way in " ".join(found.out.split())
    Path(directory, record.file_name).unlink()
