"""A machine with UEFI variables: its flash goes into checkpoints, and comes back with the memory."""

from __future__ import annotations

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev, listing, traced
from qmpsnap.errors import Unsupported

FLASH = "/machine/system.flash1"
THEN, LATER = (0x51, 64 * KIB, 64 * KIB), (0x52, 64 * KIB, 64 * KIB)


def flashed(qemu, folder, form):
    """The arguments of firmware, which is read-only, and of its variables; and the variables' file."""
    code, variables = (
        qemu.create(folder / name, form=form, size=size) for name, size in (("code", 2 * MIB), ("vars", MIB))
    )
    qemu.io(variables, f"write -q -P {THEN[0]} {THEN[1]} {THEN[2]}", form=form)
    return [
        "-drive", f"if=pflash,unit=0,format={form},readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format={form},file={variables}",
    ], variables  # fmt: skip


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("mode", ["stop", "background", "in-place"])
async def test_checkpoint_takes_uefi_variables_of_any_format(qemu, images, machine, tmp_path, form, mode):
    made = images("base")
    flash, variables = flashed(qemu, tmp_path, form)
    with machine(*blockdev("vda", made.active), *flash) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await vm.checkpoint("c1", mode=mode)
        assert taken.chains["pflash1"] == (str(tmp_path / "vars.c1.qcow2"), str(variables))
        assert "pflash0" in taken.notes[0]
        running.write(FLASH, *LATER)
    assert qemu.read(variables, form=form)[THEN[1] :][: THEN[2]] == bytes([THEN[0]]) * THEN[2]


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_revert_in_place_leaves_the_flash_and_qemu_writes_the_variables_back(
    qemu, images, machine, tmp_path, form
):
    made = images("base")
    flash, _ = flashed(qemu, tmp_path, form)
    with machine(*blockdev("vda", made.active), *flash) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            running.write(FLASH, *LATER)
            before = listing(tmp_path)
            with traced(vm) as sent, pytest.raises(Unsupported, match=r"pflash1 is cfi\.pflash01") as caught:
                await vm.revert("c1")
            assert (sent, listing(tmp_path)) == ([], before)
            assert "--leave pflash1" in caught.value.hint
            back = await vm.revert("c1", leave=["pflash1"])
            assert set(back.chains) == {"vda"}
            running.read(FLASH, *THEN)
