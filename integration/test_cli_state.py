"""The command line's verbs on VM state, against every QEMU: what each prints, sends, and exits with."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from integration.cli import Cli
from integration.machines import SOON, blockdev, wait_for
from integration.test_cli import files_in, planned, sent

pytestmark = pytest.mark.one_qemu

WAITS = ("-incoming", "defer")
WRITE = (7, 0, 65536)
LATER = (8, 0, 65536)


@pytest.fixture
def pair(qemu, images, machine, tmp_path):
    """A machine that runs, with vda in qcow2 and vdb in raw, and the command for it."""
    raw = qemu.create(tmp_path / "vdb.raw", form="raw")
    with machine(*disks(images("base").active, raw)) as running:
        running.qmp("cont")
        yield running, Cli(running)


def disks(vda, vdb):
    """Arguments of the two disks; vdb is raw when it is called so."""
    return (*blockdev("vda", vda), *blockdev("vdb", vdb, "raw" if str(vdb).endswith(".raw") else "qcow2"))


def status(running):
    return running.qmp("query-status")["status"]


# -- each verb ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("checkpoint", "c1"),
        ("checkpoint", "c1", "--mode", "background", "--memory", "m"),
        ("checkpoint", "c1", "--mode", "in-place"),
        ("revert", "old"),
        ("revert", "old", "--discard"),
        ("revert", "disks"),
        ("save", "m"),
    ],
    ids=" ".join,
)
def test_change_sends_what_n_printed_and_prints_where_that_led(pair, words):
    running, cli = pair
    if words[0] == "revert":
        taken = ("checkpoint", "old", "--mode", "in-place") if words[1] == "old" else ("snapshot", "disks")
        assert cli(*taken).code == 0
    before = running.roots(), files_in(running)
    dry = cli("--json", *words, "-n")
    assert (dry.code, dry.err, dry.json["changed"]) == (0, "", False)
    assert (running.roots(), files_in(running)) == before
    ended = cli("--json", "-vv", *words)
    assert ended.code == 0, ended.err
    assert sent(ended.err) == planned(dry)
    found = ended.json
    assert found["chains"] == dry.json["plan"]["after"]
    assert (found["op"], found["changed"]) == (words[0], True)
    assert (found["bytes"] > 1000) is (words != ("revert", "disks"))
    assert status(running) == ("postmigrate" if words[0] == "save" else "running")
    assert (found["active"] == {}) is (words[0] == "save")
    if words[0] != "save":
        assert found["standstill_s"] > 0


def test_prepare_sends_nothing_and_leaves_the_chains_alone(pair):
    running, cli = pair
    assert cli("checkpoint", "c1").code == 0
    before = running.roots()
    ended = cli("--json", "-vv", "revert", "c1", "--prepare")
    assert (ended.code, sent(ended.err), running.roots()) == (0, [], before)
    assert ended.json["prepared"].keys() == {"vda", "vdb"}
    assert Path(ended.json["memory"]).is_file()
    assert ended.json["active"] == {}


def test_a_checkpoint_goes_back_in_a_new_qemu_as_the_command_line_tells(pair, machine):
    running, cli = pair
    running.write("vda", *WRITE)
    running.write("vdb", *WRITE)
    text = cli("checkpoint", "c1").out
    assert text.splitlines()[0].startswith("checkpoint: done in ")
    assert "VM state of " in text
    assert "the guest was paused for " in text
    assert text.splitlines()[-1].endswith("revert c1 --prepare prints the files to start it from")
    running.write("vda", *LATER)
    lines = cli("revert", "c1", "--prepare").out.splitlines()
    start = dict(line.removeprefix("start ").split(" from ") for line in lines if line.startswith("start "))
    assert lines[-1] == "next: qmpsnap -s NEW revert c1 --into-incoming"
    with machine(*disks(start["vda"], start["vdb"]), extra=WAITS) as new:
        ended = Cli(new)(*lines[-1].replace("-s NEW ", "").removeprefix("next: qmpsnap ").split())
        assert ended.code == 0, ended.err
        assert status(new) == "running"
        new.read("vda", *WRITE)
        new.read("vdb", *WRITE)
    running.read("vda", *LATER)


def test_a_saved_machine_is_restored_as_the_command_line_tells(pair, machine):
    running, cli = pair
    running.write("vda", *WRITE)
    lines = cli("save", "m").out.splitlines()
    assert lines[0].startswith("save: done in ")
    assert lines[-1] == f"next: qmpsnap -s NEW restore {running.folder}/m"
    start = dict(line.removeprefix("start ").split(" from ") for line in lines if line.startswith("start "))
    running.quit()
    with machine(*disks(start["vda"], start["vdb"]), extra=WAITS) as new:
        dry = Cli(new)("--json", "restore", "m", "-n")
        assert (dry.code, status(new)) == (0, "inmigrate")
        ended = Cli(new)("--json", "restore", "m")
        assert (ended.code, ended.json["op"], status(new)) == (0, "restore", "running")
        new.read("vda", *WRITE)


def test_restore_refuses_a_layer_that_was_written_since(pair, machine, qemu):
    running, cli = pair
    files = cli("--json", "save", "m").json["chains"]
    running.quit()
    with machine(*disks(files["vda"][0], files["vdb"][0]), extra=WAITS) as new:
        Path(files["vdb"][0]).touch()
        ended = Cli(new)("--json", "-vv", "restore", "m")
        error = ended.json["error"]
        assert (ended.code, error["type"], error["changed"]) == (3, "MachineDiffers", "no")
        assert any("vdb.raw" in one for one in error["differences"])
        assert status(new) == "inmigrate"


# -- list and delete -----------------------------------------------------------------------------------


def test_list_tells_the_kinds_of_vm_state(pair):
    _, cli = pair
    for mode in ("stop", "background", "in-place"):
        assert cli("checkpoint", f"c-{mode}", "--mode", mode).code == 0
    assert cli("snapshot", "disks").code == 0
    listed = cli("--json", "list").json["moments"]
    assert [one["mode"] for one in listed] == ["stop", "background", "in-place", ""]
    assert [one["vm_state_missing"] for one in listed] == [False] * 4
    files = [Path(one["vm_state_file"]) for one in listed[:3]]
    assert [one["vm_state_bytes"] for one in listed] == [*(file.stat().st_size for file in files), 0]
    files[1].unlink()
    assert f"    VM state MISSING: {files[1].name}\n" in cli("list").out


def test_delete_takes_the_vm_state_and_the_name_of_a_checkpoint(pair):
    running, cli = pair
    assert cli("checkpoint", "c1").code == cli("checkpoint", "c2", "--mode", "in-place").code == 0
    (first, second) = (Path(one["vm_state_file"]) for one in cli("--json", "list").json["moments"])
    depth = {disk: len(nodes) for disk, nodes in running.roots().items()}
    ended = cli("--json", "delete", "c1")
    assert (ended.code, first.exists(), second.exists()) == (0, False, True)
    assert {disk: len(nodes) + 1 for disk, nodes in running.roots().items()} == depth
    assert [one["name"] for one in cli("--json", "list").json["moments"]] == ["c2"]


def test_an_internal_checkpoint_goes_and_comes_back_beside_a_raw_disk(pair):
    running, cli = pair
    ended = cli("--json", "checkpoint", "c1", "--mode", "internal")
    assert (ended.code, ended.json["error"]["type"]) == (3, "Unsupported")
    running.write("vda", *WRITE)
    running.write("vdb", *WRITE)
    text = cli("checkpoint", "c1", "--mode", "internal", "--leave", "vdb").out
    assert "VM state of " in text
    assert "from now on" not in text
    assert [one["mode"] for one in cli("--json", "list").json["moments"]] == ["internal"]
    running.write("vda", *LATER)
    running.write("vdb", *LATER)
    dry = cli("--json", "revert", "c1", "--leave", "vdb", "-n")
    ended = cli("--json", "-vv", "revert", "c1", "--leave", "vdb")
    assert ended.code == 0, ended.err
    assert sent(ended.err) == planned(dry)
    assert (ended.json["op"], ended.json["active"], status(running)) == ("revert-internal", {}, "running")
    running.read("vda", *WRITE)
    running.read("vdb", *LATER)
    assert cli("delete", "c1").code == 0
    assert cli("list").out == "no snapshots or checkpoints\n"


def test_checkpoint_waits_for_a_job_when_asked(pair):
    running, cli = pair
    copy = f"{running.folder}/copy"
    running.qmp("drive-backup", {"job-id": "theirs", "device": "vda-node", "target": copy, "sync": "full"},
                speed=4096)  # fmt: skip
    refused = cli("--json", "checkpoint", "c1")
    assert (refused.code, refused.json["error"]["type"]) == (3, "Busy")
    waiting = cli.start("checkpoint", "c1", "--wait")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1)
    assert [name for name in files_in(running) if "c1" in name] == []
    running.qmp("block-job-set-speed", device="theirs", speed=0)
    ended = cli.end(waiting)
    assert ended.code == 0, ended.err
    assert "checkpoint: done" in ended.out


@pytest.mark.parametrize(
    ("state", "way"), [("pending", "job wait {}"), ("paused", "job resume {}")], ids=["pending", "paused"]
)
@pytest.mark.parametrize("comes", [False, True], ids=["stands", "comes"])
def test_checkpoint_does_not_wait_for_a_job_that_does_not_end_by_itself(pair, leftovers, state, way, comes):
    """A stream of ours whose client was killed stands at `pending`; one that a user paused stands, too."""
    running, cli = pair
    assert cli("snapshot", "s1").code == 0
    running.write("vda", *WRITE)
    killed = cli.start("stream", "vda", "--speed", "4K")
    job = cli.job()
    killed.kill()
    killed.communicate()

    def to_stand():
        if state == "paused":
            running.qmp("job-pause", id=job)
        else:
            running.qmp("block-job-set-speed", device=job, speed=0)
        wait_for(lambda: running.qmp("query-jobs")[0]["status"] == state, f"the job at {state}")

    if not comes:
        to_stand()
    waiting = cli.start("--json", "checkpoint", "c1", "--wait")
    if comes:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        to_stand()
    since = time.monotonic()
    ended = cli.end(waiting)
    assert time.monotonic() - since < SOON
    error = ended.json["error"]
    assert (ended.code, error["type"], error["job_id"], error["changed"]) == (3, "Busy", job, "no")
    assert f"qmpsnap {way.format(job)}" in error["hint"]
    if state == "paused":
        assert cli("job", "resume", job).code == cli("job", "speed", job, "0").code == 0
    assert cli("job", "wait", job).code == 0
    assert cli("checkpoint", "c1", "--wait").code == 0


def test_checkpoint_waits_for_a_job_that_is_paused_for_moments_and_passes_pending(pair):
    running, cli = pair
    copy = f"{running.folder}/copy"
    # No stream: one that ends in the drain of a `stop` kills 7.2.
    running.qmp("drive-backup", {"job-id": "theirs", "device": "vda-node", "target": copy, "sync": "full"},
                speed=16384)  # fmt: skip
    waiting = cli.start("checkpoint", "c1", "--wait")
    for _ in range(30):  # each `stop` drains, and each drain pauses the job
        time.sleep(0.1)
        running.qmp("stop")
        running.qmp("cont")
    wait_for(lambda: [job["status"] for job in running.qmp("query-jobs")] == ["running"], "the job's resume")
    running.qmp("block-job-set-speed", device="theirs", speed=0)
    ended = cli.end(waiting)
    assert ended.code == 0, ended.err


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("checkpoint", "no/name"), "BadName"),
        (("checkpoint", "old"), "TargetExists"),
        (("checkpoint", "c1", "--memory", "base.qcow2"), "TargetExists"),
        (("checkpoint", "c1", "--memory", "none/m"), "InvalidTarget"),
        (("revert", "nope"), "NotFound"),
        (("revert", "old"), "Unsupported"),
        (("revert", "nope", "--prepare"), "NotFound"),
        (("revert", "old", "--into-incoming"), "Unsupported"),
        (("save", "base.qcow2"), "TargetExists"),
        (("save", "none/m"), "InvalidTarget"),
        (("restore", "nope"), "InvalidTarget"),
        (("restore", "base.qcow2"), "InvalidTarget"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else one,
)
def test_refusal_exits_3_and_sends_nothing(pair, words, kind):
    running, cli = pair
    assert cli("checkpoint", "old").code == 0
    before = running.roots(), files_in(running)
    ended = cli("--json", "-vv", *words)
    error = ended.json["error"]
    assert (ended.code, error["type"], error["changed"]) == (3, kind, "no"), error
    assert sent(ended.err) == []
    assert (running.roots(), files_in(running), status(running)) == (*before, "running")
    assert cli(*words).err.startswith("qmpsnap: refused: ")
