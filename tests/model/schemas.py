"""A small schema, in the shape of query-qmp-schema's answer, with everything that occurs in QEMU's."""

from __future__ import annotations

from qmpsnap.model.qapi_schema import parse_schema


def member(name, kind, *features, optional=False):
    return {"name": name, "type": kind, "features": list(features)} | ({"default": None} if optional else {})


def command(name, arguments="0", returns="0", **more):
    return {"meta-type": "command", "name": name, "arg-type": arguments, "ret-type": returns, **more}


def of(name, *members, **more):
    return {"meta-type": "object", "name": name, "members": list(members), **more}


REPLY = [
    command("query-status", returns="status"),
    command("block-commit", "commit"),
    command("blockdev-add", "driver"),
    command("blockdev-del", "node"),
    command("device_add", "device"),
    command("job-cancel", "job", features=["unstable"]),
    command("migrate-set-capabilities", "capabilities"),
    command("qom-set", "property"),
    command("human-monitor-command", "hmp", "str"),
    command("quit"),
    command("new-fangled", "later"),
    {"meta-type": "event", "name": "STOP", "arg-type": "0"},
    {"meta-type": "event", "name": "JOB_STATUS_CHANGE", "arg-type": "job"},
    of("0"),
    of("status", member("running", "bool"), member("status", "states")),
    of(
        "commit",
        member("device", "str"),
        member("base-node", "str", optional=True),
        member("base", "str", "deprecated", optional=True),
        member("speed", "int", optional=True),
        member("on-error", "errors", optional=True),
        member("auto-dismiss", "bool", optional=True),
        member("__com.example_twice", "int", optional=True),
    ),
    of(
        "driver",
        member("driver", "drivers"),
        member("node-name", "str", optional=True),
        tag="driver",
        variants=[{"case": "qcow2", "type": "qcow2"}, {"case": "file", "type": "file"}],
    ),
    of(
        "qcow2",
        member("file", "reference"),
        member("backing", "or-null", optional=True),
        member("lazy", "bool", optional=True),
    ),
    of("file", member("filename", "str")),
    of("node", member("node-name", "str")),
    of("device", member("driver", "str"), member("id", "str", optional=True)),
    of("job", member("id", "str")),
    of("capabilities", member("capabilities", "[capability]")),
    of("capability", member("capability", "errors"), member("state", "bool")),
    of("property", member("path", "str"), member("value", "any")),
    of("hmp", member("command-line", "str")),
    of("later", member("share", "number"), member("shape", "shape", optional=True)),
    {"meta-type": "alternate", "name": "reference", "members": [{"type": "driver"}, {"type": "str"}]},
    {
        "meta-type": "alternate",
        "name": "or-null",
        "members": [{"type": "driver"}, {"type": "str"}, {"type": "null"}],
    },
    {"meta-type": "array", "name": "[capability]", "element-type": "capability"},
    # QEMU 7.2 to 11.1 have both; `values` is going to go.
    {"meta-type": "enum", "name": "errors", "members": [{"name": "report"}, {"name": "stop"}]},
    {"meta-type": "enum", "name": "states", "values": ["running", "paused"]},
    {"meta-type": "enum", "name": "drivers", "values": ["qcow2", "qcow", "file"]},
    *(
        {"meta-type": "builtin", "name": name, "json-type": kind}
        for name, kind in {
            "str": "string",
            "int": "int",
            "bool": "boolean",
            "number": "number",
            "null": "null",
            "any": "value",
        }.items()
    ),
    {"meta-type": "polygon", "name": "shape", "corners": 3},
]

SCHEMA = parse_schema(REPLY)
