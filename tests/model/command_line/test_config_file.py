"""Files of -readconfig; QEMU 7.2 to 11.1 read the keys as written here."""

from __future__ import annotations

import pytest

from qmpsnap.model.command_line.config_file import options_in
from qmpsnap.model.command_line.image_names import image_names
from qmpsnap.model.command_line.monitors import Endpoint, machine_name, qmp_endpoints
from qmpsnap.model.command_line.options import Option

MACHINE = """# a comment
[name]
  guest = "vm,1"

[chardev "qmp"]
  backend = "socket"
  path = "/run/q"
  server = "on"

[mon "m"]
\tmode = "control"
  chardev = "qmp"
[drive "vda"]
  file = "a b.qcow2"
  if = "none"
  serial = ""
[device "d"]
  driver = "virtio-blk-pci"
  drive = "vda"
"""


def test_sections_are_the_options_of_those_names():
    options = options_in(MACHINE)
    assert options == (
        Option("-name", "guest=vm,,1"),
        Option("-chardev", "id=qmp,backend=socket,path=/run/q,server=on"),
        Option("-mon", "id=m,mode=control,chardev=qmp"),
        Option("-drive", "id=vda,file=a b.qcow2,if=none,serial="),
        Option("-device", "id=d,driver=virtio-blk-pci,drive=vda"),
    )
    assert machine_name(options) == "vm,1"
    assert qmp_endpoints(options) == (Endpoint("unix", "unix:/run/q", path="/run/q"),)
    assert image_names(options) == {"d": "a b.qcow2"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('k = "v"', "k=v"),
        ('  k\t=\t"v" ', "k=v"),
        ("k = v", "k="),
        ('k = ""', "k="),
        ('#k = "v"', ""),
        ('k = "a"b"', "k=a"),
    ],
)
def test_value_is_what_stands_in_quotes(text, value):
    assert options_in(f"[x]\n{text}\n") == (Option("-x", value),)


@pytest.mark.parametrize("text", ["", "\0", 'k = "v"', "[", "[]", "x" * 5000])
def test_what_has_no_section_has_no_options(text):
    assert options_in(text) == ()
