from __future__ import annotations

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.model.qapi_schema import Schema
from qmpsnap.model.qmp_line import Request, read_line
from tests.each import each
from tests.model.schemas import SCHEMA


@each(
    ("line", "expected"),
    [
        ("query-status", Request("query-status")),
        ("  quit  ", Request("quit")),
        (
            "block-commit device=vda speed=10M on-error=stop auto-dismiss=off",
            Request(
                "block-commit",
                {"device": "vda", "speed": 10 << 20, "on-error": "stop", "auto-dismiss": False},
            ),
        ),
        ("block-commit device=5 speed=0x10", Request("block-commit", {"device": "5", "speed": 16})),
        ("block-commit speed=-1 device='a b'", Request("block-commit", {"speed": -1, "device": "a b"})),
        ("block-commit speed=007", Request("block-commit", {"speed": 7})),
        ("block-commit __com.example_twice=2", Request("block-commit", {"__com.example_twice": 2})),
        (
            "blockdev-add file.filename=/x file.driver=file driver=qcow2 lazy=true",
            Request(
                "blockdev-add",
                {"file": {"filename": "/x", "driver": "file"}, "driver": "qcow2", "lazy": True},
            ),
        ),
        (
            "blockdev-add driver=qcow2 file=n0 backing=null",
            Request("blockdev-add", {"driver": "qcow2", "file": "n0", "backing": None}),
        ),
        (
            "blockdev-add driver=qcow2 backing='null' file={}",
            Request("blockdev-add", {"driver": "qcow2", "backing": "null", "file": {}}),
        ),
        (
            "migrate-set-capabilities capabilities.1.capability=stop capabilities.0.state=on",
            Request(
                "migrate-set-capabilities", {"capabilities": [{"state": True}, {"capability": "stop"}]}
            ),
        ),
        (
            "migrate-set-capabilities capabilities=[1]",
            Request("migrate-set-capabilities", {"capabilities": [1]}),
        ),
        ("qom-set path=/x value=5", Request("qom-set", {"path": "/x", "value": 5})),
        ("qom-set path=/x value='5'", Request("qom-set", {"path": "/x", "value": "5"})),
        ("qom-set path=/x value=on", Request("qom-set", {"path": "/x", "value": "on"})),
        ("qom-set value.a.b=1 value.c=x", Request("qom-set", {"value": {"a": {"b": 1}, "c": "x"}})),
        ("new-fangled share=1.5 shape.a=3", Request("new-fangled", {"share": 1.5, "shape": {"a": 3}})),
        ("new-fangled share=2", Request("new-fangled", {"share": 2})),
        (
            "device_add driver=virtio-blk id=vdb drive=n0 num-queues=4",
            Request("device_add", {"driver": "virtio-blk", "id": "vdb", "drive": "n0", "num-queues": 4}),
        ),
        ('block-commit {"device": 5}', Request("block-commit", {"device": 5})),
        ('block-commit{"x": null}', Request("block-commit", {"x": None})),
        ('{"execute": "any", "id": 3}', Request("any")),
        (' {"execute": "any", "arguments": {"a": [1]}}', Request("any", {"a": [1]})),
    ],
)  # fmt: skip
def test_read_line_gives_the_command_with_typed_arguments(line, expected):
    assert read_line(line, SCHEMA) == expected


@each("line", ["", "   ", "# quit", "  #"])
def test_read_line_gives_nothing_for_a_blank_line_or_a_comment(line):
    assert read_line(line, SCHEMA) is None


@each(
    ("line", "message", "hint"),
    [
        ("blockcommit", "this QEMU has no command 'blockcommit'", "similar: block-commit"),
        ("zzzz", "this QEMU has no command 'zzzz'", ""),
        ("block-commit devise=x", "block-commit has no argument 'devise'", "similar: device"),
        ("block-commit zzzz=x", "block-commit has no argument 'zzzz'", "it has device, base-node"),
        ("quit force=true", "quit has no argument 'force'", "it takes none"),
        ("blockdev-add fil=x", "blockdev-add has no argument 'fil'", "more of them depend on driver=..."),
        ("blockdev-add driver=qcow2 file.size=1 file.driver=file", "file has no argument 'size'", "driver"),
        ("block-commit speed=fast", "'speed' takes integer, not 'fast'", ""),
        ("block-commit on-error=stopp", "'on-error' takes report|stop, not 'stopp'", "similar: stop"),
        ("block-commit auto-dismiss=yes", "'auto-dismiss' takes true|false, not 'yes'", ""),
        ("block-commit device={}", "'device' takes string", "in quotes"),
        ("block-commit device.x=1", "'device' is no object: it takes string", ""),
        ("block-commit device=x device=y", "'device' is given twice", ""),
        ("blockdev-add driver=qcow2 file=x file.driver=file", "'file' is given as a whole, and in parts", ""),
        ("qom-set value=1 value.a=1", "'value' is given as a whole, and in parts", ""),
        ("qom-set value.a=1 value.a.b=1", "'a' is given as a whole, and in parts", ""),
        ("qom-set value.a.b=1 value.a=1", "'a' is given as a whole, and in parts", ""),
        (
            "migrate-set-capabilities capabilities=x",
            "'capabilities' takes list of object",
            "capabilities=[...]",
        ),
        ("migrate-set-capabilities capabilities.x=1", "'x' is no number", "capabilities.0=..."),
        ("migrate-set-capabilities capabilities.1.state=on", "numbered from 0 on", ""),
        ("new-fangled share=many", "'share' takes number, not 'many'", ""),
        ("block-commit vda", "'vda' is not KEY=VALUE", "one JSON object"),
        ("block-commit [1]", "'[1]' is not KEY=VALUE", ""),
        ("block-commit {", "what follows the command is not JSON", ""),
        ("block-commit {} x", "what follows the command is not JSON", ""),
        ("{", "the command is not JSON", ""),
        ("{}", "the object has no command", ""),
        ('{"execute": 3}', "the object has no command", ""),
        ('{"exec-oob": "x"}', "the object has no command", ""),
        ('{"execute": "x", "argument": {}}', "the object has a member 'argument'", '"arguments"'),
        ('{"execute": "x", "arguments": []}', "the arguments are not an object", ""),
    ],
)
def test_read_line_refuses_what_this_qemu_cannot_take(line, message, hint):
    with pytest.raises(BadArgument) as refused:
        read_line(line, SCHEMA)
    assert message in refused.value.message
    assert hint in refused.value.hint


def test_read_line_takes_any_command_when_the_schema_is_not_known():
    assert read_line("any a=1 b.c=x", Schema()) == Request("any", {"a": 1, "b": {"c": "x"}})
