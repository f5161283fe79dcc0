from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.step import Step
from qmpsnap.run.preflight import read_chains
from qmpsnap.run.unopened import UnopenedTarget
from tests.headers import qcow2_bytes
from tests.run.limits import free_descriptors

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def target(tmp_path: Path) -> UnopenedTarget:
    (tmp_path / "base").write_bytes(bytes(1024))
    (tmp_path / "s1.qcow2").write_bytes(qcow2_bytes(backing="base", backing_format="raw"))
    return UnopenedTarget(partial(read_chains, {"vda": str(tmp_path / "s1.qcow2")}), name="vm1")


async def test_graph_is_read_from_the_headers_each_time(target: UnopenedTarget, tmp_path: Path) -> None:
    assert (await target.graph()).chains() == {"vda": (f"{tmp_path}/s1.qcow2", f"{tmp_path}/base")}
    (tmp_path / "s1.qcow2").write_bytes(qcow2_bytes())
    assert (await target.graph()).chains() == {"vda": (f"{tmp_path}/s1.qcow2",)}


async def test_a_snapshot_table_that_is_missing_is_refused(target: UnopenedTarget, tmp_path: Path) -> None:
    image = bytearray(qcow2_bytes(snapshots=1))
    struct.pack_into(">Q", image, 64, 1 << 20)
    (tmp_path / "s1.qcow2").write_bytes(image)
    with pytest.raises(InvalidTarget, match="table"):
        await target.graph()


async def test_files_are_looked_at(target: UnopenedTarget, tmp_path: Path) -> None:
    files = await target.look(Ask(files=(f"{tmp_path}/base",)), await target.graph())
    assert (files.shared, files.files[f"{tmp_path}/base"].kind) == (True, "regular")


async def test_files_do_not_seem_to_be_missing_to_a_process_at_its_limit(target: UnopenedTarget) -> None:
    seen = await target.graph()
    with free_descriptors(7), pytest.raises(InvalidTarget, match="too many files open: 7 more"):
        await target.look(Ask(files=("base",)), seen)


async def test_nothing_is_done(target: UnopenedTarget) -> None:
    step = Step(on="qmp", command="stop")
    for asked in (target.features(), target.perform(step), target.execute("stop")):
        with pytest.raises(Unsupported, match="vm1 are not opened"):
            await asked
    with pytest.raises(Unsupported), target.watch("j"):
        pass
    with pytest.raises(Unsupported):
        target.progress("j", 1.0)
    await target.refuse_migrated()
    await target.abandon(target)
    target.release_records(())
    with target.events(print):
        assert (await target.jobs(), await target.relink()) == ((), False)
    assert (await target.block_graph()).nodes == ()
