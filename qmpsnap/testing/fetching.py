"""The guest's kernel, modules and busybox: downloaded by apt and unpacked into the cache, installed nowhere.

On Debian and Ubuntu nothing else is needed, no root either. Whoever has another system puts the same files
into a directory, and names it in QMPSNAP_GUEST:

    vmlinuz         a Linux kernel for x86-64
    modules/*.ko    of `initramfs.MODULES` those that the kernel has not built in, not compressed
    busybox         linked statically, with its own shell
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.testing.initramfs import MODULES, is_static_elf

__all__ = ["cache_directory", "fetch", "guest_directory"]

_KERNELS: Final = ("linux-image-cloud-amd64", "linux-image-virtual")  # Debian's, Ubuntu's
_NEEDED: Final = (
    "put vmlinuz, modules/*.ko (virtio, virtio_pci, virtio_blk, virtio_console and what they need, unless "
    "they are built in) and a static busybox into a directory, and name it in QMPSNAP_GUEST"
)
_APT: Final = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20")
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst")


def cache_directory() -> Path:
    """Where the guest is kept: $QMPSNAP_CACHE, else qmpsnap/ in $XDG_CACHE_HOME or ~/.cache."""
    if directory := os.environ.get("QMPSNAP_CACHE"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmpsnap"


def guest_directory() -> Path:
    """Where the guest's parts are looked for: $QMPSNAP_GUEST, else guest/ in the cache."""
    return Path(os.environ.get("QMPSNAP_GUEST") or cache_directory() / "guest")


def fetch() -> Path:
    """Put the guest's parts into the cache, unless they are there; return their directory.

    It takes some ten seconds and 30 MB of download the first time. The directory gets its name when it is
    complete; of a call that was interrupted the next one removes what is left. Of two at once the second
    waits for the first. Where QMPSNAP_GUEST names a directory nothing is done. Blocks.

    Raises:
        Unsupported: When this system has no apt for x86-64, or apt cannot download the packages; the message
            has apt's reason, the hint what to do without it.
        InvalidTarget: When the cache cannot be written to.
    """
    directory = guest_directory()
    if os.environ.get("QMPSNAP_GUEST") or (directory / ".complete").exists():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(directory.with_name("guest.lock")):
            if not (directory / ".complete").exists():
                _make(directory)
    except OSError as error:
        raise InvalidTarget(
            f"the guest cannot be put into {str(directory)!r}: {error.strerror or error}",
            file=str(directory),
            hint="QMPSNAP_CACHE names another directory for it",
        ) from error
    return directory


def _make(directory: Path) -> None:
    _check_system()
    partial = directory.with_name("guest.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        parts, work = partial / "guest", partial / "work"
        (parts / "modules").mkdir(parents=True)
        work.mkdir()
        for package in _download(work):
            _take(package, parts)
        _check_parts(parts)
        (parts / ".complete").touch()
        if directory.exists():  # of an older qmpsnap, or of nobody who ended: it is not complete
            shutil.rmtree(directory)
        parts.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
            raise _missing(
                f"the guest is fetched by Debian's and Ubuntu's tools, and there is no {program} here"
            )
    architecture = _tool(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise _missing(f"the guest is for x86-64, and the packages here are for {architecture}")


def _download(work: Path) -> list[Path]:
    """Download the packages; with the system's lists of packages, else with lists of our own."""
    try:
        return _download_by(work, ())
    except Unsupported:
        lists = work / "lists"
        (lists / "partial").mkdir(parents=True)
        (work / "archives/partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={work}")
        _tool(["apt-get", "-qq", *_APT, *own, "-o", "APT::Update::Error-Mode=any", "update"])
        return _download_by(work, own)


def _download_by(work: Path, options: Sequence[str]) -> list[Path]:
    place = work / f"packages-{len(options)}"
    place.mkdir()
    _tool(["apt-get", "-qq", *_APT, *options, "download", *_kernel(options), "busybox-static"], cwd=place)
    return sorted(place.glob("*.deb"))


def _kernel(options: Sequence[str]) -> list[str]:
    """Names of the packages that hold the newest kernel and its modules."""
    for name in _KERNELS:
        found: list[str] = []
        asked = [name]
        while asked:
            words = _tool(["apt-cache", *options, "depends", "--important", asked.pop()], check=False).split()
            needed = (word for word in words if word.startswith(("linux-image-", "linux-modules-")))
            new = [word for word in dict.fromkeys(needed) if word != name and word not in found]
            found += new
            asked += new
        if found:
            return found
    raise _missing(f"apt knows neither {_KERNELS[0]} nor {_KERNELS[1]}")


def _tool(words: Sequence[str], *, cwd: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if check and done.returncode:
        # The reason comes first, and then what apt concludes from it.
        first = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[0]
        raise _missing(f"{words[0]} failed: {first}")
    return done.stdout


# -- what is in them -------------------------------------------------------------------------------


def _take(package: Path, parts: Path) -> None:
    """Copy what the guest needs out of a package."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacking:
        assert unpacking.stdout is not None  # noqa: S101 - it is a pipe
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and (target := _target(Path(member.name))) is not None:
                        with (parts / target).open("wb") as file:
                            _copy(archive.extractfile(member), file, suffix=Path(member.name).suffix)
        except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
            raise _missing(f"the package {package.name} is damaged: {error}") from error
    if unpacking.returncode:
        raise _missing(f"the package {package.name} is damaged")


def _target(path: Path) -> str | None:
    """Where a file of a package is copied to: None: nowhere."""
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
        raise _missing("the kernel's modules are compressed, and there is no zstd here")
    done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise _missing(f"zstd failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _check_parts(parts: Path) -> None:
    if not (parts / "vmlinuz").is_file():
        raise _missing("the kernel's package holds no vmlinuz")
    if not (parts / "busybox").is_file() or not is_static_elf((parts / "busybox").read_bytes()):
        raise _missing("the package busybox-static holds no static busybox")


def _missing(message: str) -> Unsupported:
    return Unsupported(f"no guest could be fetched: {message}", feature="guest", hint=_NEEDED)
