from __future__ import annotations

import asyncio
import json
import shlex
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import CommandFailed
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan.commands.reading import read_options
from qmpsnap.run.copying import alongside, check_image, compare_disk, copy_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VIEW = DiskView("vda", "c1", (ViewLayer("/s1", "qcow2"), ViewLayer("/base", "raw")), 1)
SOURCE = f"json:{json.dumps(read_options(VIEW))}"


@pytest.fixture
def tool_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a qemu-img that writes its arguments down, a line each, and then does something."""

    def make(script: str) -> Path:
        told = tmp_path / "told"
        program = tmp_path / "bin" / "qemu-img"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!/bin/sh\nfor last; do printf '%s\\n' \"$last\"; done >{shlex.quote(str(told))}\n{script}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return told

    return make


UNTIL_HEARD = """until [ -e "${0%/*}/../heard" ]; do sleep 0.01; done"""
"""The end of a script, which waits until its progress has been told."""


async def told_nothing(done: float) -> None:
    raise AssertionError(done)


async def test_copy_names_every_layer_and_tells_how_far_it_is(
    tmp_path: Path, tool_that: Callable[[str], Path]
) -> None:
    told = tool_that("""printf '    (0.00/100%%)\\r    (37.50/100%%)\\r'; : >"$last"; """ + UNTIL_HEARD)
    seen = []

    async def tell(done: float) -> None:
        seen.append(done)
        if done:
            (tmp_path / "heard").touch()

    file = str(tmp_path / "vda.qcow2")
    await copy_disk(VIEW, file, speed=7, remove=str(tmp_path / "p"), tell=tell, interval=0.01)
    assert told.read_text().splitlines() == ["convert", "-p", "-r", "7", "-O", "qcow2", SOURCE, file]
    assert seen[-1] == 0.375


async def test_copy_awaits_its_caller_s_hook_and_fails_with_it(
    tmp_path: Path, tool_that: Callable[[str], Path]
) -> None:
    tool_that("""printf '    (50.00/100%%)\r'; : >"$last"; """ + UNTIL_HEARD)
    told = []

    async def slow(done: float) -> None:
        (tmp_path / "heard").touch()
        await asyncio.sleep(0.2)  # the tool has ended meanwhile
        told.append(done)

    file = str(tmp_path / "vda.qcow2")
    await copy_disk(VIEW, file, remove="", tell=slow, interval=0.01)
    assert told[0] == 0.5
    (tmp_path / "heard").unlink()

    async def broken(done: float) -> None:
        (tmp_path / "heard").touch()
        raise ValueError(done)

    with pytest.raises(ValueError, match=r"0\.5"):
        await copy_disk(VIEW, file, remove="", tell=broken, interval=0.01)


async def test_copy_that_fails_says_why(tmp_path: Path, tool_that: Callable[[str], Path]) -> None:
    async def heard(done: float) -> None:
        assert done == 0.01  # or never, when it has failed before

    tool_that("""printf '    (1.00/100%%)\\r'; echo 'qemu-img: error: No space left on device' >&2; exit 1""")
    with pytest.raises(CommandFailed, match="copy of vda: it failed: qemu-img: error: No space") as caught:
        await copy_disk(VIEW, str(tmp_path / "v"), remove="", tell=heard, interval=9)
    assert caught.value.command == "qemu-img convert"
    assert caught.value.hint == "free some space there, or choose another place"
    tool_that("exit 3")
    with pytest.raises(CommandFailed, match="exit status 3"):
        await copy_disk(VIEW, str(tmp_path / "v"), remove="", tell=told_nothing, interval=9)


async def test_comparison_tells_a_difference_from_a_failure(tool_that: Callable[[str], Path]) -> None:
    told = tool_that("echo 'Content mismatch at offset 0!'; exit 1")
    with pytest.raises(CommandFailed, match="they differ: Content mismatch at offset 0!"):
        await compare_disk(VIEW, "/copy", remove="")
    assert told.read_text().splitlines() == ["compare", "-F", "qcow2", SOURCE, "/copy"]
    tool_that("echo 'qemu-img: cannot read' >&2; exit 2")
    with pytest.raises(CommandFailed, match="it failed: qemu-img: cannot read"):
        await compare_disk(VIEW, "/copy", remove="")


async def test_copy_that_does_not_get_a_lock_names_the_process_that_has_it(
    tmp_path: Path, tool_that: Callable[[str], Path]
) -> None:
    file = tmp_path / "layer.qcow2"
    file.write_bytes(b"x")
    tool_that(
        """printf 'qemu-img: Failed to get shared "write" lock\n"""
        """Is another process using the image [layer.qcow2]?\n' >&2; exit 2"""
    )
    with file.open("rb") as opened:
        cat = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, pass_fds=[opened.fileno()]
        )
    view = DiskView("m1", "vda", (ViewLayer(str(file), "qcow2"),), 1)
    try:
        with pytest.raises(
            CommandFailed, match='failed: qemu-img: Failed to get shared "write" lock'
        ) as caught:
            await compare_disk(view, "/copy", remove="")
    finally:
        assert cat.stdin is not None
        cat.stdin.close()
        await cat.wait()
    assert caught.value.hint.startswith(f"process {cat.pid} (cat, ")
    assert f"has {file} open" in caught.value.hint


async def test_check_follows_no_backing_file(tool_that: Callable[[str], Path]) -> None:
    told = tool_that("exit 0")
    await check_image("/copy")
    assert json.loads(told.read_text().splitlines()[-1].removeprefix("json:"))["backing"] is None


async def test_alongside_ends_with_its_block() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async with alongside(work()):
        await asyncio.sleep(0)
    assert ended == [True]
