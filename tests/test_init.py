from __future__ import annotations

import qmpsnap


def test_every_public_name_is_there_once():
    assert len(qmpsnap.__all__) == len(set(qmpsnap.__all__))
    assert all(getattr(qmpsnap, name) is not None for name in qmpsnap.__all__)
