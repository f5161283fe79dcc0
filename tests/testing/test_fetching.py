from __future__ import annotations

import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.testing.fetching import cache_directory, fetch, fetch_agent, guest_directory
from qmpsnap.testing.guest_command import main
from qmpsnap.testing.initramfs import MODULES

STATIC_ELF = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64).ljust(32, b"\0")
DEBIAN = {
    "./boot/vmlinuz-6.1.0-cloud-amd64": b"kernel",
    "./boot/System.map-6.1.0-cloud-amd64": b"no",
    "./lib/modules/6.1.0/kernel/drivers/virtio/virtio.ko": b"virtio",
    "./lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko.xz": lzma.compress(b"virtio_blk"),
    "./lib/modules/6.1.0/kernel/drivers/scsi/scsi_mod.ko": b"scsi_mod",
    "./lib/modules/6.1.0/kernel/sound/soundcore.ko": b"no",
}
AGENT = {
    "./usr/sbin/qemu-ga": b"agent",
    "./usr/share/doc/qemu-guest-agent/copyright": b"no",
}
LIBC: dict[str, bytes | str] = {
    "./lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": b"loader",
    "./lib/x86_64-linux-gnu/libc.so.6": b"libc",
    "./lib/x86_64-linux-gnu/gconv/UTF-16.so": b"no",
    "./lib64/ld-linux-x86-64.so.2": "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
}
GLIB: dict[str, bytes | str] = {
    "./usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.7400.6": b"glib",
    "./usr/lib/x86_64-linux-gnu/libglib-2.0.so.0": "libglib-2.0.so.0.7400.6",
}
BUSYBOX = {"./bin/busybox": STATIC_ELF, "./usr/share/doc/busybox-static/copyright": b"no"}
# What each tool of Debian does, as far as it is used: packages are tar archives in $PACKAGES.
TOOLS = {
    "dpkg": "echo amd64",
    "apt-cache": """
case "$*" in
    *qemu-guest-agent) echo "  Depends: init-system-helpers"; echo "  Depends: libglib" ;;
    *libglib) echo "  Depends: libc6"; echo "  Depends: zlib1g" ;;
    *linux-image*) echo "  Depends: $KERNEL"; echo "  Depends: kmod" ;;
esac
""",
    "apt-get": """
[ "$LISTS" = yes ] || case "$*" in
    *update*) LISTS=$UPDATE; echo "W: Failed to fetch: no network" >&2; [ "$UPDATE" = yes ]; exit ;;
    *lists=*) ;;
    *) echo "E: Unable to locate package" >&2; exit 100 ;;
esac
for word in "$@"; do [ ! -e "$PACKAGES/$word" ] || cp "$PACKAGES/$word" "$word.deb"; done
""",
    "dpkg-deb": '[ "$1" = --fsys-tarfile ] && cat "$2"',
}


