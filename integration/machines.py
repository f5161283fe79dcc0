"""Cheap machines without a guest, with a monitor for the test that uses none of our own code."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import qmpsnap
from qmpsnap.run.proc import is_stopped

CHEAP = ("-M", "q35", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-S")
_FILTERS = {"mirror_top", "commit_top", "copy-on-read", "copy-before-write"}
_LIBC = ctypes.CDLL(None)
READS = ("query-", "qom-get", "qom-list")
"""How commands begin that change nothing."""
SOON = 20.0
"""Seconds, on a machine that may be busy: no limit was waited out. A quiet one needs less than one."""


def blockdev(name, file, form="qcow2", *, node=None):
    """The arguments of a virtio disk `name` on an image, by -blockdev."""
    node = node or f"{name}-node"
    options = {"driver": form, "node-name": node, "file": {"driver": "file", "filename": str(file)}}
    return ("-blockdev", json.dumps(options), "-device", f"virtio-blk-pci,drive={node},id={name}")


def drive(name, file, form="qcow2"):
    """The arguments of a virtio disk `name` on an image, by -drive; the drive's id is `drive-NAME`."""
    escaped = str(file).replace(",", ",,")
    return (
        "-drive", f"if=none,id=drive-{name},format={form},file={escaped}",
        "-device", f"virtio-blk-pci,drive=drive-{name},id={name}",
    )  # fmt: skip


def throttled(name, file):
    """The arguments of a virtio disk `name` on an image, with a throttle `thr` of the user's above it."""
    image = {
        "driver": "qcow2",
        "node-name": f"{name}-node",
        "file": {"driver": "file", "filename": str(file)},
    }
    throttle = {"driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": image}
    return (
        "-object", "throttle-group,id=tg", "-blockdev", json.dumps(throttle),
        "-device", f"virtio-blk-pci,drive=thr,id={name}",
    )  # fmt: skip


WAYS = {"drive": drive, "blockdev": blockdev, "throttle": throttled}
"""How a disk can be given."""


# -- machines --------------------------------------------------------------------------------------


class QmpError(Exception):
    """QEMU said no to a test."""


class Monitor:
    """As little QMP as the tests need, and none of our own code; it blocks."""

    def __init__(self, sock):
        self._socket = sock
        self._socket.settimeout(60)
        self._file = sock.makefile("rwb")
        self.events = []
        try:
            self._read("QMP")
            self("qmp_capabilities")
        except OSError:
            self._file.close()
            raise

    def __call__(self, command, /, arguments=None, **more):
        message = {"execute": command, "arguments": {**(arguments or {}), **more}}
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    def _read(self, wanted=None):
        line = self._file.readline()
        if not line:
            raise EOFError("QEMU closed the monitor")
        answer = json.loads(line)
        assert wanted is None or wanted in answer
        return answer

    def wait_event(self, name, **data):
        """Return the next event of that name, which may have come already."""
        while True:
            while self.events:
                event = self.events.pop(0)
                found = event.get("data", {})
                if event["event"] == name and all(found.get(key) == value for key, value in data.items()):
                    return event
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)

    def hmp(self, line):
        """Run a line in the human monitor; it must be answered by nothing."""
        answer = self("human-monitor-command", {"command-line": line})
        assert answer == "", f"{line}: {answer}"

    def close(self):
        self._file.close()
        self._socket.close()


