from __future__ import annotations

from qmpsnap.model.image_chain import ImageLayer
from qmpsnap.model.step import AddNode
from qmpsnap.plan.commands.images import open_layer


def test_the_active_layer_is_opened_for_writing_on_the_node_beneath() -> None:
    step = open_layer("vda", ImageLayer("/d/s1", "qcow2", 8, 1, 2), below="under", active=True)
    node = step.arguments["node-name"]
    assert (step.command, step.effect) == ("blockdev-add", AddNode(node, "qcow2", "/d/s1"))
    assert step.arguments == {
        "driver": "qcow2",
        "node-name": node,
        "read-only": False,
        "backing": "under",
        "file": {
            "driver": "file",
            "node-name": node.replace("-a-", "-"),
            "filename": "/d/s1",
            "auto-read-only": True,
        },
    }


def test_nothing_is_left_to_the_header() -> None:
    base = open_layer("vda", ImageLayer("/d/b", "qcow2", 8, 1, 2), below=None, active=False)
    assert base.arguments["backing"] is None
    assert base.arguments["read-only"] is True
    raw = open_layer("vda", ImageLayer("/d/r", "raw", 8, 1, 2), below=None, active=False)
    assert (raw.arguments["driver"], "backing" in raw.arguments) == ("raw", False)
    data = ImageLayer("/d/q", "qcow2", 8, 1, 2, data_file="/d/q.raw", data_id=(1, 3))
    opened = open_layer("vda", data, below=None, active=True).arguments["data-file"]
    assert (opened["driver"], opened["filename"]) == ("file", "/d/q.raw")
