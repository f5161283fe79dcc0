"""A guest that needs a reset, a bitmap in use, layers kept for nothing: found, mended as printed, gone."""

from __future__ import annotations

import shutil

from integration.cli import Cli
from integration.known_images import MIB
from integration.machines import blockdev, wait_for
from integration.processes import until_ended
from integration.test_cli_clones import script


def test_a_guest_that_needs_a_reset_and_a_bitmap_in_use(images, machine, doctor):
    panics = ("-device", "pvpanic", "-action", "panic=pause")
    with machine(*blockdev("vda", images("base").active), *panics) as running:
        doctor = doctor(running)
        running.qmp("cont")
        running.qmp.hmp("o /b 0x505 1")  # the port of pvpanic
        wait_for(lambda: running.qmp("query-status")["status"] == "guest-panicked", "the panic")
        running.qmp("block-dirty-bitmap-add", {"node": "vda-node", "name": "b0"})
        running.write("vda", 7, 0, 5 * MIB)
        running.qmp("blockdev-add", {"driver": "null-co", "node-name": "to", "size": 8 * MIB})
        running.qmp("blockdev-backup", {"job-id": "theirs", "device": "vda-node", "target": "to", "speed": 1,
                                        "sync": "incremental", "bitmap": "b0"})  # fmt: skip
        assert doctor.look() == ([("guest-failed", "the guest"), ("bitmap-busy", "vda: b0")], 1), doctor.text
        assert "a job (theirs) uses this bitmap" in " ".join(doctor.text.split())
        assert doctor.mending == [f"qmpsnap -s {running.socket} qmp system_reset"]
        doctor.mend()
        assert doctor.look() == ([("bitmap-busy", "vda: b0")], 1), doctor.text
        doctor.do(f"qmpsnap -s {running.socket} cont")  # as the note says
        assert running.qmp("query-status")["status"] == "running"
        running.qmp("block-job-cancel", {"device": "theirs", "force": True})
        wait_for(lambda: running.qmp("query-jobs") == [], "the job's end")
        running.qmp("blockdev-del", {"node-name": "to"})
        assert doctor.look() == ([], 0), doctor.text


def test_layers_that_are_kept_for_nothing_are_freed(qemu, images, machine, doctor, tmp_path):
    start = script(qemu, tmp_path)
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        running.qmp("cont")
        cli, doctor = Cli(running), doctor(running)
        made = cli("--launcher", start, "template", "t1", tmp_path / "t1")
        assert made.code == 0, made.err
        assert doctor.look() == ([], 0), doctor.text
        shutil.rmtree(tmp_path / "t1")
        found, limits = doctor.look()
        assert ([code for code, _ in found], limits) == (["keeper-gone"], 1), doctor.text
        assert doctor.mending == [f"qmpsnap -s {running.socket} template --remove {found[0][1]}"]
        doctor.mend()
        assert doctor.look() == ([], 0), doctor.text

        process = cli.start("--launcher", start, "fork", "1")
        assert process.stdout.readline().startswith("0: pid ")
        process.kill()
        cli.end(process)
        until_ended(running, tmp_path)
        assert {code for code, _ in doctor.mend_all()} == {"operation-left"}, doctor.text
        assert not list(tmp_path.glob("*template*"))
        assert [one["name"] for one in cli("--json", "list").json["moments"]] == ["t1"]

        process = cli.start("--launcher", start, "fork", "1", "--of", "t1")
        assert process.stdout.readline().startswith("0: pid ")
        process.kill()
        cli.end(process)
        until_ended(running, tmp_path)
        assert {code for code, _ in doctor.mend_all()} == {"keeper-left"}, doctor.text
        assert not list(tmp_path.glob("*template*"))
