"""The seed of a cloud image, read by the tools that know FAT best: util-linux, dosfstools and mtools."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from qmpsnap.testing.cloud import build_seed, write_seed

USER_DATA = (
    b"#cloud-config\n"
    b'{"hostname": "vm1", "disable_root": false, "chpasswd": {"expire": false, "users": '
    b'[{"name": "root", "password": "it\'s", "type": "text"}]}, "runcmd": ["true"], "long": "'
    + b"x" * 5000
    + b'"}\n'
)


@pytest.fixture
def seed(tmp_path):
    file = tmp_path / "seed.img"
    made = build_seed(password="it's", hostname="vm1", commands=["true"], more={"long": "x" * 5000})
    write_seed(file, made)
    return file


def read_by(program, *arguments):
    """What a tool prints; the test is skipped where it is not installed."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([path, *arguments], check=True, capture_output=True).stdout


def test_blkid_finds_the_label_and_the_type_that_cloud_init_looks_for(seed):
    printed = read_by("blkid", "-p", "-o", "export", seed).decode()
    values = dict(line.split("=", 1) for line in printed.splitlines())
    assert (values["LABEL"], values["TYPE"], values["VERSION"]) == ("CIDATA", "vfat", "FAT12")


def test_fsck_finds_nothing_wrong(seed):
    assert read_by("fsck.fat", "-n", seed).decode().splitlines()[-1].endswith(" files, 13/2847 clusters")


def test_mtools_read_the_files(seed, tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    read_by("mcopy", "-i", seed, "::*", copies)
    files = {path.name: path.read_bytes() for path in copies.iterdir()}
    assert sorted(files) == ["meta-data", "network-config", "user-data"]
    assert files["user-data"] == USER_DATA
    assert files["network-config"] == b'{"config": "disabled"}'
    assert files["meta-data"].startswith(b'{"instance-id": "qmpsnap-')
