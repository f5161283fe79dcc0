"""Paths that a caller hands in, against this process's directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qmpsnap.model.arguments import path_text, refuse

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ["absolute", "absolute_each"]


def absolute(parameter: str, path: str | os.PathLike[str]) -> str:
    """The path, made absolute; no link is followed.

    Raises:
        BadArgument: When it is no path, empty, or has a NUL in it.
    """
    return str(Path(path_text(parameter, path)).absolute())


def absolute_each(parameter: str, paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Several paths, made absolute; a single one, whose letters would be taken for paths, is refused.

    Raises:
        BadArgument: When it is no sequence of paths.
    """
    if isinstance(paths, str | bytes) or not hasattr(paths, "__iter__"):
        refuse(parameter, paths, "give several paths", hint=f"{parameter}=[{paths!r}]")
    return tuple(absolute(parameter, path) for path in paths)
