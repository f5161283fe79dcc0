from __future__ import annotations

from qmpsnap.run.fast_place import fast_place


def test_no_place_has_room_for_more_memory_than_the_host_has() -> None:
    assert fast_place(1 << 60) == ""


def test_place_that_has_room_is_in_the_hosts_memory() -> None:
    assert fast_place(4096) in {"/dev/shm", ""}
