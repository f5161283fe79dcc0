"""Whether a second QEMU fits onto the host."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

from qmpsnap.testing.shared.room import is_room_for
from tests.each import each

MIB = 1024 * 1024


@each(
    ("processors", "workers", "meminfo", "cgroup", "expected"),
    [
        (2, 1, "MemAvailable:    4096 kB", {}, True),
        (2, 1, "MemAvailable:    4095 kB", {}, False),
        (1, 1, "MemAvailable: 1000000 kB", {}, False),
        (4, 2, "MemAvailable:    8192 kB", {}, True),
        (4, 2, "MemAvailable:    8191 kB", {}, False),
        (3, 2, "MemAvailable: 1000000 kB", {}, False),
        (2, 1, "MemAvailable: 1000000 kB", {"cpu.max": "max 100000\n"}, True),
        (8, 1, "MemAvailable: 1000000 kB", {"cpu.max": "150000 100000\n"}, False),
        (8, 1, "MemAvailable: 1000000 kB", {"cpu.max": "200000 100000\n"}, True),
        (
            2,
            1,
            "MemAvailable: 1000000 kB",
            {"memory.max": f"{5 * MIB}\n", "memory.current": f"{MIB}\n"},
            True,
        ),
        (
            2,
            1,
            "MemAvailable: 1000000 kB",
            {"memory.max": f"{5 * MIB}\n", "memory.current": f"{2 * MIB}\n"},
            False,
        ),
        (2, 1, "MemAvailable: 1000000 kB", {"memory.max": "max\n", "memory.current": "7\n"}, True),
        (2, 1, "an old kernel says nothing", {}, True),
    ],
)
def test_each_worker_has_a_second_processor_and_four_times_the_guest(
    monkeypatch, tmp_path, processors, workers, meminfo, cgroup, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    (tmp_path / "meminfo").write_text(f"MemTotal: 7 kB\n{meminfo}\nBuffers: 3 kB\n")
    for name, text in cgroup.items():
        (tmp_path / name).write_text(text)
    found = is_room_for(MIB, tmp_path, workers=workers, cgroup=tmp_path, meminfo=tmp_path / "meminfo")
    assert found is expected


@each(("free_mib", "workers", "expected"), [(4, 1, True), (3, 1, False), (8, 2, True), (7, 2, False)])
def test_disk_has_four_times_the_guest_free(monkeypatch, tmp_path, free_mib, workers, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path: SimpleNamespace(free=free_mib * MIB)}.get)
    found = is_room_for(MIB, tmp_path, workers=workers, cgroup=tmp_path, meminfo=tmp_path / "meminfo")
    assert found is expected
