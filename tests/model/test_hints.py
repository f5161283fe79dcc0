from __future__ import annotations

import shlex

from qmpsnap.model.hints import command, hint_for, start_hint
from tests.each import each


@each(
    ("description", "part"),
    [
        ('Failed to get "write" lock', "fuser"),
        ("Could not open '/a': Permission denied", "owner"),
        ("Could not create '/a': No space left on device", "space"),
        ("Node 'a' is busy: block device is in use by block job: stream", "qmpsnap jobs"),
        ("Need a root block node", "blockdev-del"),
        ("Inactive 'vda-node' can't be a backing child of active 'x'", "cont"),
        ("Block format 'qcow2' used by device 'a' does not support internal snapshots", "cont"),
    ],
)
def test_hint_for_says_what_to_do_about_what_qemu_says(description, part):
    assert part in hint_for(description)


@each("description", ["Block node is read-only", "Image is not in qcow2 format", ""])
def test_hint_for_is_silent_when_there_is_nothing_to_add(description):
    assert hint_for(description) == ""


@each(
    ("last_words", "part"),
    [
        ("attempt to add duplicate property 'pc.ram' to object (type 'container')", "leave out"),
        ("-object memory-backend-ram,id=pc.ram,size=64M: Duplicate ID 'pc.ram' for object", "leave out"),
        ("-qmp tcp:h:1: Failed to find an available port: Address already in use", "another one, or none"),
        ("-netdev user: could not set up host forwarding rule 'tcp::22-:22'", "another one, or none"),
        ('-blockdev {}: Failed to get shared "write" lock', "fuser"),
        ("Machine memory size does not match the size of the memory backend", "plugged in"),
        ("qemu: initrd is too large, cannot support.(max: 884735, need 4190316)", "more memory"),
        ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "machine less"),
        ("could not load kernel 'k': No such file or directory", ""),
        ("attempt to add duplicate property 'mem' to object (type 'container')", "leave out"),
        ("attempt to add duplicate property 'x' to object (type 'pc-q35-machine')", ""),
    ],
)
def test_start_hint_says_what_to_do_about_a_qemu_that_has_not_started(last_words, part):
    assert part in start_hint(last_words)
    assert bool(start_hint(last_words)) == bool(part)


def test_command_can_be_typed_as_it_is():
    line = command("commit", "vda", "--top", "/my images/o'1.qcow2", "--base", "/d/base.qcow2")
    assert line == """qmpsnap commit vda --top '/my images/o'"'"'1.qcow2' --base /d/base.qcow2"""
    assert shlex.split(line)[4] == "/my images/o'1.qcow2"
