"""Pictures on the command line."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from qmpsnap.testing.server import Return

from .conftest import disks

TOP, BASE = "/d/top.qcow2", "/d/base.qcow2"


def texts(picture):
    return [text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_chain_draws_an_svg(machine, server):
    disks(server, vda=(TOP, BASE), cd=())
    assert texts(machine("chain", "--format", "svg").out) == [
        "vda", "top.qcow2", "active layer", "qcow2, 1 GiB, 1 MiB allocated", "node vda-0", "base.qcow2",
        "qcow2, 1 GiB, 1 MiB allocated", "node vda-1", "cd", "(empty)",
    ]  # fmt: skip


@pytest.mark.parametrize(("form", "begins"), [("dot", "digraph qmpsnap {"), ("mermaid", "flowchart TB")])
def test_chain_draws_one_disk_in_other_languages(machine, server, form, begins):
    disks(server, vda=(TOP, BASE), vdb=("/d/b.qcow2",))
    text = machine("chain", "/d/b.qcow2", "--format", form).out
    assert text.startswith(begins)
    assert ("b.qcow2" in text, "top.qcow2" in text) == (True, False)


def test_a_picture_with_a_job_reads_the_graph_once(machine, server):
    disks(server, vda=(TOP, BASE))
    job = {"id": "j", "type": "stream", "status": "running", "current-progress": 1, "total-progress": 100}
    server.answer("query-jobs", Return([job]))
    server.answer("query-block-jobs", Return([]))
    assert "j" in texts(machine("chain", "--format", "svg").out)
    assert server.commands.count("query-named-block-nodes") == 1


def test_chain_as_a_tree_is_what_it_prints_without_the_option(machine, server):
    disks(server, vda=(TOP, BASE))
    assert machine("chain", "--format", "tree") == machine("chain")


def test_a_picture_of_a_disk_that_is_not_there_is_refused(machine, server):
    disks(server, vda=(TOP,))
    ended = machine("chain", "vdx", "--format", "svg")
    assert (ended.code, ended.out) == (3, "")


def test_list_draws_the_tree(machine, server):
    disks(server, vda=(TOP, BASE))
    assert texts(machine("list", "--format", "svg").out)[:3] == ["vda", "top.qcow2", "active layer of vda"]


@pytest.mark.parametrize("verb", ["chain", "list"])
def test_the_format_of_an_image_may_follow_the_verb(qmpsnap, tmp_path, verb):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 16))
    ended = qmpsnap("-i", f"vda={image}", verb, "--format", "vda=raw", "--format", "mermaid")
    assert (ended.code, "disk.img" in ended.out) == (0, True), ended.err


def test_a_format_that_does_not_exist_is_a_usage_error(machine):
    ended = machine("chain", "--format", "png")
    assert (ended.code, "'png' is neither one of tree, dot, mermaid, svg nor DISK=FORMAT" in ended.err) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "chain", "--format", "svg"),
        ("chain", "--format", "dot", "--json"),
        ("--json", "list", "--format", "svg"),
    ],
)
def test_a_picture_and_json_exclude_each_other(machine, words):
    ended = machine(*words)
    assert (ended.code, "exclude each other" in (ended.out + ended.err)) == (2, True)


def test_a_plan_is_drawn_with_the_chain_before_and_after(machine, server):
    disks(server, vda=(TOP, BASE))
    names = (
        "block-stream",
        "human-monitor-command",
        "job-finalize",
        "job-dismiss",
        "job-cancel",
        "blockdev-del",
    )
    server.answer("query-commands", Return([{"name": name} for name in names]))
    ended = machine("--shared-fs", "no", "stream", "vda", "-n", "--picture", "svg")
    assert ended.code == 0, ended.err
    shown = texts(ended.out)
    assert shown == [
        "vda before", "top.qcow2", "active layer", "base.qcow2", "leaves the chain",
        "vda after", "top.qcow2", "active layer",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("stream", "vda"), ("stream", "vda", "-n", "--json")])
def test_a_picture_of_a_plan_goes_with_a_dry_run_and_without_json(machine, server, words):
    disks(server, vda=(TOP, BASE))
    ended = machine(*words, "--picture", "svg")
    assert (ended.code, "--picture goes with -n, and not with --json" in (ended.out + ended.err)) == (2, True)