def pack(file: Path, contents: Mapping[str, bytes | str]) -> None:
    """Write a package; text is where a symbolic link leads."""
    with tarfile.open(file, "w") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def system(tmp_path: Path, monkeypatch) -> Path:
    """A system with Debian's tools; returns where its packages are."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    programs.mkdir()
    packages.mkdir()
    for name, script in TOOLS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    pack(packages / "linux-image-6.1.0-cloud-amd64", DEBIAN)
    pack(packages / "busybox-static", BUSYBOX)
    pack(packages / "qemu-guest-agent", AGENT)
    pack(packages / "libc6", LIBC)
    pack(packages / "libglib", GLIB)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PACKAGES", str(packages))
    monkeypatch.setenv("KERNEL", "linux-image-6.1.0-cloud-amd64")
    monkeypatch.setenv("LISTS", "yes")
    monkeypatch.setenv("QMPSNAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QMPSNAP_GUEST", raising=False)
    return packages


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_fetch_takes_the_kernel_its_modules_and_busybox_out_of_the_packages(system):
    directory = fetch()
    assert directory == cache_directory() / "guest"
    assert contents(directory) == {
        ".complete": "\n".join(MODULES).encode(),
        "vmlinuz": b"kernel",
        "busybox": STATIC_ELF,
        "modules/virtio.ko": b"virtio",
        "modules/virtio_blk.ko": b"virtio_blk",
        "modules/scsi_mod.ko": b"scsi_mod",
    }
    assert sorted(path.name for path in cache_directory().iterdir()) == ["guest", "guest.lock"]


def test_fetch_agent_takes_the_agent_and_every_library_that_it_needs(system):
    directory = fetch_agent()
    assert directory == cache_directory() / "guest-agent"
    assert contents(directory) == {
        ".complete": b"",
        "qemu-ga": b"agent",
        "ld-linux-x86-64.so.2": b"loader",
        "libc.so.6": b"libc",
        "libglib-2.0.so.0.7400.6": b"glib",
        "libglib-2.0.so.0": b"glib",
    }
    assert (directory / "libglib-2.0.so.0").readlink() == Path("libglib-2.0.so.0.7400.6")


def test_fetch_agent_refuses_packages_without_it(system):
    pack(system / "qemu-guest-agent", {})
    with pytest.raises(Unsupported, match="contain no qemu-ga"):
        fetch_agent()


def test_fetch_does_nothing_when_the_guest_is_there_or_is_named(system, monkeypatch, tmp_path):
    fetch()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert fetch() == cache_directory() / "guest"
    monkeypatch.setenv("QMPSNAP_GUEST", str(tmp_path / "mine"))
    assert fetch() == guest_directory() == tmp_path / "mine"


def test_fetch_replaces_what_an_interrupted_one_left(system):
    for name in ("guest", "guest.partial"):
        (cache_directory() / name).mkdir(parents=True)
        (cache_directory() / name / "vmlinuz").write_bytes(b"half")
    assert contents(fetch())["vmlinuz"] == b"kernel"
    assert not (cache_directory() / "guest.partial").exists()


def test_fetch_replaces_one_with_fewer_modules_and_keeps_it_where_it_cannot(system, monkeypatch):
    fetch()
    directory = cache_directory() / "guest"
    for name, content in ((".complete", "virtio"), ("vmlinuz", "old")):
        (directory / name).write_text(content)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert contents(fetch())["vmlinuz"] == b"old"
    monkeypatch.setenv("PATH", path)
    assert contents(fetch())["vmlinuz"] == b"kernel"


def test_fetch_downloads_lists_of_its_own_when_the_system_has_none(system, monkeypatch):
    monkeypatch.setenv("LISTS", "no")
    monkeypatch.setenv("UPDATE", "yes")
    assert (fetch() / "vmlinuz").read_bytes() == b"kernel"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"LISTS": "no", "UPDATE": "no"}, "apt-get failed: W: Failed to fetch: no network"),
        ({"KERNEL": "kmod"}, "apt knows neither linux-image-cloud-amd64 nor linux-image-virtual"),
        ({"KERNEL": "linux-image-none"}, "the kernel's package contains no vmlinuz"),
        ({"PATH": "/nonexistent"}, "there is no apt-get here"),
    ],
    ids=["network", "kernel", "vmlinuz", "system"],
)
def test_fetch_says_why_it_cannot_and_leaves_nothing(system, monkeypatch, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unsupported, match=reason) as refused:
        fetch()
    assert "QMPSNAP_GUEST" in refused.value.hint
    assert [path.name for path in cache_directory().iterdir()] == ["guest.lock"]


@pytest.mark.parametrize(
    ("tool", "script", "reason"),
    [
        ("dpkg", "echo arm64", "for x86-64, and the packages here are for arm64"),
        ("dpkg-deb", "echo nonsense", "damaged"),
        ("dpkg-deb", '[ "$1" = --fsys-tarfile ] && head -c 2000 "$2"', "damaged"),
        ("dpkg-deb", '[ "$1" = --fsys-tarfile ] && cat "$2"; exit 2', "damaged"),
    ],
    ids=["architecture", "no-archive", "cut", "status"],
)
def test_fetch_refuses_what_the_tools_say(system, tmp_path, tool, script, reason):
    (tmp_path / "bin" / tool).write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(Unsupported, match=reason):
        fetch()
    assert [path.name for path in cache_directory().iterdir()] == ["guest.lock"]


def test_fetch_refuses_a_busybox_that_needs_libraries(system):
    pack(system / "busybox-static", {"./bin/busybox": b"#!/bin/sh"})
    with pytest.raises(Unsupported, match="no static busybox"):
        fetch()


def test_fetch_says_which_directory_cannot_be_written_to(system, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QMPSNAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InvalidTarget, match="file/guest") as refused:
        fetch()
    assert "QMPSNAP_CACHE" in refused.value.hint


def test_fetch_says_that_the_disk_is_full_when_apt_says_so(system, tmp_path):
    (tmp_path / "bin" / "apt-get").write_text(
        '#!/bin/sh\necho "E: Failed to fetch x  write (28: No space left on device)" >&2; exit 100\n'
    )
    with pytest.raises(InvalidTarget, match="guest': No space left on device") as refused:
        fetch()
    assert "QMPSNAP_CACHE" in refused.value.hint
    assert [path.name for path in cache_directory().iterdir()] == ["guest.lock"]


def test_main_prints_where_the_guest_is(system, capsys):
    assert main(["fetch"]) == 0
    assert main(["where"]) == 0
    guest = cache_directory() / "guest"
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [str(guest), str(guest.with_name("guest-agent")), str(guest / "vmlinuz")]
    assert Path(lines[3]).read_bytes().startswith(b"070701")


def test_main_ends_with_the_code_of_the_error(system, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["fetch"]) == 3
    assert "next: put vmlinuz" in capsys.readouterr().err


def test_main_says_that_it_downloads_only_when_it_does(system, capsys):
    assert main(["fetch"]) == 0
    assert capsys.readouterr().err == "downloading 30 MB by apt, which takes up to a minute\n"
    assert main(["fetch"]) == 0
    assert capsys.readouterr().err == ""


def test_main_prints_the_guest_though_the_agent_cannot_be_fetched(system, capsys):
    (system / "qemu-guest-agent").unlink()
    assert main(["fetch"]) == 3
    printed = capsys.readouterr()
    assert printed.out == f"{cache_directory() / 'guest'}\n"
    assert printed.err.splitlines()[1:] == [
        "no guest agent could be fetched: the packages of the guest agent contain no qemu-ga",
        "next: only a test that asks the guest agent needs it; all others run without it",
    ]


def test_apt_ends_with_a_fetch_that_is_killed(system, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (system.parent / "bin/apt-get").write_text(f"#!/bin/sh\nexec > {fifo}\necho begun\nexec sleep 600\n")
    words = [sys.executable, "-m", "qmpsnap.testing.guest", "fetch"]
    with subprocess.Popen(words) as fetching, fifo.open() as apt:
        assert apt.readline() == "begun\n"
        fetching.kill()
        assert apt.read() == ""  # apt has closed it


def test_main_interrupted_leaves_nothing_and_no_traceback(system, tmp_path):
    (tmp_path / "bin" / "dpkg").write_text("#!/bin/sh\nkill -INT $PPID; exec sleep 60\n")
    # A shell's background job ignores the signal, and its children inherit that.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(['fetch']))"
    )
    words = ["-c", f"import sys; from qmpsnap.testing.guest_command import main; {program}"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[1:] == ["interrupted; the next call begins anew"]
    assert [path.name for path in cache_directory().iterdir()] == ["guest.lock"]
