from __future__ import annotations

import pytest

from qmpsnap.errors import Unsupported
from qmpsnap.model.features import Features

HAS = Features(frozenset({"device_add", "transaction", "block-stream"}))


def test_need_passes_when_every_command_is_there() -> None:
    HAS.need("transaction", "block-stream")


def test_need_refuses_and_names_the_first_command_that_is_missing() -> None:
    with pytest.raises(Unsupported, match="this QEMU has no 'drive-mirror'") as caught:
        HAS.need("transaction", "drive-mirror", "block-commit")
    assert (caught.value.feature, caught.value.exit_code) == ("drive-mirror", 3)
    assert caught.value.hint == "a newer QEMU has it"


def test_need_sends_nobody_from_a_storage_daemon_to_a_newer_qemu_alone() -> None:
    daemon = Features(frozenset({"transaction"}))
    with pytest.raises(Unsupported, match="this storage daemon has no 'snapshot-save'") as caught:
        daemon.need("transaction", "snapshot-save")
    assert "the QEMU of a running machine" in caught.value.hint
