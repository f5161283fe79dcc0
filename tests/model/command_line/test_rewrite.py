"""Command lines as people write them, and how they are rewritten for another QEMU of the same machine."""

# A row that is broken into its arguments says less than one that is long:
# ruff: noqa: E501

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.errors import Unsupported
from qmpsnap.model.command_line.rewrite import for_start
from qmpsnap.model.start import GuestMemory, Start
from tests.each import each
from tests.model.command_line.real_lines import LINES, REFUSED

MEMORY = GuestMemory(file="/t/memory", size_bytes=1 << 30, share=False)
D = "/d"


def rewritten(line: str, disks: dict[str, str] | None = None, **start: Any) -> str:
    """The command line as text, without its program and the display of a line that names none."""
    argv = for_start(["qemu-system-x86_64", *shlex.split(line)], Start(disks=disks or {}, **start))
    text = shlex.join(argv[1:]).replace("'", "")
    return text if "-display" in line else text.replace(" -display none", "").removeprefix("-display none")


@each(("line", "disks", "expected"), LINES.values())
def test_line_is_rewritten(line: str, disks: str, expected: str) -> None:
    images = {disk: f"/n{number}" for number, disk in enumerate(disks.split())}
    assert rewritten(line, images, directory=D) == expected


@each(("line", "why"), REFUSED.items())
def test_argument_for_one_process_is_refused_by_its_name(line: str, why: str) -> None:
    with pytest.raises(Unsupported, match="another QEMU cannot be started with") as refused:
        rewritten(line, {"vda": "/n"} if "-drive" in line else None, directory=D)
    assert why in refused.value.message
    assert refused.value.feature == " ".join(shlex.split(line))
    assert "launcher=" in refused.value.hint


@pytest.mark.parametrize("line", ["-hda a", "-drive if=none,id=d0,file=a -device ide-hd,drive=d0,id=vda", ""])
def test_disk_without_an_argument_is_refused(line: str) -> None:
    with pytest.raises(Unsupported, match="recognised as the disk 'd0'") as refused:
        rewritten(line, {"d0": "/n"})
    assert refused.value.feature == "d0"
    assert refused.value.hint == (
        "a device on the command line needs this id; for a disk plugged in later, give launcher="
    )


@pytest.mark.parametrize("disk", ["device[0]", "peripheral/x/y"])
def test_disk_of_a_device_without_an_id_needs_one(disk: str) -> None:
    with pytest.raises(Unsupported, match="recognised as the disk") as refused:
        rewritten("-hda a", {disk: "/n"})
    assert refused.value.hint == "give its device an id, or give launcher="


def test_disk_that_a_configuration_file_may_have_is_not_called_missing() -> None:
    with pytest.raises(Unsupported, match=r"cannot be started with '-readconfig /vm\.cfg'") as refused:
        rewritten("-readconfig /vm.cfg", {"d0": "/n"})
    assert "launcher=" in refused.value.hint


WRITTEN = {
    "-hda a -hdb b": "ide0-hd1",
    "-drive if=pflash,file=vars -drive if=virtio,file=b": "pflash0",
    "-drive if=virtio,file=b,readonly=off -snapshot -no-reboot": "",
    "-drive if=virtio,file=b,file.locking=off": "virtio0",
    "-drive if=virtio,file=b,snapshot=off -snapshot": "virtio0",
    "-drive if=virtio,driver=file,filename=b": "virtio0",
    "-drive if=virtio,driver=nbd,host=h": "virtio0",
    "-blockdev raw,node-name=a,file.driver=file,file.filename=a -device ide-hd,drive=a,id=d0": "d0",
    "-blockdev raw,node-name=a,read-only=on,file.driver=file,file.filename=a -device ide-hd,drive=a,id=d0": "",
    "-blockdev raw,node-name=a,file.driver=file,file.filename=a -device scsi-cd,drive=a,id=d0": "",
    """-blockdev '{"driver":"raw","node-name":"a","read-only":true,"file":"f"}' -device ide-hd,drive=a,id=d0""": "",
    "-drive if=none,id=empty -device scsi-cd,drive=empty": "",
}


