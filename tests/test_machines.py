"""How a machine of this host is found by name or process id; the machines are Python programs that listen."""

from __future__ import annotations

import os
import re

import pytest

from qmpsnap import address_of, list_machines
from qmpsnap.errors import AmbiguousName, BadArgument, ConnectFailed
from tests.each import each
from tests.run.test_running_qemus import process

FIRST, COMMON, LOST = (
    f"{name}-{os.getpid()}" for name in ("first", "common", "lost")
)  # of this run of the tests


@pytest.fixture
def machines(tmp_path):
    """Two machines: `first` and `common`, and another `common` whose monitor is elsewhere."""
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    line = [("-qmp", f"unix:{path},server=on") for path in paths]
    with (
        process(paths[0], "-name", FIRST, *line[0]) as first,
        process(paths[1], "-name", COMMON, *line[1]) as second,
        process(paths[2], "-name", f"guest={COMMON},process=y", *line[2]) as third,
    ):
        yield dict(zip(paths, (first, second, third), strict=True))


async def test_address_of_finds_a_machine_by_its_name_or_its_process(machines):
    (path, first), *others = machines.items()
    assert await address_of(FIRST) == path
    for each_path, child in machines.items():
        assert await address_of(child.pid) == await address_of(str(child.pid)) == each_path
    with pytest.raises(
        AmbiguousName, match=f"'{COMMON}' can be any of 2 machines: {COMMON}: process"
    ) as caught:
        await address_of(COMMON)
    assert caught.value.candidates == tuple(str(pid) for pid in sorted(child.pid for _, child in others))
    assert {first.pid, *map(int, caught.value.candidates)} <= {each.pid for each in await list_machines()}


@each("machine", ["none-x", "0", 1 << 30, "first"])
async def test_address_of_says_that_there_is_no_such_machine(machine):
    with pytest.raises(ConnectFailed, match=f"no machine .* {re.escape(repr(str(machine)))}") as caught:
        await address_of(machine)
    assert "qmpsnap ps" in caught.value.hint
    assert "tcp:HOST:PORT" in caught.value.hint


@each("machine", ["", None, True, b"x", 1.5])
async def test_address_of_refuses_what_is_no_name(machine):
    with pytest.raises(BadArgument):
        await address_of(machine)


async def test_address_of_says_why_a_machine_cannot_be_connected_to(tmp_path):
    path = tmp_path / "s"
    with process(str(path), "-name", LOST, "-qmp", f"unix:{path},server=on") as child:
        path.unlink()
        with pytest.raises(ConnectFailed, match=f"{LOST}: process {child.pid} .* no QMP monitor") as caught:
            await address_of(LOST)
    assert "no path leads to it" in caught.value.hint
