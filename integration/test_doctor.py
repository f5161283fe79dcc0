"""Each trouble is made on a real QEMU, found, mended by the command that is printed, and then gone."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.doctoring import forget_format
from integration.known_images import MIB, QEMUS
from integration.machines import blockdev, drive, throttled, wait_for
from integration.test_encryption import encrypted
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.graph import LONG_CHAIN

ONE = pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])


def node_of(running, file, driver="qcow2"):
    nodes = running.qmp("query-named-block-nodes", flat=True)
    return next(one["node-name"] for one in nodes if one["file"] == str(file) and one["drv"] == driver)


def listens(path):
    """Whether there is a server; a socket has its name before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


# -- what is well ------------------------------------------------------------------------------------


@ONE
def test_unusual_settings_that_are_right_are_healthy(qemu, machine, doctor, tmp_path):
    def image(name, form="qcow2", **more):
        return qemu.create(tmp_path / name, MIB, form=form, **more)

    base = image("base.qcow2")
    relative = image("relative.qcow2", backing="base.qcow2")
    secret = "secret,id=s,data=abc"
    _, luks = encrypted(qemu, tmp_path, "qcow2")
    luks["node-name"] = "luks-node"
    quorum = {"driver": "quorum", "node-name": "quorum-node", "vote-threshold": 1, "children": [
        {"driver": "qcow2", "file": {"driver": "file", "filename": image(name)}} for name in ("q1", "q2")
    ]}  # fmt: skip
    zeroes = {"driver": "qcow2", "node-name": "zero-node", "detect-zeroes": "unmap", "discard": "unmap",
              "file": {"driver": "file", "filename": image("zero.qcow2"), "discard": "unmap"}}  # fmt: skip
    served, nbd = f"{tmp_path}/nbd", image("nbd.raw", "raw")
    remote = {"driver": "nbd", "node-name": "nbd-node", "server": {"type": "unix", "path": served}}
    server = subprocess.Popen([qemu.directory / "qemu-nbd", "-k", served, "-f", "raw", "-t", nbd])
    wait_for(lambda: listens(served), "the NBD server")
    try:
        with machine(
            *throttled("vda", relative), *drive("vdb", image("b.raw", "raw"), "raw"),
            "-object", "iothread,id=io", "-object", secret,
            "-blockdev", json.dumps(zeroes), "-device", "virtio-blk-pci,drive=zero-node,id=vdc,iothread=io",
            "-drive", f"if=none,id=ro,format=qcow2,readonly=on,file={base}",
            "-device", "virtio-blk-pci,drive=ro,id=vdd",
            "-drive", f"if=none,id=tmp,format=qcow2,snapshot=on,file={image('snap.qcow2')}",
            "-device", "virtio-blk-pci,drive=tmp,id=vde",
            "-blockdev", json.dumps(remote),
            "-device", "virtio-blk-pci,drive=nbd-node,id=vdf",
            "-blockdev", json.dumps(luks), "-device", "virtio-blk-pci,drive=luks-node,id=vdg",
            "-blockdev", json.dumps(quorum), "-device", "virtio-blk-pci,drive=quorum-node,id=vdh",
            "-drive", f"if=none,id=iso,media=cdrom,readonly=on,format=raw,file={image('cd.iso', 'raw')}",
            "-device", "ide-cd,drive=iso,id=cd0,bus=ide.0", "-device", "ide-cd,id=cd1,bus=ide.1",
            *(word for unit in (0, 1) for word in (
                "-drive", f"if=pflash,unit={unit},format=raw,file={image(f'flash{unit}.fd', 'raw')}")),
            "-object", "memory-backend-ram,id=shm,share=on,size=1M", "-device", "ivshmem-plain,memdev=shm",
            "-qmp", f"unix:{tmp_path}/second,server=on,wait=off",
        ) as running:  # fmt: skip
            doctor = doctor(running)
            assert doctor.troubles() == [], doctor.text
            assert "limit: device-in-way: the guest\n  QEMU cannot save its memory: " in doctor.text
            running.qmp("cont")
            assert doctor.troubles() == [], doctor.text
    finally:
        server.kill()
        server.wait()


# -- what is wrong with a running machine ------------------------------------------------------------


