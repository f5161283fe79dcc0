from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.template import (
    FileState,
    TemplateDisk,
    TemplateLayer,
    TemplateRecord,
    differences,
    from_text,
    partial_directory,
    to_text,
)
from tests.each import each

WAS = FileState(7, 4096, 10**18)
KEEPER = "/d/s1.t1-0123abcd.template.qcow2"
RECORD = TemplateRecord(
    name="t1",
    created="2024-05-01T12:00:00.000000+00:00",
    fingerprint=Fingerprint("pc-q35-7.2-machine", 64 << 20, ("x:0",), {"vda": "virtio"}, {"vda": 1 << 20}),
    memory=FileState(1, 64 << 20, 1),
    state=FileState(2, 300_000, 2),
    sealed=True,
    disks={
        "vda": TemplateDisk(
            (
                TemplateLayer("/d/s1.qcow2", "qcow2", WAS),
                TemplateLayer("/d/base.qcow2", "qcow2", FileState(8, 1, 1), {"/d/data": FileState(9, 1, 1)}),
            ),
            1 << 20,
        )
    },
    keepers={KEEPER: "/d/s1.qcow2"},
)


def test_record_is_read_as_it_was_written() -> None:
    assert from_text(to_text(RECORD).encode()) == RECORD


def test_record_names_every_file_that_clones_read() -> None:
    assert sorted(RECORD.files("/t")) == ["/d/base.qcow2", "/d/data", "/d/s1.qcow2", "/t/memory", "/t/state"]


def test_record_says_how_each_disk_is_read() -> None:
    (view,) = RECORD.views()
    assert (view.disk, view.files, view.virtual_size) == ("vda", ("/d/s1.qcow2", "/d/base.qcow2"), 1 << 20)
    assert [layer.format for layer in view.layers] == ["qcow2", "qcow2"]


LAYER: dict[str, Any] = json.loads(to_text(RECORD))["disks"]["vda"]["layers"][0]


def with_layer(**changes: object) -> dict[str, Any]:
    return {"disks": {"vda": {"layers": [{**LAYER, **changes}], "virtual_size": 1}}}


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "version 2"),
    "another field": ({"argv": ["/bin/sh"]}, "unknown field 'argv'"),
    "no disk's layers": ({"disks": {"vda": {"layers": [], "virtual_size": 1}}}, "layers"),
    "relative layer": (
        with_layer(file="x"),
        "absolute",
    ),
    "dots": (with_layer(file="/d/../x"), "plain path"),
    "protocol": (
        with_layer(file="nbd://x"),
        "absolute",
    ),
    "format": (with_layer(format="vvfat"), "vvfat"),
    "name": ({"name": "../t1"}, "not a valid snapshot name"),
    "time": ({"created": "yesterday"}, "yesterday"),
    "negative": ({"memory": {"inode": -1, "size": 1, "modified": 1}}, "inode"),
    "someone's file": ({"keepers": {"/etc/passwd": "/d/s1.qcow2"}}, "'/etc/passwd' is not based on a layer"),
    "another layer": ({"keepers": {KEEPER: "/etc/passwd"}}, "is not based on a layer"),
}


@each("case", HOSTILE)
def test_record_that_was_changed_is_refused(case: str) -> None:
    changes, text = HOSTILE[case]
    body = {**json.loads(to_text(RECORD)), **changes}
    with pytest.raises(ValueError, match=text):
        from_text(json.dumps(body).encode())


@each("field", ["name", "created", "fingerprint", "memory", "state", "sealed", "disks"])
def test_record_that_lacks_a_field_is_refused(field: str) -> None:
    body = json.loads(to_text(RECORD))
    del body[field]
    with pytest.raises(ValueError, match=field):
        from_text(json.dumps(body).encode())


@given(st.binary(max_size=64))
def test_record_of_any_bytes_is_refused_by_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's, or ours
        from_text(text)


@each(
    ("now", "said"),
    [
        (WAS, ()),
        (None, ("/f is gone",)),
        (FileState(8, 4096, 10**18), ("/f is another file",)),
        (FileState(7, 4097, 10**18), ("/f has been written to",)),
        (FileState(7, 4096, 10**18 + 1), ("/f has been written to",)),
    ],
)
def test_differences_name_what_became_of_a_file(now: FileState | None, said: tuple[str, ...]) -> None:
    assert differences({"/f": WAS}, {"/f": now}) == said


def test_name_of_what_is_not_complete() -> None:
    assert partial_directory("/srv/t1") == "/srv/.t1.partial"
