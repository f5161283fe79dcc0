"""The image with which each disk of a command line was started."""

from __future__ import annotations

import json

from qmpsnap.model.command_line.image_names import image_names
from qmpsnap.model.command_line.options import split
from tests.each import each

FILE = {"driver": "file", "filename": "/b"}
INLINE = json.dumps({"driver": "qcow2", "node-name": "n", "file": FILE})
ABOVE = json.dumps({"driver": "throttle", "node-name": "t", "file": "n", "throttle-group": "g"})
NBD = json.dumps({"driver": "raw", "node-name": "n", "file": {"driver": "nbd", "server": {"path": "/s"}}})


@each(
    ("line", "expected"),
    [
        ([], {}),
        (["-drive", "file=/a,,1,if=none,id=d", "-device", "virtio-blk,drive=d,id=vda"], {"vda": "/a,1"}),
        (["-drive", "file.driver=file,file.filename=/a,if=none,id=d"], {"d": "/a"}),
        (["-hda", "/a"], {"ide0-hd0": "/a"}),
        (["-blockdev", INLINE, "-device", "virtio-blk,drive=n,id=vda"], {"vda": "/b"}),
        (["-blockdev", INLINE, "-blockdev", ABOVE, "-device", "virtio-blk,drive=t,id=vda"], {"vda": "/b"}),
        (["-blockdev", "driver=raw,node-name=n,file=f", "-blockdev", "driver=file,node-name=f,filename=x",
          "-device", "virtio-blk,drive=n,id=vda"], {"vda": "x"}),
        (["-blockdev", "driver=raw,node-name=n,file=n", "-device", "virtio-blk,drive=n,id=vda"], {}),
        (["-blockdev", NBD, "-device", "virtio-blk,drive=n,id=vda"], {}),
        (["-cdrom", "", "-drive", "if=none,id=empty"], {}),
        (["-blockdev", "{"], {}),
    ],
)  # fmt: skip
def test_image_names_are_those_of_the_command_line(line, expected):
    assert image_names(split(["qemu-system-x86_64", *line])[1]) == expected
