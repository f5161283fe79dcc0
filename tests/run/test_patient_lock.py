from __future__ import annotations

import fcntl
import os
import threading

import pytest

from qmpsnap.run.patient_lock import lock


@pytest.fixture
def two(tmp_path):
    """Two descriptors of one directory."""
    descriptors = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_lock_is_refused_while_another_holds_it(two):
    one, other = two
    fcntl.flock(other, fcntl.LOCK_SH)
    with pytest.raises(BlockingIOError):
        lock(one, 0.0)


def test_lock_waits_for_who_only_looks(two):
    one, other = two
    fcntl.flock(other, fcntl.LOCK_SH)
    released = threading.Timer(0.05, fcntl.flock, (other, fcntl.LOCK_UN))
    released.start()
    lock(one, 60.0)
    released.join()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
