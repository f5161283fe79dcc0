from __future__ import annotations

import pytest

from qmpsnap.errors import Unsupported
from qmpsnap.run.accelerator import accelerator


@pytest.mark.parametrize("forced", ["kvm", "tcg"])
def test_accelerator_is_the_forced_one(monkeypatch, forced):
    monkeypatch.setenv("QMPSNAP_ACCEL", forced)
    assert accelerator() == forced


def test_accelerator_refuses_another_word(monkeypatch):
    monkeypatch.setenv("QMPSNAP_ACCEL", "xen")
    with pytest.raises(Unsupported, match="'xen'"):
        accelerator()
