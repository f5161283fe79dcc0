"""A machine that was started from an old file is told so, by every verb, with the file to start from."""

from __future__ import annotations

import pytest

from integration.cli import Cli
from integration.machines import WAYS


@pytest.mark.parametrize("elsewhere", [False, True], ids=["beside", "elsewhere"])
async def test_a_machine_that_was_started_from_the_old_file_is_told_so(
    qemu, images, machine, tmp_path, elsewhere
):
    made = images("base")
    (tmp_path / "far").mkdir()
    overlay = str(tmp_path / ("far/one.qcow2" if elsewhere else "base.one.qcow2"))
    with machine(*WAYS["drive"]("vda", made.active)) as m:
        async with m.connect() as vm:
            await vm.snapshot("one", files={"vda": overlay} if elsewhere else None)
            assert vm.warnings == ()
    with machine(*WAYS["drive"]("vda", made.active)) as m:
        async with m.connect() as vm:
            await vm.graph()
            (told,) = vm.warnings
            assert told.startswith(f"vda writes into {made.active}, the backing file of {overlay}, ")
            assert told.endswith(f"start it from {overlay}")
            assert (await vm.snapshot("inside", inside=True)).notes[0] == told
        for verb in ("chain", "list"):
            ended = Cli(m)(verb)
            assert f"warning: {told}" in ended.err.replace("\n", " ")
            assert ended.err.count(overlay) == 2, ended.err  # said once, not logged besides
            assert Cli(m)("--json", verb).json["warnings"] == [told]
    with machine(*WAYS["drive"]("vda", overlay)) as m:
        async with m.connect() as vm:
            await vm.moments()
            assert vm.warnings == ()
            await vm.commit("vda")
        async with m.connect() as vm:  # what a commit leaves is nobody's overlay
            await vm.graph()
            assert vm.warnings == ()
