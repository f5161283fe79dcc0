"""Machines that boot a distribution's cloud image, or any disk image whose guest runs cloud-init.

A cloud image has no password. At the first boot cloud-init reads a small disk with the label CIDATA (its data
source NoCloud), and sets the password and whatever else is written there. This module writes that disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.arguments import Text, check, path_text, refuse, texts
from qmpsnap.model.machine_description import Machine, MachineDisk, escaped
from qmpsnap.run.paths import absolute
from qmpsnap.testing.agent import PORT_NAME
from qmpsnap.testing.fat import build_fat

__all__ = ["build_seed", "cloud_machine", "write_seed"]

_LABEL: Final = "CIDATA"


def build_seed(
    *,
    password: str = "",
    keys: Sequence[str] = (),
    hostname: str = "qmpsnap",
    commands: Sequence[str] = (),
    network: bool = False,
    more: Mapping[str, object] | None = None,
) -> bytes:
    """Return the content of a disk from which cloud-init sets up a guest; it depends only on the arguments.

    Args:
        password: Password of root, for the console; "": none is set.
        keys: Public SSH keys of root.
        hostname: The guest's host name.
        commands: Commands for the guest's sh, run in order at the end of the first boot.
        network: Whether the guest sets up its network cards (by DHCP); without a card that only takes time.
        more: Further user data of cloud-init, as in {"packages": ["jq"]}; it overrides the other arguments.

    Raises:
        BadArgument: When an argument is invalid, or all together need more than 1.4 MB.
    """
    check("password", password, str)
    check("hostname", hostname, Text)
    check("network", network, bool)
    if not isinstance(more, Mapping | None):
        refuse("more", more, "give a mapping, as of cloud-init's user data")
    user: dict[str, object] = {"hostname": hostname, "disable_root": False}
    if password:
        account = {"name": "root", "password": password, "type": "text"}
        user |= {"chpasswd": {"expire": False, "users": [account]}}
    if keys:
        user |= {"ssh_authorized_keys": list(texts("keys", keys))}
    if commands:
        user |= {"runcmd": list(texts("commands", commands))}
    user |= more or {}
    data = f"#cloud-config\n{json.dumps(user)}\n".encode()  # JSON is YAML, too
    # cloud-init sets up a guest again when the id of its instance is another.
    instance = hashlib.sha256(data).hexdigest()[:16]
    files = {"user-data": data, "meta-data": json.dumps({"instance-id": f"qmpsnap-{instance}"}).encode()}
    if not network:
        files["network-config"] = json.dumps({"config": "disabled"}).encode()
    return build_fat(files, label=_LABEL)


def write_seed(file: str | os.PathLike[str], seed: bytes) -> None:
    """Create the file of a seed; only this user can read it, because it may hold a password.

    Args:
        file: The file to create.
        seed: See `build_seed`.

    Raises:
        TargetExists: When it exists.
        InvalidTarget: When it cannot be created.
    """
    path = Path(path_text("file", file))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise TargetExists(f"{str(path)!r} exists", file=str(path)) from error
    except OSError as error:
        raise _creation_error(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(seed)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _creation_error(path, error) from error


def cloud_machine(
    image: str | os.PathLike[str],
    seed: str | os.PathLike[str],
    *,
    format: str = "qcow2",  # noqa: A002 - QEMU's word
    memory_mib: int = 1024,
    cpus: int = 1,
    qemu: str | os.PathLike[str] = "qemu-system-x86_64",
) -> Machine:
    """Return a machine that boots a cloud image, with a console, a port for its guest agent, and a seed.

    The guest writes to the image; if the image must not change, give an overlay on it. The seed's disk is
    read-only, so no snapshot includes it. Change other attributes with `dataclasses.replace`.

    Args:
        image: The disk that it boots from.
        seed: File of a seed; see `write_seed`.
        format: Format of the image.
        memory_mib: Size of its memory in MiB.
        cpus: Number of its processors.
        qemu: The system emulator.
    """
    drive = f"if=none,id=seed,format=raw,readonly=on,file={escaped(absolute('seed', seed))}"
    return Machine(
        qemu=qemu,
        memory_mib=memory_mib,
        cpus=cpus,
        disks=[MachineDisk("vda", path_text("image", image), format)],
        ports=[PORT_NAME],
        rng=True,
        arguments=["-drive", drive, "-device", "virtio-blk-pci,drive=seed,serial=seed"],
    )


def _creation_error(path: Path, error: OSError) -> InvalidTarget:
    return InvalidTarget(f"{str(path)!r} cannot be created: {error.strerror or error}", file=str(path))