class Machine:
    """A QEMU without a guest, prelaunch, with a monitor for the test (`qmp`) and one for us (`socket`).

    Used as a context manager. When it ends it checks, unless QEMU was killed, that no job is left and
    no node of ours beyond the disks' chains, and that QEMU ends by itself and well.
    """

    _numbers = itertools.count()

    def __init__(self, qemu, folder, *arguments, cwd=None, extra=(), pass_fds=()):
        self.qemu, self.folder = qemu, Path(folder)
        # A socket's path has at most 107 bytes.
        self.socket = str(Path(folder) / f"qmp{next(self._numbers)}")
        self.killed = False
        self._log = open(f"{self.socket}.log", "w+b", buffering=0)  # noqa: PTH123, SIM115
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [
                qemu.system, *CHEAP, *map(str, arguments), *extra,
                "-chardev", f"socket,id=test,fd={theirs.fileno()}", "-qmp", "chardev:test",
                "-qmp", f"unix:{self.socket.replace(',', ',,')},server=on,wait=off",
            ],
            pass_fds=[theirs.fileno(), *pass_fds], cwd=cwd,
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL),  # noqa: PLW1509 - we have one thread
        )  # fmt: skip
        theirs.close()
        try:
            self.qmp = Monitor(ours)
        except (EOFError, ConnectionResetError):
            ours.close()
            self.process.wait()
            text = self.log()
            self._log.close()
            raise AssertionError(f"QEMU did not start: {text}") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and not self.killed:
                assert self.process.poll() is None, f"QEMU died ({self.process.returncode}): {self.log()}"
                self.check_nothing_left()
                self.quit()
        finally:
            self.kill()
            self.qmp.close()
            self._log.close()
            Path(f"{self.socket}.log").unlink(missing_ok=True)
            Path(self.socket).unlink(missing_ok=True)

    @property
    def pid(self):
        return self.process.pid

    def connect(self, **options):
        """Drive it with qmpsnap: `async with machine.connect() as vm`."""
        return qmpsnap.connect(self.socket, name="test", **options)

    def quit(self):
        with contextlib.suppress(EOFError, ConnectionResetError):
            self.qmp("quit")
        assert self.process.wait(60) == 0, self.log()
        self.killed = True

    def freeze(self):
        """Stop it by a signal; it has stopped when this returns, and `kill -CONT` lets it go on."""
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: is_stopped(self.pid), "the stop by a signal")

    def kill(self):
        """End it at once; what is checked at its end is not checked then."""
        self.killed = True
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def log(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    # -- what the guest would do -------------------------------------------------------------------

    def qemu_io(self, disk, command):
        """Run a command of qemu-io on what the guest sees of a disk."""
        qdev = disk if disk.startswith("/") else f"/machine/peripheral/{disk}/virtio-backend"
        seen = len(self.log())
        self.qmp.hmp(f'qemu-io -d {qdev} "{command}"')
        return self.log()[seen:]

    def write(self, disk, pattern, offset, length):
        printed = self.qemu_io(disk, f"write -P {pattern} {offset} {length}")
        assert f"wrote {length}/{length}" in printed, printed

    def reads(self, disk, pattern, offset, length):
        """Return whether the guest reads the pattern there."""
        printed = self.qemu_io(disk, f"read -P {pattern} {offset} {length}")
        assert f"read {length}/{length}" in printed, printed
        return "verification failed" not in printed

    def read(self, disk, pattern, offset, length):
        """Demand that the guest reads the pattern there."""
        assert self.reads(disk, pattern, offset, length), f"{disk} reads no {pattern:#x} at {offset}"

    # -- what is there -----------------------------------------------------------------------------

    def roots(self):
        """Node names of each disk's chain, active first, by qdev id, as query-blockstats nests them."""
        found = {}
        for row, names in self._chains():
            qdev = row.get("qdev", "")
            user_id = qdev.removeprefix("/machine/peripheral/").partition("/")[0]
            found[user_id or row.get("device") or qdev] = names
        return found

    def _chains(self):
        for row in self.qmp("query-blockstats"):
            names, below = [], row if "node-name" in row else None
            while below is not None:
                names.append(below["node-name"])
                below = below.get("backing")
            yield row, names

    def check_nothing_left(self):
        """Demand that there is no job, no job's filter and no unused node of ours."""
        assert self.qmp("query-jobs") == []
        used = {name for _, names in self._chains() for name in names}
        left = [
            (node["node-name"], node["file"])
            for node in self.qmp("query-named-block-nodes", flat=True)
            if (node["drv"] in _FILTERS and not node["node-name"].startswith("user-"))
            or (node["node-name"].startswith("qmpsnap-") and node["node-name"] not in used)
        ]
        assert left == []


@dataclass
class Leftovers:
    """What lies in a folder beside its images, as found by the fixture that checks this."""

    folder: Path
    allowed: set[str] = field(default_factory=set)

    def allow(self, *files):
        """These may stay: the test says why."""
        self.allowed |= {str(file) for file in files}

    def found(self):
        return sorted(
            str(path)
            for path in self.folder.rglob("*")
            if (path.name.endswith(".tmp") or path.name.startswith((".intent-", ".moment-", "intent-")))
            and str(path) not in self.allowed
        )


@contextlib.contextmanager
def traced(vm):
    """Record every command that changes something, as it is sent."""
    sent = []

    def note(message):
        if not message["execute"].startswith(READS):
            sent.append((message["execute"], message["arguments"]))

    vm._target.session.trace = note
    try:
        yield sent
    finally:
        vm._target.session.trace = None


def messages(plan):
    """What a plan says that it will send."""
    return [(step.command, step.arguments) for step in plan.steps if step.on == "qmp"]


def listing(folder):
    """Names of all files below a folder, without our sockets and logs, and of records without their keys."""
    return sorted(
        re.sub(r"(/moment-[^/.]+)\.[\w-]+(\.json)$", r"\1\2", str(path.relative_to(folder)))
        for path in Path(folder).rglob("*")
        if path.is_file() and not path.name.endswith(".log")
    )


def wait_for(condition, what="it", limit=60.0):
    """Wait until a condition holds; blocks."""
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen within {limit:g} s"
        time.sleep(0.005)
