"""Records that several test files read, write and take apart."""

from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, Settings, moment_of

COMMIT = IntentRecord(
    id="0a1b2c3d",
    op="commit",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/s1", "/d/base", "nbd://host/x")},
    after={"vda": ("/d/base", "nbd://host/x")},
    folded=("/d/s1",),
    policy="rename",
    renames={"/d/s1": "/d/s1.invalid"},
    invalid=("/d/base",),
    disk="vda",
)
SNAPSHOT = IntentRecord(
    id="00000001",
    op="snapshot",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/a", "/d/base"), "vdb": ("/d/b",)},
    made=("/d/o", "/d/p"),
    overlays={"vda": "/d/o", "vdb": "/d/p"},
    name="before-upgrade",
)
CHECKPOINT = replace(
    SNAPSHOT,
    op="checkpoint",
    state=KeptState(
        "in-place",
        "/d/m.vmstate.qcow2",
        "qmpsnap-00000001",
        True,
        Fingerprint("pc", 7, ("cpu",), {"vda": "virtio-blk-pci"}, {"vda": 64}),
    ),
    was=Settings(True, {"events": False}, {"max-bandwidth": 7}, "1-2"),
)
LINK = replace(moment_of(CHECKPOINT), state=None, deleted=True, formats={"vda": ("qcow2", "raw")})
REVERTED = replace(moment_of(CHECKPOINT), branches=({"vda": "/d/r1", "vdb": "/d/r2"}, {"vda": "/d/r3"}))
