"""A machine with an external moment, as planners meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.layer_stamps import stamp_of
from qmpsnap.model.memory import MemoryFact, MemoryNote
from qmpsnap.model.record import MomentRecord
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.plan.scenes import NOW, STATE

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.step import Step

ID = "qmpsnap-checkpoint-keep-00000001"
O1, S1, BASE = "/images/o1.qcow2", "/images/s1.qcow2", "/images/base.qcow2"
O2, DATA = "/images/o2.qcow2", "/images/data.raw"
TWO = graph(vda="base <- s1 <- o1*", vdb="data.raw <- o2*")
MEMORY, STORE = "/images/base.c1.memory", "/images/base.c1.vmstate.qcow2"
MOMENT = MomentRecord(
    ID,
    "c1",
    NOW,
    overlays={"vda": O1, "vdb": O2},
    covered={"vda": S1, "vdb": DATA},
    chains={"vda": (S1, BASE), "vdb": (DATA,)},
    directory=STATE,
)


def covered_by_us(drawn: Graph) -> Graph:
    """The same where each active layer is an overlay that QEMU made at our command, and closes by itself."""
    return graph(
        *(
            replace(
                disk,
                root=f"qmpsnap-{disk.name}",
                layers=(replace(disk.active, node=f"qmpsnap-{disk.name}"), *disk.layers[1:]),
            )
            for disk in drawn.disks.values()
        )
    )


def kept(mode: Any, of: Graph = TWO) -> MomentRecord:
    """The moment with VM state; "" without."""
    if not mode:
        return MOMENT
    file = STORE if mode == "in-place" else MEMORY
    tag = "qmpsnap-00000001" if mode == "in-place" else ""
    return replace(MOMENT, state=KeptState(mode, file, tag, True, a_machine(of).fingerprint))


def files_of(mode: str, of: Graph = TWO) -> FakeFiles:
    """Files of a machine with the moment and its VM state, whole."""
    files = FakeFiles(of)
    files.records.append(kept(mode, of))
    if mode == "in-place":
        files.put(STORE)
        header = files.facts[STORE].header
        assert header is not None
        files.facts[STORE] = replace(files.facts[STORE], header=replace(header, snapshot_count=1))
    elif mode:
        files.put(MEMORY, format="raw", size_bytes=4096)
        note = MemoryNote(ID, "c1", 4096, True, a_machine(of).fingerprint, ())
        files.memories[MEMORY] = MemoryFact(MEMORY, 4096, note)
    return files


_INODES = {S1: 11, BASE: 12, DATA: 13}


def written_to(files: FakeFiles, *written: str, stamped: bool = True) -> FakeFiles:
    """The files, with stamps in the record; some were written to since."""
    (moment,) = files.records
    assert isinstance(moment, MomentRecord)
    stamps = {}
    for file, inode in _INODES.items():
        fact = files.facts[file]
        stamps[file] = stamp_of(fact.header, modified_ns=100, inode=inode)
        files.facts[file] = replace(fact, inode=inode, modified_ns=2 * 10**9 if file in written else 100)
    files.records[:] = [replace(moment, stamps=stamps if stamped else {})]
    return files


def kinds(*steps: Step) -> list[str]:
    """Each step's command."""
    return [step.command for step in steps]