@each(("line", "disk"), WRITTEN.items())
def test_image_that_both_qemus_would_write_to_is_refused(line: str, disk: str) -> None:
    if not disk:
        assert rewritten(line) == line.replace("'", "")
        return
    other = {"ide0-hd0": "/n"} if "-hda" in line else {}
    with pytest.raises(Unsupported, match="two QEMUs would write") as refused:
        rewritten(line, other)
    assert refused.value.feature == disk
    assert refused.value.hint.endswith("can have readonly=on or snapshot=on")


@pytest.mark.parametrize(
    "line",
    ["-device " + '{"a":' * 300 + "1" + "}" * 300, "-blockdev " + "a." * 3000 + "b=1"],
    ids=["JSON", "keys"],
)
def test_value_that_is_nested_too_deeply_is_refused(line: str) -> None:
    with pytest.raises(Unsupported, match="nested too deeply"):
        for_start(["qemu-system-x86_64", *line.split(" ", 1)], Start(disks={"vda": "/n"}))


def test_libvirts_chain_is_replaced_whole():
    """As `virsh domxml-to-native` prints it: storage and format apart, and the base beneath."""
    nodes = [
        {"driver": "file", "filename": "/base.qcow2", "node-name": "libvirt-2-storage", "auto-read-only": True, "discard": "unmap"},
        {"node-name": "libvirt-2-format", "read-only": True, "driver": "qcow2", "file": "libvirt-2-storage", "backing": None},
        {"driver": "file", "filename": "/top.qcow2", "node-name": "libvirt-1-storage", "auto-read-only": True, "discard": "unmap"},
        {"node-name": "libvirt-1-format", "read-only": False, "driver": "qcow2", "file": "libvirt-1-storage", "backing": "libvirt-2-format"},
    ]  # fmt: skip
    device = {"driver": "virtio-blk-pci", "bus": "pci.4", "drive": "libvirt-1-format", "id": "virtio-disk0"}
    argv = ["/usr/bin/qemu-system-x86_64"]
    for node in nodes:
        argv += ["-blockdev", json.dumps(node)]
    argv += ["-device", json.dumps(device)]
    assert [word if word[0] != "{" else json.loads(word) for word in for_start(argv, Start(disks={"virtio-disk0": "/n"}))] == [
        "/usr/bin/qemu-system-x86_64",
        "-blockdev",
        {"driver": "file", "filename": "/n", "node-name": "libvirt-1-storage", "auto-read-only": True, "discard": "unmap"},
        "-blockdev",
        {"driver": "qcow2", "node-name": "libvirt-1-format", "read-only": False, "file": "libvirt-1-storage"},
        "-device",
        device,
        "-display",
        "none",
    ]  # fmt: skip


ENCRYPT = {"format": "luks", "key-secret": "s"}
BASE = {"driver": "qcow2", "encrypt": ENCRYPT, "file": {"driver": "file", "filename": "/b,1"}}
IMAGE = {"driver": "file", "filename": "/n"}
OPENED = {
    "encrypted": {"driver": "qcow2", "encrypt": ENCRYPT, "file": IMAGE, "backing": BASE},
    "plain": {"driver": "qcow2", "file": IMAGE, "backing": BASE},
}


@pytest.mark.parametrize("of", OPENED)
def test_image_with_an_encrypted_layer_is_opened_as_the_start_says(of: str) -> None:
    start = Start(disks={"vda": "/n"}, nodes={"vda": OPENED[of]})
    line = "-drive file=/a,format=luks,if=none,id=d,cache=none,key-secret=old,encrypt.key-secret=old -device ide-hd,drive=d,id=vda"
    argv = for_start(["qemu-system-x86_64", *line.split()], start)
    keys = [word.replace("\0", ",") for word in argv[2].replace(",,", "\0").split(",")]
    assert keys == [f"file=json:{json.dumps(OPENED[of])}", "if=none", "id=d", "cache=none"]
    nodes = [
        {"node-name": "base", "driver": "qcow2", "encrypt": ENCRYPT, "file": {"driver": "file", "filename": "/b,1"}},
        {"node-name": "top", "driver": "qcow2", "discard": "unmap", "encrypt": {"format": "luks", "key-secret": "old"}, "backing": "base", "file": {"driver": "file", "filename": "/a", "aio": "io_uring"}},
    ]  # fmt: skip
    line = " ".join(f"-blockdev '{json.dumps(node)}'" for node in nodes) + " -device ide-hd,drive=top,id=vda"
    argv = for_start(["qemu-system-x86_64", *shlex.split(line)], start)
    opened = {**OPENED[of], "file": {**IMAGE, "aio": "io_uring"}, "node-name": "top", "discard": "unmap"}
    assert [json.loads(word) for word in argv if word[0] == "{"] == [opened]
    dotted = "-blockdev qcow2,node-name=top,encrypt.format=luks,encrypt.key-secret=old,file.driver=file,file.filename=/a"
    argv = for_start(["qemu-system-x86_64", *dotted.split(), "-device", "ide-hd,drive=top,id=vda"], start)
    keys = [word.replace("\0", ",") for word in argv[2].replace(",,", "\0").split(",")]
    below = ["backing.driver=qcow2", "backing.encrypt.format=luks", "backing.encrypt.key-secret=s"]
    below += ["backing.file.driver=file", "backing.file.filename=/b,1"]
    own = ["encrypt.format=luks", "encrypt.key-secret=s"] if of == "encrypted" else []
    assert sorted(keys) == sorted(
        ["qcow2", "node-name=top", "file.driver=file", "file.filename=/n", *own, *below]
    )


