"""What is encrypted does not get into the clear by itself."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.files import FileFact, Files
from qmpsnap.model.graph import Io
from qmpsnap.model.step import Root
from qmpsnap.plan.checks.encryption import (
    CLEAR,
    opened_again,
    opening_notes,
    refuse_clear_data,
    refuse_clear_memory,
    refuse_clear_overlay,
    refuse_memory_inside,
    refuse_second_opening,
    secret_for,
)
from qmpsnap.plan.commands.files import LuksHeader
from qmpsnap.testing.drawing import chain, graph
from tests.each import each

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk


def drawn(drawing: str, *secret: int, name: str = "vda") -> Disk:
    """A disk of which the layers of these indexes, active first, are encrypted."""
    disk = chain(drawing, name=name)
    layers = (replace(layer, encrypted=index in secret) for index, layer in enumerate(disk.layers))
    return replace(disk, layers=tuple(layers))


SECRET = drawn("base*", 0)
COVERED = drawn("base <- s1*", 1)
PLAIN = drawn("base <- s1*", name="vdb")


def test_another_qemu_opens_each_layer_down_to_the_last_encrypted_one_with_its_secret() -> None:
    below = tuple(
        replace(layer, encrypted=True, secret=secret) if secret else layer
        for layer, secret in zip(drawn("base <- s1 <- s2 <- s3*").layers, ("", "a", "b", ""), strict=True)
    )
    (s3, s2, s1, base), root = below, Root("vda", "n", "/d/new", "qcow2", below[0].file, (), Io(), "a")
    opened = opened_again(root, below, Files(shared=True))

    def node(file: str, secret: str, **more: object) -> dict[str, object]:
        encrypt = {"encrypt": {"format": "luks", "key-secret": secret}} if secret else {}
        return {"driver": "qcow2", **encrypt, "file": {"driver": "file", "filename": file}, **more}

    last = node(s1.file, "b")
    under = node(s3.file, "", backing=node(s2.file, "a", backing=last))
    assert opened == node("/d/new", "a", backing=under)
    assert opened_again(replace(root, secret=""), below[3:], Files(shared=True)) == {}
    devices = Files(shared=True, files={base.file: FileFact("block")})
    for form in ("luks", "raw"):  # a node of LUKS, alone or below one of raw
        luks = replace(base, format=form, encrypted=True, secret="c")
        image = {"driver": "host_device", "filename": base.file}
        assert opened_again(replace(root, secret=""), (luks,), devices) == node(
            "/d/new", "", backing={"driver": "luks", "key-secret": "c", "file": image}
        )


def test_note_says_how_another_qemu_opens_an_encrypted_disk() -> None:
    assert opening_notes({}) == ()
    (note,) = opening_notes({"vda": {"driver": "qcow2", "file": {"driver": "file", "filename": "/d/it's"}}})
    assert shlex.split(note) == [
        *("vda", "has", "an", "encrypted", "layer:", "it", "is", "opened", "by", "-blockdev"),
        '{"node-name": "vda", "driver": "qcow2", "file": {"driver": "file", "filename": "/d/it\'s"}}',
    ]


def test_secret_is_that_of_the_first_layer_whose_header_can_be_copied() -> None:
    disk = drawn("base <- s1 <- s2*", 0, 1)
    upper, lower = (replace(layer, secret=name) for layer, name in zip(disk.layers, ("a", "b"), strict=False))
    files = {layer.file: FileFact("regular", device=1, inode=2, luks=True) for layer in disk.layers}
    seen = Files(shared=True, files=files)
    known = "a", LuksHeader(upper.file, 1, 2)
    other = "b", LuksHeader(lower.file, 1, 2)
    assert secret_for((upper, lower), seen) == known
    for hidden in (
        replace(upper, secret=""),
        replace(upper, window=True),
        replace(upper, encrypted=False),
        replace(upper, file="/not/seen"),
    ):
        assert secret_for((hidden, lower), seen) == other
    assert secret_for((upper, lower), replace(seen, barred={upper.file: "another user's"})) == other
    plain = {**files, upper.file: FileFact("regular", device=1, inode=2)}
    assert secret_for((upper,), replace(seen, files=plain)) == ("", None)


def test_overlay_is_refused_on_what_the_guest_writes_encrypted() -> None:
    for allowed in (COVERED, PLAIN):
        refuse_clear_overlay(allowed, allowed.active, plain=False)
    refuse_clear_overlay(SECRET, SECRET.active, plain=True)
    with pytest.raises(
        Unsupported, match=r"vda is encrypted .*: it would hold what the guest writes unencrypted"
    ) as caught:
        refuse_clear_overlay(SECRET, SECRET.active, plain=False)
    assert caught.value.feature == CLEAR


@each(
    ("disk", "encrypted", "plain", "refused"),
    [
        (PLAIN, False, False, False),
        (COVERED, False, False, True),
        (COVERED, True, False, False),
        (COVERED, False, True, False),
    ],
)
def test_data_are_refused_where_they_leave_an_encrypted_layer(
    disk: Disk, *, encrypted: bool, plain: bool, refused: bool
) -> None:
    if not refused:
        refuse_clear_data(disk.layers, "/t", plain=plain, encrypted=encrypted)
        return
    with pytest.raises(Unsupported, match=r"/images/base\.qcow2 is encrypted, but /t is not") as caught:
        refuse_clear_data(disk.layers, "/t", plain=plain, encrypted=encrypted)
    assert (caught.value.feature, caught.value.hint) == (CLEAR, "allow it with --plain")


def test_memory_is_refused_where_any_disk_is_encrypted() -> None:
    refuse_clear_memory(graph(PLAIN), plain=False)
    refuse_clear_memory(graph(PLAIN, COVERED), plain=True)
    with pytest.raises(Unsupported, match="vda is encrypted, and the memory, which holds its key") as caught:
        refuse_clear_memory(graph(PLAIN, COVERED), plain=False)
    assert caught.value.feature == CLEAR


def test_vm_state_inside_an_encrypted_image_is_refused_though_plain_is_allowed() -> None:
    refuse_memory_inside(graph(PLAIN), PLAIN, plain=False)
    refuse_memory_inside(graph(PLAIN, SECRET), PLAIN, plain=True)
    with pytest.raises(Unsupported, match="would be stored unencrypted in an image"):
        refuse_memory_inside(graph(PLAIN, SECRET), PLAIN, plain=False)
    with pytest.raises(Unsupported, match="QEMU aborts \\(failed assertion\\)"):
        refuse_memory_inside(graph(PLAIN, SECRET), SECRET, plain=True)


@pytest.mark.parametrize("aside", [True, False])
def test_encrypted_layer_is_not_opened_again(*, aside: bool) -> None:
    refuse_second_opening(PLAIN, aside=aside)
    with pytest.raises(Unsupported, match=r"/images/base\.qcow2 is encrypted, and") as caught:
        refuse_second_opening(COVERED, aside=aside)
    assert ("--prepare" in caught.value.hint) is not aside
