"""Processes that are forked from one that has imported what they need: the imports take 0.2 s of a processor.

    serving()               starts the process that forks, for all tests of a session (conftest.py)
    command(*words, ...)    `qmpsnap WORDS`, as its entry point runs it
    client(order)           a client that kills itself (client.py)

Each is a process of its own, with the environment, directory and files that it is given. That the command
starts from nothing is seen where a test starts it by `Cli.start` or `Cli.afresh`: the README's commands do.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MOST = 1 << 17  # bytes of an order
_STARTED = []


@contextmanager
def serving():
    """Let the block's tests fork; nobody waits until the process is up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "integration.forking", str(theirs.fileno())],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        _STARTED.append(ours)
        try:
            yield
        finally:
            _STARTED.remove(ours)
            ours.close()  # it ends by that
            process.wait(20)


def command(*words, environment, folder, limit=60.0):
    """Run the command; return its exit code, and what it has printed on stdout and stderr."""
    order = {"words": words, "environment": environment, "folder": str(folder)}
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    status = _sent(order, its_out, its_err)
    os.close(its_out)
    os.close(its_err)
    pid, *_ = _read({status: b""}, [status], time.monotonic() + limit, lines=1)[status].split()
    until, read = time.monotonic() + limit, {out: b"", err: b"", status: b""}
    try:
        _read(read, [out, err, status], until)
    except TimeoutError:
        os.kill(int(pid), signal.SIGKILL)
        raise AssertionError(f"qmpsnap {words} does not end: {read[out]!r} {read[err]!r}") from None
    finally:
        for descriptor in (out, err, status):
            os.close(descriptor)
    return int(read[status]), read[out].decode(), read[err].decode()


def client(order):
    """Run a client's order to its end; return the exit code, -9 when it was killed."""
    status = _sent({"client": order, "environment": dict(os.environ), "folder": str(ROOT)}, 2, 2)
    try:
        _, code = _read({status: b""}, [status], None)[status].split()
    finally:
        os.close(status)
    return int(code)


def _sent(order, out, err):
    """Send the order; return where the process's id can be read, and its exit code when it has ended."""
    status, its_status = os.pipe()
    try:
        socket.send_fds(_STARTED[-1], [json.dumps(order).encode()], [out, err, its_status])
    finally:
        os.close(its_status)
    return status


def _read(found, descriptors, until, *, lines=None):
    """Read all of them to their ends, or so many lines, into `found`, which is returned."""
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and (lines is None or found[descriptors[0]].count(b"\n") < lines):
            ready = selector.select(None if until is None else max(until - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                more = os.read(key.fd, 1 << 16 if lines is None else 1)
                found[key.fd] += more
                if not more:
                    selector.unregister(key.fd)
    return found


# -- the process that forks --------------------------------------------------------------------------


def _main():
    """Fork for each order until the tests' end of the socket is closed."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    cli = importlib.import_module("qmpsnap.cli")
    for module in pkgutil.iter_modules(cli.__path__):
        importlib.import_module(f"qmpsnap.cli.{module.name}")
    importlib.import_module("qmpsnap.entry")
    importlib.import_module("integration.client")
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    data, descriptors, *_ = socket.recv_fds(orders, _MOST, 3)
                    if not data:
                        return
                    out, err, status = descriptors
                    pid = os.fork()
                    if pid == 0:
                        _process(json.loads(data), out, err)
                    os.write(status, b"%d\n" % pid)
                    os.close(out)
                    os.close(err)
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, status = key.data
                    _, ended = os.waitpid(pid, 0)
                    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
                    os.close(status)


def _process(order, out, err):
    """Do what was ordered, and exit."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as Python opens them for a pipe
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(order["environment"])
        time.tzset()
        tempfile.tempdir = None
        os.chdir(order["folder"])
        if "client" in order:
            asyncio.run(importlib.import_module("integration.client").run(order["client"]))
            code = 0
        else:
            sys.argv[1:] = order["words"]
            importlib.import_module("qmpsnap.cli.main").main()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _main()
