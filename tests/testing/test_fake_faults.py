from __future__ import annotations

from qmpsnap.errors import InvalidTarget
from qmpsnap.plan.commands.state import stop
from qmpsnap.testing.fake_faults import Fault, Faults

NO = InvalidTarget("no", file="/x")


def test_faults_happen_once_and_in_order() -> None:
    faults = Faults()
    first, second = Fault("stop", NO, happened=False), Fault(stop(), NO, happened=True)
    faults.add(first)
    faults.add(second)
    assert [faults.take(stop()) for _ in range(3)] == [first, second, None]


def test_faults_of_a_command_happen_at_that_command_alone() -> None:
    faults = Faults()
    faults.add(Fault("graph", NO, happened=False))
    assert faults.take(stop()) is None
    assert faults.take("graph") is not None
