"""Makes the caller's paths absolute, relative to this process's directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qmpsnap.model.arguments import path_text, refuse


def absolute(parameter: str, path: str | os.PathLike[str]) -> str:
    """Make a path absolute; symlinks are not resolved.

    Raises:
        BadArgument: When it is not a path, is empty, or contains a NUL.
    """
    return str(Path(path_text(parameter, path)).absolute())


def absolute_each(parameter: str, paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Make several paths absolute; a single str is refused, because its letters would be taken for paths.

    Raises:
        BadArgument: When it is not a sequence of paths.
    """
    if isinstance(paths, str | bytes) or not hasattr(paths, "__iter__"):
        refuse(parameter, paths, "give several paths", hint=f"{parameter}=[{paths!r}]")
    return tuple(absolute(parameter, path) for path in paths)
