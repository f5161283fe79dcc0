"""What a launcher is called with, and the arguments that QEMU then gets."""

from __future__ import annotations

import json

from qmpsnap.model.start import GuestMemory, Start, block_name
from tests.each import each


def test_start_has_no_arguments_for_a_machine_that_boots():
    assert Start(disks={"vda": "/vm/a.qcow2"}).arguments == ()


def test_start_waits_for_vm_state():
    assert Start(incoming=True).arguments == ("-S", "-incoming", "defer")


def test_start_keeps_the_guest_paused():
    assert Start(paused=True).arguments == ("-S",)
    assert Start(paused=True, incoming=True).arguments == ("-S", "-incoming", "defer")


def test_start_names_the_memory_as_a_machine_without_an_object_does():
    memory = GuestMemory(file="/t/ram,1", size_bytes=1 << 28, share=True)
    first, given, second, machine = Start(memory=memory).arguments
    assert (first, second, machine) == ("-object", "-machine", "memory-backend=pc.ram")
    assert json.loads(given) == {
        "qom-type": "memory-backend-file",
        "id": "pc.ram",
        "size": 268435456,
        "mem-path": "/t/ram,1",
        "share": True,
        "x-use-canonical-path-for-ramblock-id": False,
    }


@each(
    ("block", "uses_path", "id_"),
    [
        ("pc.ram", False, "pc.ram"),
        ("/objects/pc.ram", True, "pc.ram"),
        ("mem", False, "mem"),
        ("/objects/mem", True, "mem"),
        ("a,b", False, "a,,b"),  # from a record; QEMU has no such id
    ],
)
def test_memory_has_the_name_that_the_state_has_for_it(block: str, id_: str, *, uses_path: bool):
    memory = GuestMemory(file="/t/ram", size_bytes=1 << 28, share=True, block=block)
    _, given, _, machine = Start(memory=memory).arguments
    spelled = json.loads(given)
    assert machine == f"memory-backend={id_}"
    assert (spelled["id"], spelled["x-use-canonical-path-for-ramblock-id"]) == (memory.id, uses_path)
    assert block_name(memory.id, uses_path=uses_path) == block


def test_start_opens_sealed_memory_read_only_without_making_it_a_rom():
    memory = GuestMemory(file="/t/ram", size_bytes=1 << 28, share=False, sealed=True)
    given = json.loads(Start(memory=memory, incoming=True).arguments[1])
    assert (given["share"], given["readonly"], given["rom"]) == (False, True, "off")


def test_start_has_a_monitor_for_each_further_client():
    assert Start(monitors=("/t/qmp1", "/t/a,b")).arguments == (
        "-qmp", "unix:/t/qmp1,server=on,wait=off", "-qmp", "unix:/t/a,,b,server=on,wait=off",
    )  # fmt: skip
