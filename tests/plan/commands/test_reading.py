from __future__ import annotations

from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan.commands.reading import nbd_options, read_options


def a_file(name: str) -> dict[str, object]:
    return {"driver": "file", "filename": name, "read-only": True}


def test_read_options_name_every_layer_and_no_backing_file_of_the_last() -> None:
    layers = (ViewLayer("/s1", "qcow2"), ViewLayer("/base", "qcow2"))
    assert read_options(DiskView("vda", "c1", layers, 1)) == {
        "driver": "qcow2",
        "read-only": True,
        "file": a_file("/s1"),
        "backing": {"driver": "qcow2", "read-only": True, "file": a_file("/base"), "backing": None},
    }


def test_read_options_of_a_raw_device_and_of_a_data_file() -> None:
    layers = (ViewLayer("/s1", "qcow2", data_file="/data"), ViewLayer("/dev/v/base", "raw", is_device=True))
    assert read_options(DiskView("vda", "c1", layers, 1)) == {
        "driver": "qcow2",
        "read-only": True,
        "file": a_file("/s1"),
        "data-file": a_file("/data"),
        "backing": {
            "driver": "raw",
            "read-only": True,
            "file": {"driver": "host_device", "filename": "/dev/v/base", "read-only": True},
        },
    }


def test_read_options_lock_all_but_what_the_guest_writes_to() -> None:
    layers = (ViewLayer("/top", "qcow2"), ViewLayer("/base", "qcow2"))
    view = DiskView("vda", "in", layers, 1, snapshot=InternalSnapshot("1", "in"), written=True)
    options = read_options(view)
    assert options["force-share"] is options["file"]["force-share"] is True
    assert "force-share" not in options["backing"]
    assert "force-share" not in options["backing"]["file"]


def test_nbd_options_lead_to_an_export_on_a_unix_socket() -> None:
    assert nbd_options("/s", "vda") == {
        "driver": "nbd",
        "server": {"type": "unix", "path": "/s"},
        "export": "vda",
        "read-only": True,
    }