def slow_backup(running, job_id, disk, target, **more):
    """A job of another client, which goes on for as long as it is let."""
    running.qmp("blockdev-add", {"driver": "null-co", "node-name": target, "size": 8 * MIB})
    running.qmp("blockdev-backup", {"job-id": job_id, "device": f"{disk}-node", "target": target,
                                    "sync": "full", "auto-dismiss": False, **more})  # fmt: skip


def statuses(running):
    """The id and the state of each job."""
    return [(job["id"], job["status"]) for job in running.qmp("query-jobs")]


def test_jobs_nodes_headers_and_bitmaps_are_mended(qemu, images, machine, doctor, tmp_path):
    one, two, raw = images(folder="a"), images("base", folder="b"), images(folder="c", base_format="raw")
    qemu.img("bitmap", "--add", two.active, "b0")
    with machine(*blockdev("vda", two.active)) as running:
        running.write("vda", 7, 0, 65536)
        running.kill()
    forget_format(raw.files[1])
    with machine(
        *blockdev("vda", one.active), *blockdev("vdb", two.active), *blockdev("vdc", raw.active)
    ) as running:
        running.write("vda", 0x77, "5M", 65536)
        middle = node_of(running, one.files[1])
        running.qmp("change-backing-file", {"device": "vda-node", "image-node-name": middle,
                                            "backing-file": "gone.qcow2"})  # fmt: skip
        left = qemu.create(tmp_path / "left.qcow2")
        file = {"driver": "file", "filename": left}
        running.qmp("blockdev-add", {"driver": "qcow2", "node-name": "left", "file": file})
        running.qmp("blockdev-add", {"driver": "copy-before-write", "node-name": "user-cbw",
                                     "file": "vdb-node", "target": "left"})  # fmt: skip
        running.qmp("qom-set", path="/machine/peripheral/vdb", property="drive", value="user-cbw")
        exported = {"type": "unix", "data": {"path": f"{tmp_path}/nbd"}}
        running.qmp("nbd-server-start", {"addr": exported})
        running.qmp("block-export-add", {"type": "nbd", "id": "user-e", "node-name": "left"})
        slow_backup(running, "ended", "vda", "t1")
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="ended", status="concluded")
        slow_backup(running, "paused", "vdc", "t2", speed=1)
        running.qmp("job-pause", {"id": "paused"})  # the reply does not wait for that
        wait_for(lambda: ("paused", "paused") in statuses(running), "the pause")
        doctor = doctor(running)
        assert doctor.troubles() == [
            ("backing-wrong", one.files[1]),
            ("format-missing", raw.files[1]),
            ("job-paused", "paused"),
            ("job-concluded", "ended"),
            ("node-left", "t1"),
            ("bitmap-inconsistent", "vdb: b0"),
        ]
        doctor.mend()
        running.qmp("block-job-set-speed", {"device": "paused", "speed": 0})
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="paused", status="concluded")
        assert doctor.mend_all() == [
            ("job-concluded", "paused"),
            ("node-left", "t2"),
        ]
        running.qmp("nbd-server-stop")
        assert doctor.mend_all() == [
            ("filter-left", "vdb"),
            ("node-left", "user-cbw"),
            ("node-left", "left"),
        ]
        running.read("vda", 0x77, "5M", 65536)
        with pytest.raises(AssertionError):
            qemu.img("bitmap", "--remove", two.active, "b0")
        running.quit()
    qemu.check_chain(*one.chain)
    assert [one["format"] for one in qemu.chain(raw.active)] == ["qcow2", "qcow2", "raw"]


def failing(event, errno):
    """A file of which the second request of a kind fails, once; QEMU itself reads the first sector."""
    return {"driver": "blkdebug", "image": {"driver": "null-co", "size": 8 * MIB},
            "set-state": [{"event": event, "state": 1, "new_state": 2}],
            "inject-error": [{"event": event, "errno": errno, "once": True, "state": 2}]}  # fmt: skip


