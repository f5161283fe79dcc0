"""Records that nothing needs: they go, and those of other machines cost nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from integration.known_images import QEMUS
from integration.machines import blockdev, drive
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan import resume

pytestmark = pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])


def records(folder):
    return sorted(path.name for path in Path(folder).rglob("*.qmpsnap/*.json"))


async def test_moment_that_is_lost_on_all_its_disks_keeps_no_record(qemu, images, machine, tmp_path):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*drive("vda", one.active), *drive("vdb", two.active)) as running:
        async with running.connect() as vm:
            for number in range(3):
                await vm.snapshot(f"n{number}")
                await vm.commit("vda", folded="remove")
                assert len(records(tmp_path)) == 1  # vdb holds it yet
                await vm.commit("vdb", folded="remove")
                assert records(tmp_path) == []


async def test_records_of_other_machines_on_the_same_base_are_not_read(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("mine")
            (own,) = Path(tmp_path).rglob("moment-*.json")
            record = from_json(own.read_text())
            assert isinstance(record, MomentRecord)
            for number in range(50):
                overlay, top = (f"{tmp_path}/other{number}{part}.qcow2" for part in ("", "-top"))
                other = replace(
                    record,
                    id=f"{record.id}-{number}",
                    overlays={"vda": top},
                    covered={"vda": overlay},
                    chains={"vda": (overlay, made.files[0])},
                )
                (own.parent / other.file_name).write_text(to_json(other))
            graph = await vm.graph()
            read = await vm._target.look(resume.ask(graph, state_dir=""), graph)
    assert [one.id for one in read.records] == [record.id]


async def test_moments_of_a_directory_with_two_paths_are_listed_once(images, machine, tmp_path):
    made = images("base", folder="a")
    other = images("base", folder="c")
    place = tmp_path / "b"
    place.mkdir()
    Path(other.active).rename(tmp_path / "a" / "vdb.qcow2")
    if subprocess.run(
        ["mount", "--bind", tmp_path / "a", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("only root can mount a directory elsewhere")
    try:
        with machine(*blockdev("vda", made.active), *blockdev("vdb", f"{place}/vdb.qcow2")) as running:
            async with running.connect() as vm:
                await vm.snapshot("one")
                await vm.snapshot("two")
                assert [moment.name for moment in (await vm.moments()).moments] == ["one", "two"]
                await vm.revert("one")
                await vm.delete("two")
                assert [moment.name for moment in (await vm.moments()).moments] == ["one"]
    finally:
        subprocess.run(["umount", place], check=True)
