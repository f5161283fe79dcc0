"""Every error of a file operation has its meaning and its hint from one table."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from qmpsnap.run.os_errors import hint, reason, unusable
from tests.each import each
from tests.run.test_lock_holders import opening

if TYPE_CHECKING:
    from pathlib import Path


@each(
    ("number", "says", "advice"),
    [
        (errno.ENAMETOOLONG, "the name is too long for the file system", "choose a shorter name"),
        (errno.EACCES, "permission denied", "run as a user who is allowed to do that"),
        (errno.ENOSPC, "no space left on the file system", "free some space there"),
        (errno.EDQUOT, "the user's quota is used up", "free some space there, or have the quota raised"),
        (errno.EAGAIN, "another process holds a lease or a lock on it", "wait for that process to end"),
        (errno.EMFILE, "this process has too many files open", "raise the limit: ulimit -n"),
        (errno.ENOTEMPTY, "directory not empty", ""),  # not in the table: the C library's words
    ],
)
def test_reason_and_hint_of_an_errno(number: int, says: str, advice: str) -> None:
    error = OSError(number, os.strerror(number), "/some/path")
    assert (reason(error), hint(error)) == (says, advice)


def test_reason_of_our_own_errors_is_theirs() -> None:
    assert reason(OSError(0, "it is a FIFO")) == "it is a FIFO"
    assert reason(ValueError("Embedded null byte")) == "embedded null byte"
    assert hint(ValueError("x")) == ""


def test_unusable_names_the_first_directory_that_is_missing(tmp_path: Path) -> None:
    file = f"{tmp_path}/no/such/file"
    error = unusable(file, FileNotFoundError(errno.ENOENT, "No such file or directory"), "create")
    assert error.message == f"cannot create {file!r}: there is no directory '{tmp_path}/no'"
    assert (error.hint, error.file) == ("create it first", file)
    assert unusable(file, FileNotFoundError(errno.ENOENT, "No such file"), "open").hint == "check the path"


def test_unusable_of_a_file_that_is_missing_does_not_speak_of_its_directory(tmp_path: Path) -> None:
    file = f"{tmp_path}/file"
    error = unusable(file, FileNotFoundError(errno.ENOENT, "No such file or directory"), "open")
    assert error.message == f"cannot open {file!r}: no such file or directory"


def test_unusable_says_whose_leave_is_missing() -> None:
    error = unusable("/d/f", PermissionError(errno.EPERM, "Operation not permitted"), "rename")
    assert error.message == "cannot rename '/d/f': '/d' is not writable for qmpsnap (operation not permitted)"
    assert error.hint == "run as the owner of the file and its directory"


@each("verb", ["open", "read"])
def test_unusable_does_not_blame_the_directory_of_a_file_that_may_not_be_read(verb: str) -> None:
    error = unusable("/d/f", PermissionError(errno.EACCES, "Permission denied"), verb)
    assert error.message == f"cannot {verb} '/d/f': permission denied"
    assert error.hint == "run as a user who is allowed to do that"


def test_unusable_names_the_process_that_holds_a_lease_or_a_lock(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.touch()
    again = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    with opening(str(file)) as pid:
        message = unusable(str(file), again, "open").message
        assert message.startswith(f"cannot open '{file}': process {pid} (python")
        assert message.endswith(") holds a lease or a lock on it")
    error = unusable(str(file), again, "open")
    assert error.message == f"cannot open '{file}': another process holds a lease or a lock on it"
    assert error.hint == "wait for that process to end"