def test_a_guest_and_a_job_stopped_by_an_error_go_on(qemu, images, machine, doctor):
    errno, code = (5, "io-error") if qemu is QEMUS[-1] else (28, "disk-full")
    bad = {"driver": "raw", "node-name": "bad", "file": failing("read_aio", errno)}
    with machine(
        "-blockdev", json.dumps(bad), "-device", "virtio-blk-pci,drive=bad,id=vda,rerror=stop,bootindex=0",
        *blockdev("vdb", images("base").active),
    ) as running:  # fmt: skip
        running.qmp("cont")
        running.qmp.wait_event("STOP")
        target = {"driver": "raw", "node-name": "t", "file": failing("write_aio", errno)}
        running.qmp("blockdev-add", target)
        running.qmp("blockdev-backup", {"job-id": "theirs", "device": "vdb-node", "target": "t",
                                        "sync": "full", "on-target-error": "stop"})  # fmt: skip
        running.qmp.wait_event("BLOCK_JOB_ERROR")
        doctor = doctor(running)
        assert doctor.troubles() == [(code, "vda"), ("job-stopped", "theirs")]
        doctor.mend()
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="theirs", status="null")
        assert doctor.mend_all() == [("node-left", "t")]
        assert running.qmp("query-status")["status"] == "running"


async def commit_left(running, **more):
    """Start a commit, and detach from it: its job is slow, and nobody is at work on it."""

    hooks = qmpsnap.Hooks(detach=anyio.Event())
    hooks.detach.set()
    async with running.connect() as vm:
        with pytest.raises(qmpsnap.Detached) as detached:
            await vm.commit("vda", hooks=hooks, **more)
        return detached.value.job_id


@ONE
def test_what_dead_operations_left_is_finished(qemu, images, machine, doctor, tmp_path):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        doctor = doctor(running)
        job = asyncio.run(commit_left(running, top=made.files[1], base=made.files[0], speed=1))
        running.qmp("block-job-set-speed", {"device": job, "speed": 0})
        assert doctor.mend_all() == [("operation-left", job)]
        assert not Path(made.files[1]).exists()
        doctor.do(f"qmpsnap -s {running.socket} commit vda --keep-overlay")
        assert doctor.mend_all() == [("layer-invalid", "vda"), ("node-left", "vda-node")]
        running.qmp("cont")
        # A checkpoint without its memory, and memory without its checkpoint.
        for name in ("c1", "c2"):
            doctor.do(f"qmpsnap -s {running.socket} checkpoint {name} --mode stop")
        (one,) = tmp_path.glob("*.c1.memory")
        one.unlink()
        (record,) = tmp_path.rglob("moment-c2-*.json")
        record.unlink()
        (two,) = tmp_path.glob("*.c2.memory")
        assert doctor.mend_all() == [("state-missing", "c1"), ("state-unused", str(two))]
        assert not two.exists()


@ONE
def test_names_that_are_lost_and_a_second_writer_are_found(qemu, images, machine, doctor, tmp_path):
    made, other = images(folder="a"), images(folder="b")
    with machine(*drive("vda", made.active), *drive("vdb", other.active)) as running:
        doctor = doctor(running)
        running.write("vdb", 0x55, "6M", 65536)
        Path(made.files[1]).rename(tmp_path / "moved")
        assert doctor.mend_all() == [("layer-moved", made.files[1])]
        Path(other.files[1]).unlink()
        assert doctor.mend_all() == [("layer-moved", other.files[1])]
        running.read("vdb", 0x55, "6M", 65536)
        copy = next(one["inserted"] for one in running.qmp("query-block") if one["device"] == "drive-vdb")
        assert copy["file"] == f"{tmp_path}/b/s2.copy.qcow2"
        with Path(made.files[0]).open("r+b") as base:
            assert doctor.troubles() == []  # that is our process
            with subprocess.Popen(["sleep", "30"], stdin=base) as writer:
                assert doctor.troubles() == [("image-in-use", made.files[0])]
                assert f"process {writer.pid} (sleep" in " ".join(doctor.text.split())
                writer.kill()
    qemu.check_chain(*made.chain)


@ONE
def test_headers_that_qemu_itself_writes_wrong_are_mended(qemu, images, machine, doctor, tmp_path):
    """An overlay elsewhere of an image with a relative name, and one above a throttle."""
    one, two = images("base", folder="a"), images("base", folder="b")
    overlays = [f"{tmp_path}/{name}.qcow2" for name in ("o1", "o2")]
    with machine(
        "-drive", "if=none,id=vda,format=qcow2,file=base.qcow2", "-device", "virtio-blk-pci,drive=vda,id=vda",
        *throttled("vdb", two.active), cwd=tmp_path / "a",
    ) as running:  # fmt: skip
        running.qmp("blockdev-snapshot-sync", {"device": "vda", "snapshot-file": overlays[0]})
        running.qmp("blockdev-snapshot-sync", {"node-name": "thr", "snapshot-node-name": "over",
                                               "snapshot-file": overlays[1]})  # fmt: skip
        for disk in ("vda", "vdb"):
            running.write(disk, 0x66, "7M", 65536)
        found = [("backing-wrong", overlays[0]), ("format-wrong", overlays[1])]
        assert doctor(running).mend_all() == found
        for disk in ("vda", "vdb"):
            running.read(disk, 0x66, "7M", 65536)
            running.read(disk, 0x11, "4M", 65536)
    qemu.check_chain(overlays[0], *one.chain)
    qemu.check_chain(overlays[1], *two.chain)


