from __future__ import annotations

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.host_process import HostProcess
from qmpsnap.plan.diagnosis.facts import Monitor
from tests.plan.diagnosis.look import facts, only

OURS, THEIRS = HostProcess(7, "python3 qmpsnap", "alice"), HostProcess(8, "libvirtd", "root")


def found_with(**known: object) -> tuple[str, tuple[str, ...], str]:
    found = only(facts(Graph(Frozen()), status=None, monitor=Monitor("/run/qmp", **known)))  # type: ignore[arg-type]
    assert found.subject == "/run/qmp"
    return found.code, found.remedy, found.cause


def test_a_client_of_ours_is_ended() -> None:
    code, remedy, cause = found_with(clients=(OURS,))
    assert (code, remedy) == ("monitor-held", ("kill", "7"))
    assert cause.startswith("process 7 (python3 qmpsnap, user alice) is connected to it, and QEMU serves one")


def test_another_client_is_named_and_left_alone() -> None:
    assert found_with(clients=(THEIRS,))[:2] == ("monitor-held", ())
    code, remedy, cause = found_with(clients=(OURS, "10.0.0.1:99"))
    assert (code, remedy, " and 10.0.0.1:99 are connected" in cause) == ("monitor-held", (), True)
    assert "a process that we may not see is connected" in found_with(clients=())[2]


def test_a_qemu_that_a_signal_stopped_goes_on() -> None:
    code, remedy, _ = found_with(stopped=HostProcess(9, "qemu-system-x86_64", "root"))
    assert (code, remedy) == ("monitor-silent", ("kill", "-CONT", "9"))


def test_a_monitor_that_is_silent_for_no_known_reason_is_said_to_be() -> None:
    assert found_with()[:2] == ("monitor-silent", ())
