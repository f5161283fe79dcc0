from __future__ import annotations

import pytest

from qmpsnap.model.machine import Fingerprint
from qmpsnap.plan.memory_steps import (
    CreateMemory,
    CreateStore,
    KeepBranch,
    KeepLink,
    MemoryStep,
    RemoveState,
    SealMemory,
    SealStore,
)

KEPT = Fingerprint("pc", 1, (), {}, {})


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (CreateMemory("/m", 7), "create-memory", {"file": "/m", "reserve_bytes": 7}),
        (CreateStore("/m", "/s1"), "create-store", {"file": "/m", "like": "/s1"}),
        (SealMemory("/p", "/m", "i", "c1", True, KEPT), "seal-memory", {"partial": "/p", "file": "/m"}),
        (SealStore("/p", "/m"), "seal-store", {"partial": "/p", "file": "/m"}),
        (RemoveState("/m", "i", "t"), "remove-state", {"file": "/m", "id": "i", "tag": "t"}),
        (KeepLink("/r", "i"), "keep-link", {"directory": "/r", "id": "i"}),
        (
            KeepBranch("/r", "i", {"vda": "/o"}),
            "keep-branch",
            {"directory": "/r", "id": "i", "overlays": {"vda": "/o"}},
        ),
    ],
)
def test_memory_step_is_ours_and_says_what_it_does(
    step: MemoryStep, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments) == ("host", command, arguments)