def test_two_disks_with_one_image_are_refused() -> None:
    line = (
        "-blockdev raw,node-name=r,file.driver=file,file.filename=a -blockdev throttle,node-name=t,throttle-group=g,file=r "
        "-device virtio-blk,drive=r,id=vda,share-rw=on -device virtio-blk,drive=t,id=vdb,share-rw=on"
    )
    with pytest.raises(Unsupported, match="another disk has the same image as the node 't'"):
        rewritten(line, {"vda": "/n0", "vdb": "/n1"})


@each(
    ("line", "display"),
    [
        ("-m 1", "-m 1 -display none"),
        ("-m 1 -vnc :1", "-m 1 -vnc none -display none"),
        ("-nographic", "-nographic"),
    ],
)
def test_no_window_opens(line: str, display: str) -> None:
    assert for_start(["qemu-system-x86_64", *line.split()], Start())[1:] == display.split()


def test_base_that_another_disk_reads_stays():
    line = (
        "-blockdev qcow2,node-name=base,read-only=on,file.driver=file,file.filename=b "
        "-blockdev qcow2,node-name=a,backing=base,file.driver=file,file.filename=a -device ide-hd,drive=a,id=a "
        "-device ide-hd,drive=base,id=c"
    )
    assert "node-name=base" in rewritten(line, {"a": "/n"})
    assert "backing" not in rewritten(line, {"a": "/n"})


@each(
    "line",
    [
        "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:60022-:22 -device e1000,netdev=net0",
        "-nic user,hostfwd=tcp::2222-:22,hostfwd=tcp::8080-:80",
        "-netdev tap,id=n,ifname=tap0,script=no -device virtio-net-pci,netdev=n",
        "-netdev socket,id=n,connect=127.0.0.1:1234 -device virtio-net-pci,netdev=n",
        "-netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n",
        "-netdev passt,id=n,tcp-ports.0.str=8080:80 -device virtio-net-pci,netdev=n",
    ],
)
def test_qemu_that_is_alone_keeps_the_network(line: str) -> None:
    assert rewritten(line, alone=True) == line
    with pytest.raises(Unsupported, match="its descriptor belongs to the first QEMU"):
        rewritten("-netdev tap,id=n,fd=3", alone=True)


MAIN = "-machine q35,memory-backend=ram -object memory-backend-file,id=ram,size=1G,mem-path=/huge,share=on"


def test_memory_is_the_starts():
    new = json.dumps(dict(MEMORY.properties)).replace('"pc.ram"', '"ram"')
    assert rewritten(MAIN, memory=MEMORY, incoming=True, monitors=("/m",)) == (
        f"-machine q35,memory-backend=ram -object {new} -S -incoming defer -qmp unix:/m,server=on,wait=off"
    )
    start = Start(memory=MEMORY)
    appended = shlex.join(start.arguments).replace("'", "")
    assert rewritten("-m 1G -mem-path /huge -mem-prealloc -S", memory=MEMORY) == f"-m 1G -S {appended}"
    with pytest.raises(Unsupported, match="several objects"):
        rewritten("-object memory-backend-ram,id=m0,size=1G -numa node,memdev=m0", memory=MEMORY)


