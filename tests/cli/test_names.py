from __future__ import annotations

import click
import pytest

from qmpsnap.cli import names
from qmpsnap.cli.app import App

from .conftest import disks


@pytest.fixture
def context(server):
    disks(server, vda=("/d/top.qcow2", "/d/base.qcow2"), vdb=("/d/b.qcow2",))
    return click.Context(click.Command("x"), obj=App(socket=server.path))


def test_disks_are_those_of_the_machine(context):
    assert names.disks(context) == ["vda", "vdb"]


def test_layers_are_those_of_the_disk_that_was_named(context):
    context.params["disk"] = "vda"
    assert names.layers(context) == ["base.qcow2", "top.qcow2"]


def test_layers_are_those_of_all_when_no_disk_was_named(context):
    assert names.layers(context) == ["b.qcow2", "base.qcow2", "top.qcow2"]


def test_names_are_none_without_a_machine(capfd, tmp_path):
    for app in (App(), App(socket=str(tmp_path / "none"))):
        context = click.Context(click.Command("x"), obj=app)
        assert (names.disks(context), names.layers(context), names.jobs(context)) == ([], [], [])
    assert capfd.readouterr() == ("", "")


def test_names_are_none_when_the_machine_is_silent(capfd, server):
    server.greeting = None
    context = click.Context(click.Command("x"), obj=App(socket=server.path))
    assert names.disks(context) == []
    assert capfd.readouterr() == ("", "")
