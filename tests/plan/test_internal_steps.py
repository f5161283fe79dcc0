from __future__ import annotations

from qmpsnap.plan.internal_steps import DeleteInternal, TakeInternal


def test_a_snapshot_inside_is_one_transaction_over_the_roots() -> None:
    step = TakeInternal("i1", (("vda", "root-a"), ("vdb", "#block12")))
    assert (step.on, step.command) == ("qmp", "transaction")
    assert step.arguments == {
        "actions": [
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "root-a", "name": "i1"}},
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "#block12", "name": "i1"}},
        ]
    }


def test_a_deletion_names_the_snapshot_by_id_and_name() -> None:
    step = DeleteInternal("vda", "root-a", "3", "i1")
    assert (step.on, step.command) == ("qmp", "blockdev-snapshot-delete-internal-sync")
    assert step.arguments == {"device": "root-a", "id": "3", "name": "i1"}
