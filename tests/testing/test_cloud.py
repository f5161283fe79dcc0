from __future__ import annotations

import json

import pytest

from qmpsnap.errors import BadArgument, InvalidTarget, TargetExists
from qmpsnap.testing.cloud import build_seed, cloud_machine, write_seed
from tests.testing.test_fat import unpack


def test_build_seed_is_a_disk_that_cloud_init_looks_for():
    label, files = unpack(
        build_seed(password="it's", hostname="vm1", keys=["ssh-ed25519 A"], commands=["id"])
    )
    assert (label, set(files)) == ("CIDATA", {"user-data", "meta-data", "network-config"})
    first, _, user = files["user-data"].decode().partition("\n")
    assert (first, json.loads(user)) == (
        "#cloud-config",
        {
            "hostname": "vm1",
            "disable_root": False,
            "chpasswd": {"expire": False, "users": [{"name": "root", "password": "it's", "type": "text"}]},
            "ssh_authorized_keys": ["ssh-ed25519 A"],
            "runcmd": ["id"],
        },
    )
    assert json.loads(files["network-config"]) == {"config": "disabled"}


def test_build_seed_leaves_out_what_is_not_asked_for():
    _, files = unpack(build_seed(network=True, more={"hostname": "other", "packages": ["jq"]}))
    assert set(files) == {"user-data", "meta-data"}
    assert json.loads(files["user-data"].partition(b"\n")[2]) == {
        "hostname": "other",
        "disable_root": False,
        "packages": ["jq"],
    }


def test_build_seed_has_another_instance_for_other_data_alone():
    def instance(password: str) -> object:
        return json.loads(unpack(build_seed(password=password))[1]["meta-data"])["instance-id"]

    assert instance("a") == instance("a") != instance("b")


@pytest.mark.parametrize(
    "wrong", [{"keys": "ssh"}, {"hostname": ""}, {"password": 1}, {"commands": [1]}, {"more": "x"}]
)
def test_build_seed_refuses_what_is_wrong(wrong):
    with pytest.raises(BadArgument):
        build_seed(**wrong)


def test_write_seed_creates_a_private_file_and_replaces_none(tmp_path):
    write_seed(tmp_path / "seed", b"data")
    assert ((tmp_path / "seed").read_bytes(), (tmp_path / "seed").stat().st_mode & 0o777) == (b"data", 0o600)
    with pytest.raises(TargetExists):
        write_seed(tmp_path / "seed", b"other")
    with pytest.raises(InvalidTarget):
        write_seed(tmp_path / "none/seed", b"data")


def test_cloud_machine_has_the_seed_read_only():
    argv = cloud_machine("/i/debian.qcow2", "/i/a,b").argv()
    assert "if=none,id=seed,format=raw,readonly=on,file=/i/a,,b" in argv
    assert "virtserialport,chardev=port0,id=port0,name=org.qemu.guest_agent.0" in argv
