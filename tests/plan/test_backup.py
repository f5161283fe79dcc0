from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget, StillNeeded, Unsupported
from qmpsnap.model.features import Features
from qmpsnap.model.files import DirFact
from qmpsnap.plan import backup
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import NOW, encrypted, planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph

MACHINE = graph(vda="base <- s1*", vdb="data.raw*")
OTHER = "/images/other.qcow2"


def covered(*disks: str, of: Graph = MACHINE, files: FakeFiles | None = None) -> list[str]:
    """Names of the disks that can be covered, asked as `Planning.coverable` asks it."""
    found = (files or FakeFiles(of)).look(backup.ask(disks, of))
    scene = Scene(of, found, (), Features(frozenset()), NOW)
    return [disk.name for disk in backup.coverable(disks, scene)]


def test_disks_can_be_covered_where_nothing_else_is_backed_by_their_active_layers() -> None:
    files = FakeFiles(MACHINE)
    files.put(OTHER, backing="/images/base.qcow2")  # which no overlay is merged into
    assert covered("vdb", "vda", files=files) == ["vdb", "vda"]


@each("active", {"vda": "/images/s1.qcow2", "vdb": "/images/data.raw"}.items())
def test_disk_is_refused_whose_overlay_could_not_be_merged_back(active: tuple[str, str]) -> None:
    disk, file = active
    files = FakeFiles(MACHINE)
    files.put(OTHER, backing=file)
    with pytest.raises(StillNeeded, match=f"backed by {file}, so the overlay of a backup") as caught:
        covered("vda", "vdb", files=files)
    assert (caught.value.by, caught.value.changed.value) == ((OTHER,), "no")
    assert caught.value.hint.startswith(f"take a snapshot that stays: qmpsnap snapshot --disk {disk};")
    other = "vdb" if disk == "vda" else "vda"
    assert covered(other, files=files) == [other]


def test_disk_is_refused_where_such_images_cannot_be_searched_for() -> None:
    files = FakeFiles(MACHINE)
    files.unreadable = ("/images: Permission denied",)
    with pytest.raises(InvalidTarget, match="cannot search for images"):
        covered("vda", files=files)


def test_disk_is_refused_that_cannot_be_read_from_outside() -> None:
    of, files = encrypted("base <- s1*")
    with pytest.raises(Unsupported, match="encrypted"):
        covered("vda", of=of, files=files)


def test_backup_is_refused_whose_overlays_could_not_be_found_without_a_record() -> None:
    files, taken = FakeFiles(MACHINE), Snapshot("b", ("vda",), {"vda": "/fast/b.qcow2"})
    backup.refuse_unlisted(planned(taken, MACHINE, files=files))
    files.directories["/images"] = DirFact(
        "/images", exists=True, writable=False, problem="permission denied"
    )
    with pytest.raises(InvalidTarget, match="no writable directory for records") as caught:
        backup.refuse_unlisted(planned(taken, MACHINE, files=files))
    assert (caught.value.file, caught.value.hint) == ("/images/base.qcow2", "name one: --state-dir DIR")
