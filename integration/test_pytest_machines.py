"""How the plugin resets machines of all kinds by default, and what its report says of it."""

from __future__ import annotations

import itertools
import re
import subprocess
from contextlib import closing
from types import SimpleNamespace

import pytest

import qmpsnap
from integration.known_images import QEMUS
from integration.machines import wait_for
from integration.suites import NOTHING, Suite
from qmpsnap import Machine, MachineDisk
from qmpsnap.testing.shared import machine as shared_machine
from qmpsnap.testing.shared.pool import Pool
from qmpsnap.testing.shared.source import Overrides, source_of

SNAPSHOT = (
    "ide0-hd0 is in snapshot mode (-snapshot, snapshot=on): the guest writes to a temporary file without a "
    "name, and QEMU would also remove a new overlay"
)
OUTSIDE = "the data of {} is not in QEMU, so it cannot be reset"
STAYS = "which is not known to accept another root node"
NO_DISK = "the machine has no disk that it can write to"

# The default machine: qmpsnap's own guest, without disks.
DISKLESS = """
import pytest

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(autouse=True)
def first_state(guest):
    assert guest.run("ls /run; cat /proc/sys/kernel/panic") == "0"
    guest.run("touch /run/trace; echo 9 > /proc/sys/kernel/panic")

async def test_leaves_traces(vm, guest):
    await guest.run("touch /run/more")

def test_pauses_it(vm):
    vm.stop()

def test_reboots_it(guest):
    guest.reset()
    assert guest.run("ls /run") == ""

def test_panics(guest):
    with pytest.raises(Exception, match="the guest has panicked"):
        guest.run("echo c > /proc/sysrq-trigger; sleep 600", limit=600)

def test_is_after_them(guest):
    assert guest.run("ls /run") == "trace"
"""


class Described:
    """The machines, and the files that they need."""

    def __init__(self, qemu, folder):
        self.qemu, self.folder = qemu, folder
        self.qcow2, self.more = (qemu.create(folder / name, size="16M") for name in ("a.qcow2", "b.qcow2"))
        self.raw, self.flash = (
            qemu.create(folder / name, size=size, form="raw")
            for name, size in (("raw", "16M"), ("flash", "4M"))
        )

    def disk(self, file, name="vda", **options):
        return MachineDisk(name=name, file=file, **options)

    def line(self, *arguments):
        return [str(self.qemu.system), "-nodefaults", "-display", "none", "-m", "32", *arguments]

    def vhost_user(self, socket):
        """A launcher of a machine whose disk is served by another process."""
        memory = ("-object", "memory-backend-memfd,id=m,size=32M,share=on", "-machine", "memory-backend=m")
        disk = ("-chardev", f"socket,id=v,path={socket}", "-device", "vhost-user-blk-pci,chardev=v,id=vu")
        return lambda start: qmpsnap.launch([*self.line(*memory, *disk), *start.arguments])


def described(made):
    """Name, machine, and the disks of a command line or a launcher."""
    machine = Machine(memory_mib=32)
    read_only = f"qcow2,node-name=ro,read-only=on,file.driver=file,file.filename={made.qcow2}"
    nvme = (
        "-drive",
        f"if=none,id=n,file={made.qcow2},format=qcow2",
        "-device",
        "nvme,drive=n,serial=1,id=nv",
    )
    redirected = ("-chardev", "null,id=c", "-device", "usb-redir,chardev=c,id=ur")
    drive = ("-drive", f"if=none,id=s,format=raw,file={made.raw}", "-device", "usb-storage,drive=s,id=stick")
    share = ("-virtfs", f"local,path={made.folder},mount_tag=x,security_model=none,readonly=on")
    return {
        "no disk": (machine, {}),
        "qcow2": (Machine(memory_mib=32, disks=[made.disk(made.qcow2)]), {}),
        "raw": (Machine(memory_mib=32, disks=[made.disk(made.raw, format="raw")]), {}),
        "two disks": (
            Machine(memory_mib=32, disks=[made.disk(made.qcow2), made.disk(made.more, "vdb", bus="scsi")]),
            {},
        ),
        "read-only disk": (
            Machine(memory_mib=32, arguments=("-blockdev", read_only, "-device", "virtio-blk-pci,drive=ro")),
            {},
        ),
        "cdrom": (Machine(memory_mib=32, arguments=("-cdrom", made.raw)), {}),
        "-drive": (made.line("-hda", str(made.qcow2)), {"ide0-hd0": made.qcow2}),
        "-snapshot": (made.line("-snapshot", "-hda", str(made.qcow2)), {"ide0-hd0": made.qcow2}),
        "pflash": (
            made.line("-machine", "q35", "-drive", f"if=pflash,format=raw,file={made.flash}"),
            {"pflash0": (made.flash, "raw")},
        ),
        "nvme": (made.line(*nvme), {"nv": made.qcow2}),
        "9p": (made.line(*share), {}),
        "USB stick": (made.line("-device", "qemu-xhci", *drive), {"stick": (made.raw, "raw")}),
        "USB device of the host": (made.line("-device", "qemu-xhci", *redirected), {}),
        "vhost-user": (made.vhost_user(made.folder / "vhost"), {}),
    }


