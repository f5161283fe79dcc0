"""What disks are called, by what query-block says of their devices."""

from __future__ import annotations

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.disk_names import disk_names, spellings_of
from tests.each import each

ANONYMOUS = "/machine/peripheral-anon/device[0]/virtio-backend"


@pytest.mark.parametrize(
    ("disks", "names"),
    [
        pytest.param([("vda", "d0", "n")], ("vda",), id="an id alone, as of scsi disks"),
        pytest.param([("/machine/peripheral/vda/virtio-backend", "d0", "n")], ("vda",), id="an id in a path"),
        pytest.param([("/machine/peripheral/u/u.0/legacy[0]", "", "n")], ("u",), id="usb-storage"),
        pytest.param([(ANONYMOUS, "virtio0", "n")], ("virtio0",), id="a drive's id before a number"),
        pytest.param([(ANONYMOUS, "", "n")], ("device[0]",), id="no id"),
        pytest.param(
            [("/machine/peripheral-anon/device[1]/scsi.0/legacy[0]", "", "n")],
            ("device[1]",),
            id="usb, no id",
        ),
        pytest.param([("/machine/system.flash0", "", "n")], ("system.flash0",), id="pflash0=n"),
        pytest.param(
            [("/machine/unattached/device[3]", "", "n"), ("/machine/peripheral-anon/device[3]", "", "m")],
            ("unattached/device[3]", "device[3]"),
            id="numbers of two kinds",
        ),
        pytest.param([("", "d0", "n")], ("d0",), id="a drive without a device"),
        pytest.param([("", "", "n")], ("n",), id="a node without a device"),
        pytest.param([("", "vda", "n"), ("vda", "", "m")], ("drive/vda", "vda"), id="an id before a drive's"),
        pytest.param(
            [("/machine/peripheral/system.flash0", "", "n"), ("/machine/system.flash0", "", "m")],
            ("system.flash0", "/machine/system.flash0"),
            id="an id before a part of a path",
        ),
        pytest.param(
            [("/machine/peripheral/b/x", "", "n"), ("/machine/peripheral/b/y", "", "m")],
            ("b", "peripheral/b/y"),
            id="two disks of one device",
        ),
        pytest.param([], (), id="none"),
    ],
)
def test_disk_is_called_by_the_best_name_that_no_other_has_a_better_claim_to(
    disks: list[tuple[str, str, str]], names: tuple[str, ...]
) -> None:
    assert disk_names(disks) == names
    assert disk_names(disks[::-1]) == names[::-1] or names[0] == "b"  # in QEMU's order, where nothing tells


def test_disks_that_cannot_be_distinguished_are_malformed() -> None:
    with pytest.raises(Malformed, match="cannot be told apart"):
        disk_names([("vda", "", "n"), ("vda", "", "m"), ("vda", "", "o")])


@each(
    ("qdev", "spellings"),
    [
        ("", set()),
        ("cd0", {"cd0", "peripheral/cd0", "/machine/peripheral/cd0"}),
        (
            "/machine/peripheral/u/u.0/legacy[0]",
            {
                "u",
                "/machine/peripheral/u",
                "/machine/peripheral/u/u.0",
                "/machine/peripheral/u/u.0/legacy[0]",
                "peripheral/u",
                "peripheral/u/u.0",
                "peripheral/u/u.0/legacy[0]",
            },
        ),
        (
            ANONYMOUS,
            {
                "device[0]",
                "peripheral-anon/device[0]",
                "/machine/peripheral-anon/device[0]",
                ANONYMOUS,
                "peripheral-anon/device[0]/virtio-backend",
            },
        ),
        ("/machine/system.flash0", {"system.flash0", "/machine/system.flash0"}),
    ],
)
def test_device_is_spelled_by_id_number_or_path(qdev: str, spellings: set[str]) -> None:
    assert set(spellings_of(qdev)) == spellings
