from __future__ import annotations

import click
import pytest

from qmpsnap.cli import candidates
from qmpsnap.cli.app import App
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import to_json

from .conftest import disks


@pytest.fixture
def context(server):
    disks(server, vda=("/d/top.qcow2", "/d/base.qcow2"), vdb=("/d/b.qcow2",))
    return click.Context(click.Command("x"), obj=App(socket=server.path))


def test_disks_are_those_of_the_machine(context):
    assert candidates.disks(context) == ["vda", "vdb"]


def test_layers_are_those_of_the_disk_that_was_named(context):
    context.params["disk"] = "vda"
    assert candidates.layers(context) == ["base.qcow2", "top.qcow2"]


def test_layers_are_those_of_all_when_no_disk_was_named(context):
    assert candidates.layers(context) == ["b.qcow2", "base.qcow2", "top.qcow2"]


def test_moments_are_those_inside_and_those_of_records(server, tmp_path):
    top, base = (str(tmp_path / name) for name in ("top.qcow2", "base.qcow2"))
    disks(server, inside=[("vda", "1", "i1", 0), ("vdb", "1", "i1", 0)], vda=(top, base), vdb=("/d/b",))
    taken = "2024-05-01T12:00:00+00:00"
    record = MomentRecord("qmpsnap-snapshot-keep-0a1b2c3d", "sn", taken, {"vda": top}, {"vda": base})
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    app = App(socket=server.path, shared_fs=True)
    assert candidates.snapshots(click.Context(click.Command("x"), obj=app)) == ["i1", "sn"]


def test_names_are_none_without_a_machine(capfd, tmp_path):
    for app in (App(), App(socket=str(tmp_path / "none"))):
        context = click.Context(click.Command("x"), obj=app)
        assert (candidates.disks(context), candidates.layers(context), candidates.jobs(context)) == (
            [],
            [],
            [],
        )
    assert capfd.readouterr() == ("", "")


def test_names_are_none_when_the_machine_is_silent(capfd, server):
    server.greeting = None
    context = click.Context(click.Command("x"), obj=App(socket=server.path))
    assert candidates.disks(context) == []
    assert capfd.readouterr() == ("", "")
