from __future__ import annotations

import os
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.errors import BadName
from qmpsnap.model.job import Ending, JobId, parse_job_id
from qmpsnap.model.names import (
    check_name,
    digest,
    invalid_name,
    invalid_names,
    is_invalid_name,
    is_owned_node,
    job_id,
    node_name,
    overlay_file,
    overlay_files,
    state_directory,
    stem,
)
from tests.each import each


@each("name", ["a", "_", "0.9-rc1", "before_upgrade", "x" * 64])
def test_check_name_returns_a_name_of_the_grammar(name: str) -> None:
    assert check_name(name) == name


@each("name", ["", ".hidden", "-n", "a b", "a/b", "größe", "x" * 65, "a\n", "..", "a\0"])
def test_check_name_refuses_a_name_outside_the_grammar(name: str) -> None:
    with pytest.raises(BadName) as caught:
        check_name(name)
    assert caught.value.name == name


@given(st.lists(st.text() | st.integers() | st.none()), st.integers(0, 2**32))
def test_digest_is_eight_hex_digits_and_always_the_same(parts: list[object], other: int) -> None:
    token = digest(*parts)
    assert token == digest(*parts)
    assert len(token) == 8
    assert set(token) <= set("0123456789abcdef")
    assert digest(*parts, other, "x") != digest(*parts, other, "y")


def test_digest_avoids_names_that_end_in_it() -> None:
    first = digest("commit", "vda")
    second = digest("commit", "vda", avoid=[f"qmpsnap-{first}"])
    third = digest("commit", "vda", avoid=[f"qmpsnap-{first}", f"qmpsnap-commit-keep-{second}"])
    assert len({first, second, third}) == 3


def test_digest_takes_a_file_name_that_is_no_unicode() -> None:
    assert digest("/d/\udcff.qcow2") != digest("/d/\udcfe.qcow2")


@each("op", ["stream", "checkpoint", "backup"])
@each("ending", list(Ending))
def test_job_id_is_what_parse_job_id_reads(op: str, ending: Ending) -> None:
    assert parse_job_id(job_id(op, ending, "0a1b2c3d")) == JobId(op, ending, "0a1b2c3d")


@given(st.text())
def test_node_name_fits_what_qemu_takes(part: str) -> None:
    for owned in (False, True):
        name = node_name(digest(part), owned=owned)
        assert len(name.encode()) <= 31
        assert name.isascii()
        assert name[0].isalpha()
        assert is_owned_node(name) is owned


@each(
    ("file", "name"),
    [
        ("/d/base.qcow2", "base"),
        ("/d/base", "base"),
        ("/d/base.v2.qcow2", "base.v2"),
        ("/d/.qcow2", ".qcow2"),
    ],
)
def test_stem_is_the_last_part_without_its_last_suffix(file: str, name: str) -> None:
    assert stem(file) == name


def test_overlay_file_lies_beside_the_active_layer_and_is_named_after_the_base() -> None:
    assert overlay_file(active="/fast/s1.qcow2", base="/slow/base.img", name="n1") == "/fast/base.n1.qcow2"


CLONES = {"vda": ("/d/a1.qcow2", "/d/base.qcow2"), "vdb": ("/d/b1.qcow2", "/d/base.qcow2")}


def test_overlay_files_have_the_disks_names_where_they_would_be_one() -> None:
    disks = CLONES | {"vdc": ("/d/c1.qcow2", "/d/other.qcow2"), "vdd": ("/e/d1.qcow2", "/d/base.qcow2")}
    assert overlay_files(disks, "n1") == {
        "vda": "/d/base.vda.n1.qcow2",
        "vdb": "/d/base.vdb.n1.qcow2",
        "vdc": "/d/other.n1.qcow2",
        "vdd": "/e/base.n1.qcow2",
    }


def test_overlay_files_leave_out_what_is_given_to_another_disk() -> None:
    one = {"vda": CLONES["vda"]}
    assert overlay_files(one, "n1", given=["/d/base.n1.qcow2"]) == {"vda": "/d/base.vda.n1.qcow2"}


def test_overlay_files_differ_when_a_longer_name_is_another_disks_shorter_one() -> None:
    disks = CLONES | {"vdc": ("/d/c1.qcow2", "/d/base.vda.qcow2")}
    assert overlay_files(disks, "n1") == {
        "vda": "/d/base.vda.n1.qcow2",
        "vdb": "/d/base.vdb.n1.qcow2",
        "vdc": "/d/base.vda.vdc.n1.qcow2",
    }


def test_overlay_files_make_any_disks_name_fit() -> None:
    names = ["/machine/peripheral-anon/device[0]", "/machine/peripheral-anon/device-0-", "x" * 200]
    files = overlay_files(dict.fromkeys(names, CLONES["vda"]), "n1")
    parts = ["machine-peripheral-anon-device", "machine-peripheral-anon-device", "x" * 32]
    assert files == {
        name: f"/d/base.{part}-{digest(name)}.n1.qcow2" for name, part in zip(names, parts, strict=True)
    }


PARTS = st.text("ab.-/", min_size=1, max_size=3)


@given(st.dictionaries(PARTS, st.sampled_from(["b", "b.a", "b.a-b", "b.a.b"]), max_size=5))
def test_overlay_files_are_different_files_in_one_directory(disks: dict[str, str]) -> None:
    files = overlay_files({disk: ("/d/top", f"/d/{base}.img") for disk, base in disks.items()}, "n1")
    assert len(set(files.values())) == len(disks)
    assert {posixpath.dirname(file) for file in files.values()} <= {"/d"}
    bases = list(disks.values())
    alone = {disk for disk, base in disks.items() if bases.count(base) == 1}
    if bases and not any(base.startswith("b.") for base in bases):
        assert all((files[disk] == f"/d/{disks[disk]}.n1.qcow2") is (disk in alone) for disk in disks)


def test_state_directory_lies_beside_the_base() -> None:
    assert state_directory("/slow/base.img") == "/slow/base.qmpsnap"


@each("attempt", [1, 2, 17])
def test_is_invalid_name_knows_the_names_that_we_give(attempt):
    assert is_invalid_name(invalid_name("/d/s\n1.qcow2", attempt=attempt))


@each("name", ["/d/s1.qcow2", "/d/x.invalid.qcow2", "/d/x.invalidated", "/d/x.invalid.2b"])
def test_is_invalid_name_leaves_other_names(name):
    assert not is_invalid_name(name)


@each("attempt", [1, 2, 9])
def test_invalid_name_fits_where_the_file_s_own_name_does(attempt):
    for name in ("a" * 255, "ü" * 127, "\udcff" * 255, "日" * 85, "x.qcow2"):
        made = invalid_name(f"/d/{name}", attempt=attempt)
        assert made.startswith("/d/")
        assert len(os.fsencode(made.rpartition("/")[2])) <= 255
        assert is_invalid_name(made)
        made.encode(errors="surrogateescape").decode(errors="surrogateescape")
    assert invalid_name("/d/x.qcow2", attempt=attempt).startswith("/d/x.qcow2.invalid")


def test_invalid_names_of_two_long_names_differ():
    one, other = "a" * 254 + "1", "a" * 254 + "2"
    assert not {*invalid_names(one)} & {*invalid_names(other)}
    assert len({*invalid_names(one)}) == len(invalid_names(one))
