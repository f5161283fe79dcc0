from __future__ import annotations

from pathlib import Path

from qmpsnap.plan.intent import Restore


def test_restore_makes_the_file_absolute(intent):
    assert intent("restore", "m") == Restore(f"{Path.cwd()}/m")


def test_restore_needs_a_file(qmpsnap):
    assert qmpsnap("-s", "/none", "restore").code == 2
