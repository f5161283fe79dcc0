from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qmpsnap.model.machine import Fingerprint
from qmpsnap.plan.commands.files import (
    LuksHeader,
    Proof,
    create_file,
    create_memory,
    create_overlay,
    create_store,
    remove_file,
    remove_orphan,
    remove_state,
    retire_file,
    seal_memory,
    seal_store,
)
from tests.each import each
from tests.plan.commands.flags import flags

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

KEPT = Fingerprint("pc", 1, (), {}, {})


@each(
    ("step", "command", "arguments"),
    [
        (
            create_overlay("/o", size_bytes=7, backing="/b", backing_format="raw", like="/b"),
            "create-overlay",
            {"file": "/o", "size_bytes": 7, "backing": "/b", "backing_format": "raw", "like": "/b"},
        ),
        (
            create_overlay(
                "/o",
                size_bytes=7,
                backing="/b",
                backing_format="raw",
                like="/b",
                luks=LuksHeader("/b", 1, 2),
            ),
            "create-overlay",
            {
                "file": "/o",
                "size_bytes": 7,
                "backing": "/b",
                "backing_format": "raw",
                "like": "/b",
                "luks_of": "/b",
            },
        ),
        (create_file("/o", "/b"), "create-file", {"file": "/o", "like": "/b"}),
        (create_memory("/o"), "create-memory", {"file": "/o"}),
        (create_store("/o", "/s1"), "create-store", {"file": "/o", "like": "/s1"}),
    ],
)
def test_a_file_that_is_made_is_removed_again(step: Step, command: str, arguments: dict[str, object]) -> None:
    assert (step.on, step.command, step.arguments) == ("host", command, arguments)
    assert (flags(step), step.undo, step.effect) == ("", (remove_file("/o"),), None)


@each(
    ("step", "command", "arguments", "set_flags"),
    [
        (
            retire_file("/f", "rename", "/f.invalid"),
            "retire-file",
            {"file": "/f", "policy": "rename", "to": "/f.invalid"},
            "owed",
        ),
        (
            remove_state("/m", "i", "t"),
            "remove-state",
            {"file": "/m", "id": "i", "tag": "t"},
            "final writes owed",
        ),
        (seal_store("/p", "/m"), "seal-store", {"partial": "/p", "file": "/m"}, ""),
        (remove_file("/o"), "remove-file", {"file": "/o"}, ""),
        (remove_orphan("/o", None), "remove-orphan", {"file": "/o", "backing": None}, ""),
    ],
)
def test_what_is_retired_or_named_has_no_undo(
    step: Step, command: str, arguments: dict[str, object], set_flags: str
) -> None:
    assert (step.on, step.command) == ("host", command)
    assert json.loads(json.dumps(step.arguments)) == arguments
    assert (flags(step), step.undo, step.effect, step.detail) == (set_flags, (), None, {})


def test_memory_is_sealed_with_a_note_of_whose_it_is() -> None:
    step = seal_memory("/p", "/m", id="i", name="c1", running=True, fingerprint=KEPT, layers=(("vda", "/b"),))
    assert (step.on, step.command) == ("host", "seal-memory")
    assert step.arguments == {"partial": "/p", "file": "/m"}
    assert step.detail == {
        "id": "i",
        "name": "c1",
        "running": True,
        "fingerprint": {
            "machine": "pc",
            "memory": 1,
            "cpus": (),
            "devices": {},
            "disks": {},
            "qemu": "",
            "ram": "",
        },
        "layers": (("vda", "/b"),),
        "trims": True,
    }
    assert (flags(step), step.undo) == ("", ())


def test_a_folded_file_is_looked_at_by_its_proof_which_is_not_printed() -> None:
    proof = Proof("qcow2", "/b", device=1, inode=2)
    step = retire_file("/f", "remove", "", proof)
    assert step.arguments == retire_file("/f", "remove", "").arguments
    assert step.detail == {"proof": {"format": "qcow2", "backing": "/b", "device": 1, "inode": 2}}
