"""What is kept of a failed test."""

from __future__ import annotations

import anyio

from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.shared.kept import keep
from qmpsnap.testing.shared.reset import Booted
from tests.run.operations import vm_of


async def test_folder_has_nothing_of_an_earlier_run_of_the_test_but_what_others_put_there(tmp_path):
    directory, folder = tmp_path / "machine", tmp_path / "kept"
    for each in (directory, folder, folder / "overlays"):
        each.mkdir()
    for name in ("qmp-1.jsonl", "qmp-2.jsonl", "qemu.log", "overlays/vda.qcow2", "mine"):
        (folder / name).write_text("earlier")
    (directory / "qmp-1.jsonl").write_text("now")
    (directory / "console.log").write_bytes(b"boot\n" + 9 * b"\0" + b"now\n")
    vm = vm_of(FakeTarget(graph(vda="base <- now*")))
    booted = Booted(vm, directory, "memory", anyio.Event(), anyio.Event(), chains="before\n")
    await keep(booted, folder, overlays=False)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "chain-before": "before\n",
        "chain-after": "vda: [base] <- [now*]\n",
        "state": "running\n",
        "console.log": "boot\nnow\n",
        "qmp-1.jsonl": "now",
        "mine": "earlier",
    }
