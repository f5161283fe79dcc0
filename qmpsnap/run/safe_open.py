"""Opens files and directories, without trusting their paths: the only module of `run` that opens any.

Other users may write to the directory that a path leads to. So nothing here waits for what may
be there: a FIFO without a writer, a device, a file with a lease on it. A symbolic link
is not followed unless the caller says that the path is trusted, and what was opened is checked again
afterwards. Blocks only on disk I/O.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile

_ALWAYS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "it is a directory",
    stat.S_IFLNK: "it is a symbolic link",
    stat.S_IFIFO: "it is a FIFO",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFBLK: "it is a block device",
    stat.S_IFCHR: "it is a character device",
    stat.S_IFREG: "it is a regular file",
}


class WrongKind(OSError):
    """The path exists, but is not something that may be opened."""

    def __init__(self, mode: int, file: str) -> None:
        super().__init__(errno.EINVAL, _KINDS.get(stat.S_IFMT(mode), "it is not a regular file"), file)


def open_file(file: str, *, write: bool = False, follow: bool = False, directory: int | None = None) -> int:
    """Open a regular file; the descriptor is the caller's to close.

    Anything but a regular file is not opened at all, because opening a device can have side effects.

    Args:
        file: Its path.
        write: Whether it is opened for writing, and for that alone; else for reading.
        follow: Whether symbolic links are followed in the last part of the path, too.
        directory: Descriptor of the directory from which a relative path counts.

    Raises:
        WrongKind: When it is not a regular file.
        OSError: When it cannot be opened, or not at once.
        ValueError: When the path holds a NUL.
    """
    return _open(file, stat.S_IFREG, write=write, follow=follow, directory=directory)


def open_block(file: str) -> int:
    """Open a block device for reading, through links; as `open_file`."""
    return _open(file, stat.S_IFBLK, write=False, follow=True, directory=None)


def create_fifo(file: str) -> None:
    """Create a FIFO, mode 0600.

    Raises:
        FileExistsError: When there is anything of that name.
        OSError: When it cannot be made.
    """
    os.mkfifo(file, 0o600)


def open_fifo(file: str, *, write: bool = False) -> int:
    """Open a FIFO, through no link; as `open_file`. It is opened for writing only if it has a reader."""
    return _open(file, stat.S_IFIFO, write=write, follow=False, directory=None)


def open_character(file: str) -> int:
    """Open a character device for writing, through links; as `open_file`."""
    return _open(file, stat.S_IFCHR, write=True, follow=True, directory=None)


def _open(file: str, kind: int, *, write: bool, follow: bool, directory: int | None) -> int:
    before = os.stat(file, dir_fd=directory, follow_symlinks=follow)
    if stat.S_IFMT(before.st_mode) != kind:
        raise WrongKind(before.st_mode, file)
    flags = (os.O_WRONLY if write else os.O_RDONLY) | (0 if follow else os.O_NOFOLLOW) | _ALWAYS
    descriptor = os.open(file, flags, dir_fd=directory)
    after = os.fstat(descriptor)
    if stat.S_IFMT(after.st_mode) != kind:  # exchanged in between
        os.close(descriptor)
        raise WrongKind(after.st_mode, file)
    return descriptor


def create_file(file: str, *, mode: int = 0o600, read: bool = False, directory: int | None = None) -> int:
    """Create a file and open it for writing; never an existing one, nor through a symlink.

    Args:
        file: Its path.
        mode: Its permissions, less the umask.
        read: Whether it is opened for reading, too.
        directory: Descriptor of the directory from which a relative path counts.

    Raises:
        FileExistsError: When there is anything of that name.
        OSError: When it cannot be made.
        ValueError: When the path holds a NUL.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | (os.O_RDWR if read else os.O_WRONLY) | _ALWAYS
    descriptor = os.open(file, flags, mode, dir_fd=directory)
    os.set_blocking(descriptor, True)  # qemu-img inherits it
    return descriptor


def append_file(file: str) -> int:
    """Open a file for appending; it is created when it does not exist.

    The path is trusted and may be a terminal or a FIFO; a FIFO that nobody reads is an error.

    Raises:
        OSError: When it cannot be opened.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY | _ALWAYS, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def open_directory(directory: str, *, follow: bool = True) -> int:
    """Open a directory.

    Args:
        directory: Its path.
        follow: Whether its last part may be a symbolic link.

    Raises:
        OSError: When it is none, or may not be read.
        ValueError: When the path holds a NUL.
    """
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW) | _ALWAYS)


def private_directory(longest: int, *, prefix: str = "qmpsnap-", parent: str = "") -> str:
    """Create a directory of a new name, mode 0700, for what only this process may reach.

    Args:
        longest: Bytes that its path may have; where the usual place is deeper, it lies in /tmp.
        prefix: What its name begins with.
        parent: The directory in which it lies, however deep; "": the usual place for temporary files.

    Raises:
        OSError: When it cannot be made.
    """
    directory = tempfile.mkdtemp(prefix=prefix, dir=parent or None)
    if not parent and len(os.fsencode(directory)) > longest:
        os.rmdir(directory)  # noqa: PTH106
        directory = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    return directory


def temporary_places() -> tuple[str, ...]:
    """Where `private_directory` creates directories if no parent is named."""
    return (tempfile.gettempdir(), "/tmp")  # noqa: S108 - where directories are made exclusively


def remove_tree(directory: str) -> None:
    """Remove a directory of ours with all that is in it, as far as that is possible; no link is followed."""
    shutil.rmtree(directory, ignore_errors=True)


def find_program(name: str) -> str | None:
    """Path of a program, as found on PATH."""
    return shutil.which(name)


def kernel_text(file: str) -> str:
    """Read a file of /proc or /sys, where nobody can plant anything.

    Raises:
        OSError: When it cannot be read.
    """
    with open(file, encoding="utf-8", errors="surrogateescape") as opened:
        return opened.read()
