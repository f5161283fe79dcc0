"""The guest's kernel, modules, busybox and agent: downloaded by apt into the cache, installed nowhere.

This works on Debian and Ubuntu, without root. On another system put the same files into a directory, and name
it in QMPSNAP_GUEST:

    vmlinuz         a Linux kernel for x86-64
    modules/*.ko    those of `initramfs.MODULES` that are not built into the kernel, not compressed
    busybox         linked statically, with its own shell

The QEMU guest agent is fetched separately, for guests that need it.
"""

from __future__ import annotations

import errno
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Literal

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.run.guard import guarded
from qmpsnap.testing.initramfs import LOADER, MODULES, is_static_elf

__all__ = ["agent_directory", "cache_directory", "fetch", "fetch_agent", "guest_directory"]

_KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual")  # Debian's, Ubuntu's
_NEEDED: Final = (
    "put vmlinuz, modules/*.ko (virtio, virtio_pci, virtio_blk, virtio_console and what they need, unless "
    "they are built in) and a static busybox into a directory, and name it in QMPSNAP_GUEST"
)
_NEEDS_AGENT: Final = "only a test that asks the guest agent needs it; all others run without it"
_APT: Final = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20")
_LIBRARY: Final = re.compile(r"lib.+\.so\.[0-9.]+")
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst")


