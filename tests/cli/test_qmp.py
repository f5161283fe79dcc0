from __future__ import annotations

from qmpsnap.testing.server import Fail, Return
from tests.model.schemas import REPLY


def test_command_that_qemu_does_not_have_is_answered_by_similar_ones(machine, server):
    server.answer("query-qmp-schema", Return(REPLY))
    ended = machine("qmp", "block-comit")
    assert ended.code == 4
    assert ended.err.splitlines()[1:] == ["  nothing was changed", "  next: similar: block-commit"]


def test_command_that_qemu_does_not_have_is_told_without_a_schema_too(machine, server):
    server.answer("query-qmp-schema", Fail("no", "CommandNotFound"))
    ended = machine("qmp", "block-comit")
    assert (ended.code, ended.err.splitlines()[1:]) == (4, ["  nothing was changed"])
    assert "'block-comit'" in ended.err


def test_command_that_fails_otherwise_asks_qemu_for_nothing_more(machine, server):
    server.answer("block-commit", Fail("Cannot find device"))
    ended = machine("--json", "qmp", "block-commit")
    assert (ended.code, ended.json["error"]["hint"]) == (4, "")
    assert "query-qmp-schema" not in server.commands
