from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Disk, Filter
from qmpsnap.model.machine import Device
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.plan.vmstate.in_place import hindrance
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import planned

VDA = chain("base <- s1*")


def under(*filters: Filter) -> Disk:
    return replace(VDA, root=filters[0].node, filters=filters)


@each(
    ("path", "kind", "free"),
    [
        ("/machine/peripheral/vda/virtio-backend", "virtio-blk-device", True),
        ("/machine/peripheral-anon/device[3]/virtio-backend", "virtio-blk-device", True),
        ("/machine/peripheral/vda", "scsi-hd", True),
        ("/machine/peripheral/vda", "ide-hd", True),
        ("/machine/peripheral/vda/vda.0/legacy[0]", "scsi-hd", False),
        ("/machine/peripheral/vda", "nvme", False),
        ("/machine/peripheral/vda", "sd-card", False),
        ("/machine/peripheral/vda", "floppy", False),
        ("/machine/system.flash0", "cfi.pflash01", False),
    ],
)
def test_hindrance_is_a_device_that_takes_no_other_root(path: str, kind: str, *, free: bool) -> None:
    machine = a_machine(graph(VDA), devices={"vda": Device(path, kind)})
    assert (hindrance(VDA, machine) is None) is free


@each(
    ("disk", "free"),
    [
        (under(Filter("t", "throttle", "g")), True),
        (under(Filter("t", "throttle")), False),
        (under(Filter("c", "copy-on-read")), False),
        (under(Filter("t", "throttle", "g"), Filter("u", "throttle", "g")), False),
    ],
)
def test_hindrance_is_a_filter_but_for_one_throttle(disk: Disk, *, free: bool) -> None:
    assert (hindrance(disk, a_machine(graph(disk))) is None) is free


@each(("mode", "said"), [("in-place", 1), ("stop", 0), ("background", 0)])
def test_checkpoint_notes_what_will_not_go_back_in_place(mode: str, said: int) -> None:
    drawn = graph(chain("base <- s1*"), chain("x*", name="vdx"))
    devices = a_machine(drawn).devices
    machine = a_machine(drawn, devices={**devices, "vdx": Device("/machine/peripheral/vdx", "nvme")})
    notes = planned(Checkpoint("c1", mode), drawn, machine=machine).notes  # type: ignore[arg-type]
    note = (
        "vdx is nvme (/machine/peripheral/vdx), which is not known to accept another root node: a revert has "
        "to leave it out (revert c1 --leave vdx); checkpoints of --mode stop and background revert in a new "
        "QEMU, with all disks"
    )
    assert [one for one in notes if "vdx" in one] == [note] * said