def expected(qemu):
    unsaved = "QEMU cannot save the VM state of this machine: non-migratable device: 0000:00:02.0/nvme"
    nvme = f"nv is nvme (/machine/peripheral/nv), {STAYS}"
    outside = f"boot; not memory, clone: {OUTSIDE}; not disks: {NO_DISK}"
    return {
        **dict.fromkeys(
            ("no disk", "qcow2", "raw", "two disks", "read-only disk", "cdrom", "-drive"), "memory"
        ),
        "9p": "memory",
        "-snapshot": f"boot; not memory, clone, disks: {SNAPSHOT}",
        "pflash": f"clone; not memory: pflash0 is cfi.pflash01 (/machine/system.flash0), {STAYS}",
        "nvme": f"boot; not memory, clone: {unsaved}; not disks: {nvme}"
        if not qemu.version.startswith("11.")
        else f"clone; not memory: {nvme}",
        "USB stick": f"clone; not memory: stick is usb-storage (/machine/peripheral/stick), {STAYS}",
        "USB device of the host": outside.format("ur (usb-redir)"),
        "vhost-user": outside.format("vu (vhost-user-blk-pci)"),
    }


def sampled(names, qemu):
    """All machines on the first QEMU, a third on each other one; and that which differs between them."""
    number = QEMUS.index(qemu)
    return [
        name for place, name in enumerate(names) if number == 0 or place % 3 == number % 3 or name == "nvme"
    ]


@pytest.fixture
def vhost_user(qemu, tmp_path):
    """A disk that another process serves."""
    qemu.create(tmp_path / "served", size="16M", form="raw")
    words = [qemu.directory / "qemu-storage-daemon"]
    words += ["--blockdev", f"file,node-name=f,filename={tmp_path / 'served'}"]
    socket = f"addr.type=unix,addr.path={tmp_path / 'vhost'}"
    words += ["--export", f"vhost-user-blk,id=e,node-name=f,{socket},writable=on"]
    daemon = subprocess.Popen(words)
    wait_for((tmp_path / "vhost").exists, "the socket of the disk", limit=60)
    yield
    daemon.terminate()
    daemon.wait()


@pytest.mark.usefixtures("vhost_user")
def test_default_is_the_fastest_reset_that_is_safe_for_the_machine(qemu, tmp_path, monkeypatch, everything):
    # Every boot, and every trial, takes a second: what is chosen does not depend on the load of this host.
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(shared_machine, "time", clock)
    found = {}
    with Pool() as pool:
        machines = described(Described(qemu, tmp_path))
        for name in [*machines] if everything else sampled([*machines], qemu):
            machine, disks = machines[name]
            source = source_of(machine, disks, None, overrides=Overrides(qemu=str(qemu.system)))
            for test in ("first", "second"):
                pool.begin(name, source, None, test=test).close()
            account = pool.accounts[-1]
            assert (account.again, len(account.resets)) == ([], 0 if "boot" in account.reset else 1)
            found[name] = account.reset.replace(", a trial took 1.00 s", "")
    assert found == {name: expected(qemu)[name] for name in found}


def change_medium(vm, image):
    vm.execute("blockdev-change-medium", {"id": "cd", "filename": image, "format": "raw"})


def eject(vm, _):
    vm.execute("eject", {"id": "cd", "force": True})


@pytest.mark.one_qemu
@pytest.mark.parametrize("act", [change_medium, eject])
@pytest.mark.parametrize("reset", ["memory", "disks"])
def test_next_test_finds_the_first_medium_in_the_drive(qemu, tmp_path, act, reset):
    made = Described(qemu, tmp_path)
    other = qemu.create(tmp_path / "other", size="16M", form="raw")  # the size alone does not tell them apart
    drive = ("-drive", f"if=none,id=m,media=cdrom,readonly=on,format=raw,file={made.raw}")
    machine = Machine(
        memory_mib=32, disks=[made.disk(made.qcow2)], arguments=(*drive, "-device", "ide-cd,drive=m,id=cd")
    )
    source = source_of(machine, {}, None, overrides=Overrides(qemu=str(qemu.system)))
    with Pool(reset=reset) as pool:
        for test in ("first", "second"):
            with closing(pool.begin("cd", source, None, test=test)) as in_use:
                assert in_use.vm.graph().disks["cd"].files == (str(made.raw),)
                act(in_use.vm, str(other))


def test_machine_without_disks_is_reset_by_its_memory_alone(qemu, tmp_path, temporary):
    suite = Suite(qemu, tmp_path, temporary)
    ended = suite.run(DISKLESS, "-o", "asyncio_mode=auto")
    assert (ended.code, ended.counts["passed"]) == (0, 5)
    assert re.search(r"reset: memory, a trial took \S+ s; 1 boot\(s\), 4 reset\(s\)", ended.out)
    assert suite.left() == NOTHING
