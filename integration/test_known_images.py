"""What the other tests stand on: images that are copied are those that QEMU would have made there."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.known_images import draw_images, make_images


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
@pytest.mark.parametrize("drawing", ["base", "base <- s1 <- s2"])
def test_copied_images_are_byte_for_byte_those_that_qemu_makes_there(qemu, tmp_path, drawing, base_format):
    place = tmp_path / ("a folder with a long name " * 4)
    place.mkdir()
    made = make_images(qemu, place, drawing, base_format=base_format)
    copied = [(Path(file).read_bytes(), Path(file).stat().st_blocks) for file in made.files]
    for file in made.files:
        Path(file).unlink()
    assert draw_images(qemu, place, drawing.split(" <- "), base_format) == list(made.files)
    for file, (data, blocks) in zip(made.files, copied, strict=True):
        assert Path(file).read_bytes() == data, file
        assert abs(Path(file).stat().st_blocks - blocks) <= 128, "holes are holes"
        assert (
            qemu.read(file, base_format if file == made.files[0] else "qcow2")
            == made.content[made.files.index(file)]
        )
