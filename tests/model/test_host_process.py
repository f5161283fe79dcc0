"""How a process is named in messages."""

from __future__ import annotations

from qmpsnap.model.host_process import HostProcess, program_of
from tests.each import each

LOADER = "/usr/lib64/ld-linux-x86-64.so.2"


@each(
    ("argv", "program"),
    [
        ((), ""),
        (("/usr/bin/qemu-system-x86_64", "-S"), "qemu-system-x86_64"),
        (("evil",), "evil"),
        (("/usr/bin/python3", "-u", "/opt/watch.py", "--now"), "python3 watch.py"),
        (("python3.12", "-m", "http.server"), "python3.12 -m http.server"),
        (("python3", "-c", "password = 'secret'"), "python3"),
        (("python3",), "python3"),
        (("/bin/sh", "/usr/bin/run"), "sh run"),
        (("-bash",), "-bash"),
        ((LOADER, "--argv0", "x", "--library-path", "/lib", "/opt/bin/qemu-kvm", "-S"), "qemu-kvm"),
        ((LOADER, "--inhibit-cache", "/usr/bin/python3", "a.py"), "python3 a.py"),
        ((LOADER,), ""),
    ],
)
def test_program_of_names_what_runs_without_its_arguments(argv, program):
    assert program_of(argv) == program


def test_process_is_named_by_pid_program_and_user():
    assert str(HostProcess(7, "qemu-kvm", "alice")) == "process 7 (qemu-kvm, user alice)"
    assert str(HostProcess(7)) == "process 7 (?)"
