"""Tells whether what needs a layer is still there. Blocking.

A process that makes a template, or has forked a machine, holds a lock (flock) on the images that show it.
QEMU does not know these locks. They end with the process, and are seen in all namespaces.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH112, PTH119

from __future__ import annotations

import fcntl
import os

from qmpsnap.errors import InvalidTarget, NotFound
from qmpsnap.model.keeper import KeeperState, KeptFor
from qmpsnap.model.template import partial_directory
from qmpsnap.run.safe_open import open_file
from qmpsnap.run.template_files import read_template


def claim(file: str) -> int | None:
    """Lock such an image until the returned descriptor is closed.

    Returns:
        The descriptor; None if the image was removed meanwhile.

    Raises:
        OSError: When it cannot be opened.
    """
    try:
        descriptor = open_file(file)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # who looks at it holds it for an instant
    except OSError:  # no locks here, where nobody takes it for abandoned either
        return descriptor
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def state_of(file: str, owner: KeptFor) -> KeeperState:
    """Whether what needs the layer of this image is still there."""
    if _claimed(file):
        return "needed"
    match owner.kind:
        case "fork":
            return "left"
        case "clone":
            return "needed" if os.path.isdir(owner.directory) else "gone"
        case "template":
            return _of_template(file, owner.directory)


def _claimed(file: str) -> bool:
    """Whether a process has locked it, or may have."""
    try:
        descriptor = open_file(file)
    except (OSError, ValueError):
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _of_template(file: str, directory: str) -> KeeperState:
    try:
        record = read_template(directory)
    except NotFound:
        return "left" if os.path.isdir(partial_directory(directory)) else "gone"
    except InvalidTarget:
        return "needed"
    names = {os.path.basename(keeper) for keeper in record.keepers}
    return "needed" if os.path.basename(file) in names else "left"
