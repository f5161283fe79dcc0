"""A process of this host, as it is named in messages: by its id, its program and its user."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Final

from qmpsnap.model.frozen import JsonStruct

_LOADER: Final = re.compile(r"ld-linux.*\.so\.\d+|ld-musl-.*\.so\.\d+|ld\.so|ld64\.so\.\d+")
_LOADER_VALUES: Final = frozenset(
    {"--argv0", "--library-path", "--preload", "--audit", "--inhibit-rpath", "--glibc-hwcaps-prepend"}
    | {"--glibc-hwcaps-mask"}
)
_INTERPRETER: Final = re.compile(r"(python|perl|ruby|lua|node|bash|dash|sh|pypy)[\d.]*")


class HostProcess(JsonStruct, frozen=True):
    """A process of this host.

    Attributes:
        pid: Its process id.
        program: The file name of its program, for an interpreter with that of the script; "" if not known.
        user: The user that it runs as, by name, else by number; "" if not known.
    """

    pid: int
    program: str = ""
    user: str = ""

    @property
    def is_qmpsnap(self) -> bool:
        """Whether it is a command of qmpsnap's."""
        return "qmpsnap" in self.program.split()

    def __str__(self) -> str:
        """The process as a phrase for messages: "process 4242 (qemu-system-x86_64, user alice)"."""
        details = ", ".join([self.program or "?", *([f"user {self.user}"] if self.user else [])])
        return f"process {self.pid} ({details})"


def program_of(argv: Sequence[str]) -> str:
    """The program that a command line runs, without its directory; "" for an empty command line.

    A program that was started by the dynamic loader is named instead of it. For an interpreter, the script or
    the module is named as well: "python3 watcher.py", "python3 -m http.server".
    """
    words = _without_loader(argv)
    name = next(words, "")
    program = posixpath.basename(name)
    if not _INTERPRETER.fullmatch(program):
        return program
    for word in words:
        if word == "-m":
            return f"{program} -m {next(words, '')}"
        if word == "-c":
            return program
        if not word.startswith("-"):
            return f"{program} {posixpath.basename(word)}"
    return program


def _without_loader(argv: Sequence[str]) -> Iterator[str]:
    words = iter(argv)
    first = next(words, "")
    if not _LOADER.fullmatch(posixpath.basename(first)):
        yield first
    else:
        for word in words:
            if word in _LOADER_VALUES:
                next(words, None)
            elif not word.startswith("--"):
                yield word
                break
    yield from words