@ONE
def test_limits_are_lifted_by_their_commands(qemu, images, machine, doctor, tmp_path, small):
    """A raw disk, pflash, and a base on a file system that is mounted read-only."""
    raw = images("base", folder="b", base_format="raw")
    flash = [qemu.create(tmp_path / f"flash{unit}.raw", MIB, form="raw") for unit in (0, 1)]
    place = small("16m")
    base = qemu.create(place / "base.qcow2")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    top = qemu.create(tmp_path / "top.qcow2", backing=base)
    with machine(
        *blockdev("vda", top), *drive("vdb", raw.active, "raw"),
        *(word for unit in (0, 1) for word in
          ("-drive", f"if=pflash,unit={unit},format=raw,file={flash[unit]}")),
    ) as running:  # fmt: skip
        doctor = doctor(running)
        found, limits = doctor.look()
        assert limits == len(found)
        assert sorted(found) == [
            ("no-internal", "pflash0"),
            ("no-internal", "pflash1"),
            ("no-internal", "vdb"),
            ("not-writable", base),
        ]
        doctor.mend()
        assert doctor.look()[0] == [("not-writable", base)]
        doctor.do(f"qmpsnap -s {running.socket} checkpoint c1 --mode internal")
        running.quit()


@ONE
def test_a_full_disk_and_a_wrong_start_are_said(qemu, images, machine, doctor, small):
    place = small("24m")
    base = qemu.create(place / "base.qcow2", 64 * MIB)
    with machine(*blockdev("vda", base)) as running:
        doctor = doctor(running)
        assert doctor.troubles() == []
        filler = place / "filler"
        filler.write_bytes(bytes(20 * MIB))
        assert (doctor.troubles(), doctor.mending) == ([("space-low", "vda")], [])
        filler.unlink()
        above = qemu.create(place / "above.qcow2", 64 * MIB, backing=base)
        assert (doctor.troubles(), doctor.mending) == ([("started-below", "vda")], [])
        assert f"start it from {above}" in " ".join(doctor.text.split())


@ONE
def test_a_chain_that_is_too_long_is_folded(qemu, machine, doctor, tmp_path):
    names = [tmp_path / f"n{number}.qcow2" for number in range(LONG_CHAIN + 2)]
    for number, name in enumerate(names):
        below = (str(names[number - 1]), "qcow2") if number else (None, None)
        made = empty_qcow2(virtual_size=MIB, backing=below[0], backing_format=below[1])
        with name.open("wb") as image:
            image.truncate(made.size_bytes)
            for offset, data in made.parts:
                image.seek(offset)
                image.write(data)
    with machine(*drive("vda", names[-1])) as running:
        running.write("vda", 7, 0, 65536)
        assert doctor(running).mend_all() == [("chain-long", "vda")]
        running.read("vda", 7, 0, 65536)
    qemu.check_chain(str(names[-1]), str(names[0]))


@ONE
def test_a_failed_load_is_mended_and_a_record_that_cannot_be_read_is_named(images, machine, doctor, tmp_path):
    with machine(*drive("vda", images("base").active)) as running:
        doctor = doctor(running)
        running.qmp("cont")
        running.qmp("human-monitor-command", {"command-line": "loadvm nothing"})
        assert doctor.mend_all() == [("load-failed", "the guest")]
        doctor.do(f"qmpsnap -s {running.socket} cont")
        doctor.do(f"qmpsnap -s {running.socket} snapshot n1")
        (record,) = tmp_path.rglob("moment-n1-*.json")
        record.write_text("{")
        assert (doctor.troubles(), doctor.mending) == ([("record-unreadable", str(record))], [])
