"""What a test has set in QEMU that no revert puts back."""

from __future__ import annotations

import json
from collections.abc import Mapping

from qmpsnap.testing.shared.settings import forwards_of, hidden_of, limits_of, networks_of
from tests.each import each

NETWORK = (
    "e1000e.0: index=0,type=nic,model=e1000e,macaddr=52:54:00:12:34:56\r\n"
    " \\ #net058: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
    "tap0: index=0,type=tap,ifname=tap0,script=no,downscript=no\r\n"
    "tap0: index=1,type=tap,ifname=tap0,script=no,downscript=no\r\n"
)
USERNET = (
    "Hub -1 (net0):\r\n"
    "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  UDP[HOST_FORWARD]   8               * 23998       10.0.2.15    53     0     0\r\n"
    "  TCP[HOST_FORWARD]   3       127.0.0.1 23999       10.0.2.15    22     0     0\r\n"
    "  TCP[ESTABLISHED]    9       127.0.0.1 23999       10.0.2.15    22     0     0\r\n"
)


def test_limits_are_of_disks_that_have_any():
    blocks: list[Mapping[str, object]] = [
        {"device": "", "qdev": "vda", "inserted": {"bps": 0, "iops": 7, "iops_max": 9, "file": "bps"}},
        {"device": "old", "inserted": {"bps_rd": 5}},
        {"device": "", "qdev": "vdb", "inserted": {"bps": 0, "iops_size": 0}},
        {"device": "cd"},
    ]  # fmt: skip
    assert list(limits_of(blocks)) == ["vda: iops=7, iops_max=9", "old: bps_rd=5"]


def test_networks_are_the_cards_and_what_they_are_connected_to():
    assert networks_of(NETWORK) == ["e1000e.0", "#net058", "tap0"]
    assert networks_of("unknown command: 'info network'\r\n") == []


def test_forwards_are_the_ports_that_qemu_listens_on_without_its_descriptors_and_connections():
    assert forwards_of(USERNET) == ["UDP *:23998 10.0.2.15:53", "TCP 127.0.0.1:23999 10.0.2.15:22"]
    assert forwards_of("unknown command: 'info usernet'\r\n") == []


MONITOR = "human-monitor-command"


@each(
    ("command", "arguments", "expected"),
    [
        ("set-action", {"reboot": "shutdown"}, "set-action"),
        ("watchdog-set-action", {"action": "none"}, "watchdog-set-action"),
        ("qom-set", {"path": "/x", "property": "size", "value": 1}, "qom-set"),
        ("qom-set", {"path": "/x", "property": "drive", "value": "n"}, ""),
        (MONITOR, {"command-line": "boot_set d"}, "boot_set"),
        (MONITOR, {"command-line": "info boot_set"}, ""),
        (MONITOR, {"command-line": ""}, ""),
        ("query-jobs", None, ""),
        ("ringbuf-write", {"data": "set-action"}, ""),
    ],
)
def test_hidden_is_a_command_whose_effect_nothing_shows(tmp_path, command, arguments, expected):
    message = {"execute": command} | ({"arguments": arguments} if arguments else {})
    entries = [
        {"qmpsnap": "record", "version": 1},
        {"from": "qemu", "message": {"event": "set-action"}},
        {"from": "client", "message": message},
    ]
    text = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (tmp_path / "qmp-1.jsonl").write_text('{"from": "client", "message": {"execute": "set-act')
    (tmp_path / "qmp-2.jsonl").write_text(text)
    assert hidden_of(tmp_path) == expected


def test_hidden_is_nothing_without_messages(tmp_path):
    assert hidden_of(tmp_path) == ""
