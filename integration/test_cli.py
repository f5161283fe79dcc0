"""The command line as a process, against every QEMU: what each verb prints, sends, and exits with."""

from __future__ import annotations

import json
import re

import pytest

from integration.cli import Cli, records
from integration.machines import READS, blockdev, drive

pytestmark = pytest.mark.one_qemu


@pytest.fixture
def vda(images, machine):
    """A machine with vda on base <- s1 <- s2, and the command for it."""
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        yield running, Cli(running), made


def sent(err):
    """Commands in the log of -vv, those that ask excepted."""
    messages = [json.loads(line[4:]) for line in err.splitlines() if line.startswith("--> ")]
    commands = [(one["execute"], one.get("arguments", {})) for one in messages]
    return [one for one in commands if not one[0].startswith((*READS, "qmp_"))]


def planned(ended):
    return [
        (step["command"], step["arguments"]) for step in ended.json["plan"]["steps"] if step["on"] == "qmp"
    ]


def files_in(running):
    return sorted(path.name for path in running.folder.iterdir())


@pytest.mark.parametrize("words", [("chain",), ("--json", "chain", "vda"), ("delete", "nope"), ("nope",), ()])
def test_forked_command_prints_and_exits_as_one_that_starts_from_nothing(vda, words):
    _, cli, _ = vda
    assert cli(*words) == cli.afresh(*words)


# -- each verb ---------------------------------------------------------------------------------------


def test_chain_shows_what_there_is(vda):
    _, cli, made = vda
    ended = cli("chain")
    assert (ended.code, ended.err) == (0, "")
    first, *rest = ended.out.splitlines()
    assert first.startswith("not running (prelaunch): QEMU was started with -S")
    assert "vda: [base] <- [s1] <- [s2*]" in rest
    layers = cli("--json", "chain", "vda").json["disks"][0]["layers"]
    assert [layer["file"] for layer in layers] == list(made.chain)


@pytest.mark.parametrize(
    "words",
    [
        ("snapshot", "sn"),
        ("snapshot", "sn", "--internal"),
        ("delete", "old"),
        ("stream", "vda"),
        ("stream", "vda", "--base", "base"),
        ("commit", "vda"),
        ("commit", "vda", "--top", "s1", "--base", "base"),
        ("commit", "vda", "--keep-overlay"),
        ("mirror", "vda", "copy.qcow2", "--pivot"),
        ("mirror", "vda", "copy.qcow2", "--finish"),
    ],
    ids=" ".join,
)
def test_change_sends_what_n_printed_and_prints_where_that_led(vda, leftovers, words):
    running, cli, _ = vda
    if words[0] == "delete":
        running.qmp("blockdev-snapshot-internal-sync", device="vda-node", name="old")
    dry = cli("--json", *words, "-n")
    assert (dry.code, dry.err, dry.json["changed"]) == (0, "", False)
    ended = cli("--json", "-vv", *words)
    assert ended.code == 0, ended.err
    assert sent(ended.err) == planned(dry)
    assert ended.json["chains"] == dry.json["plan"]["after"]
    assert {
        "op",
        "changed",
        "active",
        "standstill_s",
        "elapsed_s",
        "bytes",
        "left",
        "invalid",
    } <= ended.json.keys()
    if "--keep-overlay" in words:
        leftovers.allow(*records(running))  # they say what is invalid
    assert cli("jobs").out == "no jobs\n"


def test_dry_run_changes_nothing(vda):
    running, cli, _ = vda
    before, listed = running.roots(), files_in(running)
    text = cli("commit", "vda", "-n").out
    assert "becomes [base*]" in text
    assert '-> {"execute": "block-commit"' in text
    assert text.endswith("nothing was sent (-n)\n")
    assert (running.roots(), files_in(running)) == (before, listed)


def test_what_moves_a_root_says_what_to_start_from(vda):
    running, cli, made = vda
    overlay = f"{running.folder}/o=1.qcow2"
    ended = cli("snapshot", "sn", "--disk", "vda=o=1.qcow2")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"from now on, start vda from {overlay}")
    ended = cli("commit", "vda")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"from now on, start vda from {made.files[0]}")
    assert f"invalid, no longer holds its snapshot (you can remove it): {overlay}.invalid" in ended.out


def test_snapshot_without_a_name_takes_the_time_s(vda):
    _, cli, _ = vda
    (file,) = cli("--json", "snapshot").json["active"].values()
    assert re.fullmatch(r".*/base\.snap-\d{8}T\d{6}\.qcow2", file)


def test_snapshot_takes_several_disks_at_once_and_names_those_left_out(images, machine):
    one, two = images("a", folder="a"), images("b", folder="b")
    with machine(*drive("vda", one.active), *drive("vdb", two.active), "-device", "virtio-scsi-pci",
                 "-device", "scsi-cd,id=cd") as running:  # fmt: skip
        done = Cli(running)("--json", "snapshot", "sn").json
    assert set(done["active"]) == {"vda", "vdb"}
    assert any("cd" in note for note in done["notes"])


# -- refusals and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("snapshot", "no/name"), "BadName"),
        (("snapshot", "sn", "--disk", "vdx"), "NotFound"),
        (("snapshot", "sn", "--disk", "vda=s1.qcow2"), "TargetExists"),
        (("snapshot", "sn", "--disk", "vda=none/o.qcow2"), "InvalidTarget"),
        (("snapshot", "no/name", "--internal"), "BadName"),
        (("snapshot", "sn", "--internal", "--disk", "vdx"), "NotFound"),
        (("delete", "nope"), "NotFound"),
        (("commit", "vda", "--top", "nope"), "NotInChain"),
        (("commit", "vda", "--top", "base", "--base", "s1"), "NotInChain"),
        (("stream", "vda", "--base", "s1", "--into", "s1"), "NotInChain"),
        (("mirror", "vda", "s1.qcow2", "--pivot"), "TargetExists"),
        (("job", "cancel", "nobody"), "NotFound"),
    ],
)
def test_refusal_exits_3_and_sends_nothing(vda, words, kind):
    running, cli, _ = vda
    before = (running.roots(), files_in(running))
    ended = cli("--json", "-vv", *words)
    error = ended.json["error"]
    assert (ended.code, error["type"], error["changed"], sent(ended.err)) == (3, kind, "no", [])
    assert (running.roots(), files_in(running)) == before
    assert cli(*words).err.startswith("qmpsnap: refused: ")


def test_commit_names_whoever_stands_on_the_base(vda):
    running, cli, made = vda
    other = running.qemu.create(running.folder / "other.qcow2", backing=made.files[0])
    ended = cli("--json", "commit", "vda")
    assert (ended.code, ended.json["error"]["type"], ended.json["error"]["by"]) == (3, "StillNeeded", [other])
    assert cli("commit", "vda", "--invalidate", "other.qcow2").code == 0


def test_nobody_there_exits_4(tmp_path, qemu, machine):
    with machine() as running:
        cli = Cli(running)
    ended = cli("chain")
    assert (ended.code, ended.out) == (4, "")
    assert "nothing was changed" in ended.err
