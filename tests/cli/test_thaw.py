from __future__ import annotations


def test_thaw_names_an_agent_that_is_not_there(qmpsnap, tmp_path):
    ended = qmpsnap("thaw", tmp_path / "agent")
    assert ended.code == 4
    assert "cannot connect to the guest's agent" in ended.err
    assert qmpsnap("thaw", tmp_path / "agent", "-n").out.startswith("  1. ** guest-fsfreeze-thaw")