def test_memory_that_is_shared_with_a_guest_is_not_shared_with_its_copy():
    assert rewritten(MAIN) == (
        "-machine q35,memory-backend=ram -object memory-backend-memfd,id=ram,size=1G,share=on"
    )
    named = MAIN.replace("size=1G", "x-use-canonical-path-for-ramblock-id=off,size=1G")
    assert rewritten(named) == (
        "-machine q35,memory-backend=ram -object memory-backend-memfd,id=ram,"
        "x-use-canonical-path-for-ramblock-id=off,size=1G,share=on"
    )
    for private in (
        MAIN.replace("share=on", "share=off"),
        "-object memory-backend-memfd,id=m,size=1G,share=on",
    ):
        assert rewritten(private) == private


OTHER_MEMORY = {
    "memory-backend-memfd,id=e,size=1M,share=on": "memory-backend-memfd,id=e,size=1M,share=off",
    "memory-backend-memfd,id=e,size=1M": "memory-backend-memfd,id=e,size=1M,share=off",
    "memory-backend-ram,share=on,id=e,size=1M": "memory-backend-ram,id=e,size=1M,share=off",
    "memory-backend-ram,id=e,size=1M": "memory-backend-ram,id=e,size=1M",
    "memory-backend-memfd,id=e,size=1M,share=off": "memory-backend-memfd,id=e,size=1M,share=off",
    "memory-backend-file,id=e,size=1M,mem-path=/e,share=on,readonly=on": (
        "memory-backend-file,id=e,size=1M,mem-path=/e,share=on,readonly=on"
    ),
}


@each(("given", "private"), OTHER_MEMORY.items())
def test_other_memory_is_private_beside_that_of_the_start(given: str, private: str):
    appended = shlex.join(Start(memory=MEMORY).arguments).replace("'", "")
    assert rewritten(f"-object {given}", memory=MEMORY) == f"-object {private} {appended}"
    assert rewritten(f"-object {given}") == f"-object {given}"


def test_without_a_directory_sockets_and_logs_lead_nowhere():
    assert rewritten(
        "-serial file:/log -chardev socket,id=c,path=/s,server=on -chardev stdio,id=d,logfile=/l "
        "-D /log -trace file=/t -object filter-dump,id=f,netdev=n,file=/p -debugcon unix:/s,server"
    ) == "-serial null -chardev null,id=c -chardev stdio,id=d -debugcon null"  # fmt: skip
    with pytest.raises(Unsupported, match="spice"):
        rewritten("-spice port=5900")


def test_socket_whose_path_would_be_too_long_leads_nowhere():
    assert (
        rewritten("-chardev socket,id=c,path=/s,server=on", directory="/" + "d" * 110) == "-chardev null,id=c"
    )


@each(
    "program",
    [
        ["/opt/q/bin/qemu-system-aarch64"],
        ["ip", "netns", "exec", "n", "/usr/bin/qemu-kvm"],
        ["./vm.sh"],
        ["kvm"],
    ],
)
def test_what_qemu_is_started_by_stays(program: list[str]) -> None:
    assert for_start([*program, "-cdrom", "x", "-pidfile", "p"], Start()) == [
        *program,
        "-cdrom",
        "x",
        "-display",
        "none",
    ]


def test_two_dashes_are_as_good_as_one():
    assert rewritten("--pidfile p --hda a --snapshot", {"ide0-hd0": "/n"}) == (
        "-drive file=/n,format=qcow2,index=0,media=disk -snapshot"
    )


WORDS = st.sampled_from(
    [word for line, _, _ in LINES.values() for word in shlex.split(line)]
    + [word for line in REFUSED for word in shlex.split(line)]
) | st.text(alphabet='-=,.{}[]":a0\0 ', max_size=12)


@given(
    words=st.lists(WORDS, max_size=12),
    directory=st.sampled_from(["", D]),
    memory=st.sampled_from([None, MEMORY]),
)
def test_any_words_are_rewritten_or_refused(
    words: list[str], directory: str, memory: GuestMemory | None
) -> None:
    start = Start(directory=directory, memory=memory)
    with suppress(Unsupported):
        for_start(["qemu-system-x86_64", *words], start)
    with suppress(Unsupported):
        for_start(["qemu-system-x86_64", *words], Start(disks={"vda": "/n", "virtio0": "/m"}))