def cache_directory() -> Path:
    """Return the directory of the cache: $QMPSNAP_CACHE, else qmpsnap/ in $XDG_CACHE_HOME or ~/.cache."""
    if directory := os.environ.get("QMPSNAP_CACHE"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmpsnap"


def guest_directory() -> Path:
    """Return the directory of the guest's parts: $QMPSNAP_GUEST, else guest/ in the cache."""
    return Path(os.environ.get("QMPSNAP_GUEST") or cache_directory() / "guest")


def agent_directory() -> Path:
    """Return the directory of the guest agent: guest-agent/ in the cache."""
    return cache_directory() / "guest-agent"


def fetch() -> Path:
    """Put the guest's parts into the cache, unless they are there; return their directory.

    The first call downloads 30 MB, which takes up to a minute; so does the first call of a new version that
    needs more modules. The directory gets its name when it is complete; what an interrupted call has left is
    removed by the next call. A second call at the same time waits for the first. If QMPSNAP_GUEST names a
    directory, nothing is done. Blocks.

    Raises:
        Unsupported: When this system has no apt for x86-64, or apt cannot download the packages; the message
            has apt's reason, and the hint says what to do without apt.
        InvalidTarget: When the cache cannot be written to.
    """
    if os.environ.get("QMPSNAP_GUEST"):
        return guest_directory()
    return _ensure(guest_directory(), "\n".join(MODULES), _take_guest)


def fetch_agent() -> Path:
    """Put the QEMU guest agent and its libraries into the cache, as `fetch` does; return their directory.

    Raises:
        Unsupported, InvalidTarget: As `fetch`.
    """
    return _ensure(agent_directory(), "", _take_agent, what="guest agent", needed=_NEEDS_AGENT)


class _Missing(Exception):
    """What is missing, or has failed."""


def _ensure(
    directory: Path,
    contents: str,
    take: Callable[[Path, Path], None],
    *,
    what: str = "guest",
    needed: str = _NEEDED,
) -> Path:
    """Create a directory of the cache, unless it exists: `take` fills it, and gets one for temporary files.

    Its file .complete holds `contents`, which tells whether an older version of qmpsnap created it.
    """
    if _state(directory, contents) == "complete":
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(directory.with_name(f"{directory.name}.lock")):
            state = _state(directory, contents)
            try:
                if state != "complete":
                    _make(directory, contents, take)
            except _Missing as missing:
                # An older guest stays; it lacks only modules that few tests need.
                if state == "missing":
                    message = f"no {what} could be fetched: {missing}"
                    raise Unsupported(message, feature=what, hint=needed) from None
    except OSError as error:
        raise InvalidTarget(
            f"the {what} cannot be put into {str(directory)!r}: {error.strerror or error}",
            file=str(directory),
            hint="QMPSNAP_CACHE names another directory for it",
        ) from error
    return directory


def _state(directory: Path, contents: str) -> Literal["missing", "older", "complete"]:
    """Return whether the directory exists, and holds all that this version needs."""
    try:
        recorded = (directory / ".complete").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    return "complete" if recorded == contents else "older"


def _make(directory: Path, contents: str, take: Callable[[Path, Path], None]) -> None:
    _check_system()
    unfinished = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        parts, work = unfinished / "parts", unfinished / "work"
        parts.mkdir(parents=True)
        work.mkdir()
        take(work, parts)
        (parts / ".complete").write_text(contents)
        if directory.exists():  # from an older qmpsnap, or an interrupted call: it is not complete
            directory.rename(unfinished / "old")
        parts.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_guest(work: Path, parts: Path) -> None:
    (parts / "modules").mkdir()
    for package in _download(work, _guest_packages):
        _take(package, parts, _guest_part)
    if not (parts / "vmlinuz").is_file():
        raise _Missing("the kernel's package contains no vmlinuz")
    if not (parts / "busybox").is_file() or not is_static_elf((parts / "busybox").read_bytes()):
        raise _Missing("the package busybox-static contains no static busybox")


def _take_agent(work: Path, parts: Path) -> None:
    for package in _download(work, _agent_packages):
        _take(package, parts, _agent_part)
    for name in ("qemu-ga", LOADER):
        if not (parts / name).exists():
            raise _Missing(f"the packages of the guest agent contain no {name}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# -- packages --------------------------------------------------------------------------------------


def _check_system() -> None:
    for program in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            raise _Missing(
                f"the guest is fetched by Debian's and Ubuntu's tools, and there is no {program} here"
            )
    architecture = _tool(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise _Missing(f"the guest is for x86-64, and the packages here are for {architecture}")


def _download(work: Path, packages: Callable[[Sequence[str]], list[str]]) -> list[Path]:
    """Download packages by the system's package lists, or else by lists that are downloaded first."""
    try:
        return _download_by(work, packages, ())
    except _Missing:
        lists = work / "lists"
        (lists / "partial").mkdir(parents=True)
        (work / "archives/partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={work}")
        _tool(["apt-get", "-qq", *_APT, *own, "-o", "APT::Update::Error-Mode=any", "update"])
        return _download_by(work, packages, own)


def _download_by(
    work: Path, packages: Callable[[Sequence[str]], list[str]], options: Sequence[str]
) -> list[Path]:
    place = work / f"packages-{len(options)}"
    place.mkdir()
    _tool(["apt-get", "-qq", *_APT, *options, "download", *packages(options)], cwd=place)
    return sorted(place.glob("*.deb"))


def _guest_packages(options: Sequence[str]) -> list[str]:
    """Return the names of the packages that hold the newest kernel, its modules, and busybox."""
    for name in _KERNELS:
        if packages := _needed_by(name, ("linux-image-", "linux-modules-"), options):
            return [*packages, "busybox-static"]
    raise _Missing(f"apt knows neither {_KERNELS[0]} nor {_KERNELS[1]}")


def _agent_packages(options: Sequence[str]) -> list[str]:
    return ["qemu-guest-agent", *_needed_by("qemu-guest-agent", ("lib",), options)]


def _needed_by(name: str, prefixes: tuple[str, ...], options: Sequence[str]) -> list[str]:
    """Return the packages with one of these prefixes on which a package depends, directly or indirectly."""
    packages: list[str] = []
    pending = [name]
    while pending:
        words = _tool(["apt-cache", *options, "depends", "--important", pending.pop()], check=False).split()
        needed = [word for word in dict.fromkeys(words) if word.startswith(prefixes)]
        new = [word for word in needed if word != name and word not in packages]
        packages += new
        pending += new
    return packages


def _tool(words: Sequence[str], *, cwd: Path | None = None, check: bool = True) -> str:
    with guarded() as guard:  # apt ends with our process, even if that is killed
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            process_group=guard.pid,
        )
    if check and done.returncode:
        # The reason comes first, and then what apt concludes from it.
        first = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[0]
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _Missing(f"{words[0]} failed: {first}")
    return done.stdout


# -- what is in them -------------------------------------------------------------------------------


def _take(package: Path, parts: Path, part: Callable[[Path], str | None]) -> None:
    """Copy each file of a package to the path that `part` returns for it; None: do not copy it."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacking:
        assert unpacking.stdout is not None  # noqa: S101 - it is a pipe
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    if (target := part(Path(member.name))) is None or os.path.lexists(parts / target):
                        continue
                    if member.issym():
                        (parts / target).symlink_to(Path(member.linkname).name)
                    elif member.isfile():
                        with (parts / target).open("wb") as file:
                            _copy(archive.extractfile(member), file, suffix=Path(member.name).suffix)
        except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
            raise _Missing(f"the package {package.name} is damaged: {error}") from error
    if unpacking.returncode:
        raise _Missing(f"the package {package.name} is damaged")


def _agent_part(path: Path) -> str | None:
    """Return the path of a part of the agent: the program, the loader or a library, all in one directory."""
    return path.name if path.name in {"qemu-ga", LOADER} or _LIBRARY.fullmatch(path.name) else None


def _guest_part(path: Path) -> str | None:
    if path.name.startswith("vmlinuz-"):
        return "vmlinuz"
    if path.name == "busybox" and path.parent.name == "bin":
        return "busybox"
    name = path.name.partition(".")[0]
    if name.replace("-", "_") in MODULES and path.name.removeprefix(name) in _SUFFIXES:
        return f"modules/{name.replace('-', '_')}.ko"
    return None


def _copy(source: IO[bytes] | None, target: IO[bytes], *, suffix: str) -> None:
    assert source is not None  # noqa: S101 - it is that of a regular file
    match suffix:
        case ".xz":
            with lzma.open(source) as unpacked:
                shutil.copyfileobj(unpacked, target)
        case ".zst":
            target.write(_without_zstd(source.read()))
        case _:
            shutil.copyfileobj(source, target)


def _without_zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        raise _Missing("the kernel's modules are compressed, and there is no zstd here")
    done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise _Missing(f"zstd failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
