"""What real QEMUs answered about their machines, under data/, against what it means."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.machine import Device, Fingerprint, Machine
from qmpsnap.model.parse_machine import (
    BUILD_QUERIES,
    MACHINE_QUERIES,
    Build,
    MigrationInfo,
    MigrationRamInfo,
    device_path,
    parse_build,
    parse_machine,
)
from qmpsnap.model.qapi import read
from qmpsnap.testing.drawing import graph
from tests.each import each

DATA = Path(__file__).parent / "data"
MIB = 1024 * 1024
VERSIONS = {"7": "7.2.22", "11": "11.1.3"}
QUERIES = (*MACHINE_QUERIES, *BUILD_QUERIES)
COMMANDS = [name for name, _ in QUERIES]
NEWEST_AND_OLDEST = pytest.mark.parametrize("qemu", ["7", "11"])


def answers(qemu: str) -> list[Any]:
    found: list[Any] = json.loads((DATA / f"machine-{qemu}.json").read_text())["answers"]
    return found


def parsed(said: list[Any]) -> Machine:
    split = len(MACHINE_QUERIES)
    return parse_machine(
        said[:split],
        {"vda": "virtio-blk-device"},
        graph(vda="base <- s1*"),
        build=parse_build(said[split:], "qemu64-x86_64-cpu", ram="pc.ram"),
        passes_files=True,
        process="7-8",
    )


@NEWEST_AND_OLDEST
def test_parse_machine_reads_what_a_qemu_answers(qemu: str) -> None:
    machine = parsed(answers(qemu))
    assert (machine.status, machine.running, machine.migration) == ("prelaunch", False, "none")
    assert machine.parameters == {"max-bandwidth": 134_217_728}
    assert machine.capabilities["background-snapshot"] is False
    assert ("mapped-ram" in machine.capabilities) is (qemu == "11")
    assert machine.fingerprint == Fingerprint(
        machine=f"pc-q35-{'7.2' if qemu == '7' else '11.1'}-machine",
        memory=64 * MIB,
        cpus=("qemu64-x86_64-cpu",) * 2,
        devices={"vda": "virtio-blk-pci", "/device[0]": "e1000"},
        disks={"vda": 64 * MIB},
        qemu=VERSIONS[qemu],
        ram="pc.ram",
    )
    assert machine.devices == {"vda": Device("/machine/peripheral/vda/virtio-backend", "virtio-blk-device")}
    assert (machine.passes_files, machine.process) == (True, "7-8")


@each("enabled", [False, True])
def test_parse_machine_takes_cpus_that_kvm_does_not_run_for_emulated(*, enabled: bool) -> None:
    said = answers("7")
    assert said[COMMANDS.index("query-kvm")] == {"enabled": False, "present": True}
    said[COMMANDS.index("query-kvm")]["enabled"] = enabled
    assert parsed(said).emulated is not enabled


def test_parse_machine_counts_memory_that_was_plugged_in() -> None:
    said = answers("7")
    said[COMMANDS.index("query-memory-size-summary")] = {"base-memory": 64 * MIB, "plugged-memory": MIB}
    assert parsed(said).fingerprint.memory == 65 * MIB


def test_parse_machine_tells_whether_devices_may_have_threads_of_their_own() -> None:
    said = answers("7")
    assert not parsed(said).iothreads
    said[COMMANDS.index("query-iothreads")] = [{"id": "io", "thread-id": 7, "poll-max-ns": 0}]
    assert parsed(said).iothreads


def test_parse_machine_leaves_empty_drives_out_of_what_has_to_be_equal() -> None:
    build = Build("pc-q35-7.2-machine", "c", "7.2.22", emulated=True)
    said = answers("7")[: len(MACHINE_QUERIES)]
    machine = parse_machine(said, {}, graph(), build=build, passes_files=False, process="")
    assert (machine.fingerprint.disks, machine.devices, machine.passes_files) == ({}, {}, False)


@each("place", range(len(QUERIES)))
@each("wrong", [None, 7, [7], {"x": 1}])
def test_parse_machine_is_malformed_when_an_answer_has_another_shape(place: int, wrong: object) -> None:
    said = copy.deepcopy(answers("7"))
    said[place] = wrong
    if COMMANDS[place] in {"query-migrate", "query-migrate-parameters"} and isinstance(wrong, dict):
        assert parsed(said).migration == "none"  # an object in which anything may be missing
        return
    with pytest.raises(Malformed, match=f"answer to {COMMANDS[place]} does not have the expected shape"):
        parsed(said)


@each(
    ("reply", "info"),
    [
        ({}, MigrationInfo("none")),
        ({"status": "setup"}, MigrationInfo("setup")),
        (
            {"status": "active", "ram": {"transferred": 4_194_304, "total": 268_435_456, "normal": 1023}},
            MigrationInfo("active", ram=MigrationRamInfo(268_435_456, normal=1023)),
        ),
        ({"status": "failed", "error-desc": "no space"}, MigrationInfo("failed", "no space")),
    ],
)
def test_migration_info_tells_how_far_it_is(reply: object, info: MigrationInfo) -> None:
    assert read(MigrationInfo, reply, "query-migrate") == info


@each("reply", [None, [], "x", {"ram": 7}, {"ram": {"total": "x"}}, {"ram": [1]}])
def test_migration_info_is_malformed_when_the_reply_has_another_shape(reply: object) -> None:
    with pytest.raises(Malformed):
        read(MigrationInfo, reply, "query-migrate")


def test_device_path_is_that_of_a_plain_id_or_what_is_one_already() -> None:
    assert device_path("vda") == "/machine/peripheral/vda"
    assert device_path("/machine/peripheral/vda/virtio-backend") == "/machine/peripheral/vda/virtio-backend"
