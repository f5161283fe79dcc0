from __future__ import annotations

import json
import pickle

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.qapi_schema import (
    UNKNOWN,
    Schema,
    SchemaCommand,
    SchemaMember,
    SchemaType,
    parse_schema,
)
from tests.each import each
from tests.model.schemas import REPLY, SCHEMA


def test_parse_schema_has_commands_and_events_with_their_types():
    assert SCHEMA.commands["job-cancel"] == SchemaCommand("job-cancel", "job", "0", ("unstable",))
    assert SCHEMA.events["JOB_STATUS_CHANGE"] == SchemaCommand("JOB_STATUS_CHANGE", "job")
    assert SCHEMA.type("errors") == SchemaType("enum", values=("report", "stop"))
    assert SCHEMA.type("[capability]") == SchemaType("array", element="capability")
    assert SCHEMA.type("node") == SchemaType("object", members=(SchemaMember("node-name", "str"),))
    assert SCHEMA.members("commit")[2] == SchemaMember("base", "str", optional=True, features=("deprecated",))


def test_members_are_also_those_of_the_variant_that_the_tag_chooses():
    def names(**given):
        return [member.name for member in SCHEMA.members("driver", given)]

    assert names() == names(driver="qcow") == names(driver=["qcow2"]) == ["driver", "node-name"]
    assert names(driver="file") == ["driver", "node-name", "filename"]


@each(
    ("name", "described", "words"),
    [
        ("str", "string", ()),
        ("int", "integer", ()),
        ("bool", "true|false", ("true", "false")),
        ("errors", "report|stop", ("report", "stop")),
        ("[capability]", "list of object", ()),
        ("or-null", "object or string or null", ()),
        ("any", "any value", ()),
        ("shape", "any value", ()),
        ("none", "any value", ()),
    ],
)
def test_describe_and_words_of_each_kind(name, described, words):
    assert (SCHEMA.describe(name), SCHEMA.words(name)) == (described, words)


def test_parse_schema_tolerates_what_it_does_not_know():
    odd = [
        3,
        {},
        {"meta-type": "object"},
        {"meta-type": "object", "name": "x", "members": 3},
        {"meta-type": "command", "name": "c", "arg-type": "x", "success-response": False},
        {"meta-type": "object", "name": "y", "members": [{"name": "a", "type": "x", "if": "later"}]},
        {"meta-type": "array", "name": "loop", "element-type": "loop"},
        {"meta-type": "alternate", "name": "a", "members": [{"type": "a"}, {"type": "b"}]},
    ]
    schema = parse_schema(odd)
    assert schema.commands == {"c": SchemaCommand("c", "x")}
    assert schema.type("x") is UNKNOWN
    assert schema.members("y") == (SchemaMember("a", "x"),)
    assert schema.describe("loop") == "list of list of list of list of any value"
    assert schema.describe("a") == "any value"


@each("reply", [None, {}, "x", 3])
def test_parse_schema_refuses_what_is_no_list(reply):
    with pytest.raises(Malformed, match="not a list"):
        parse_schema(reply)


def test_a_schema_spells_itself_as_json_and_can_be_pickled():
    spelled = json.loads(json.dumps(SCHEMA.to_json()))
    assert spelled["events"]["STOP"] == {"name": "STOP", "arguments": "0", "returns": "", "features": []}
    assert pickle.loads(pickle.dumps(SCHEMA)) == SCHEMA


def test_an_empty_schema_knows_nothing():
    assert parse_schema([]) == Schema()
    assert parse_schema(REPLY).commands.keys() > {"quit"}
