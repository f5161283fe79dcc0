from __future__ import annotations

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.block_replies import BlockStats, file_options
from qmpsnap.model.qapi import read
from tests.each import each


def test_block_stats_give_the_chain_from_top_to_base() -> None:
    stats = read(BlockStats, {"node-name": "a", "backing": {"node-name": "b"}}, "query-blockstats")
    assert [node.node_name for node in stats.chain()] == ["a", "b"]


def test_block_stats_name_the_node_that_holds_the_data() -> None:
    stats = read(BlockStats, {"node-name": "a", "parent": {"node-name": "f"}}, "query-blockstats")
    assert stats.data_node == BlockStats(node_name="f")
    assert BlockStats(node_name="f").data_node is None


@each("member", ["backing", "parent"])
def test_block_stats_are_malformed_when_a_node_below_has_another_shape(member: str) -> None:
    stats = read(BlockStats, {"node-name": "a", member: {"node-name": 7}}, "query-blockstats")
    with pytest.raises(Malformed, match=r"query-blockstats .* `\$.node-name`"):
        _ = [*stats.chain(), stats.data_node]


@each("name", ["", "/d/a", "json:", "json:[]", 'json:{"driver": 7}', "json:" + "[" * 100_000])
def test_file_options_are_none_where_a_name_spells_none(name: str) -> None:
    assert file_options(name) is None


def test_file_options_lead_down_to_the_file() -> None:
    name = 'json:{"driver":"raw","offset":"0","file":{"driver":"file","filename":"/d/\\udcff"}}'
    options = file_options(name)
    assert options is not None
    assert [(layer.driver, layer.filename, layer.offset) for layer in options.layers()] == [
        ("raw", "", "0"),
        ("file", "/d/\udcff", None),
    ]
