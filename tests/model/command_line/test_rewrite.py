"""Command lines as people write them, and how they are rewritten for another QEMU of the same machine."""

# A row that is broken into its arguments says less than one that is long:
# ruff: noqa: E501, ISC004

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

MEMORY = GuestMemory(file="/t/memory", size_bytes=1 << 30, share=False)
D = "/d"


def rewritten(line: str, disks: dict[str, str] | None = None, **start: Any) -> str:
    """The command line as text, its program left out."""
    argv = for_start(["qemu-system-x86_64", *shlex.split(line)], Start(disks=disks or {}, **start))
    return shlex.join(argv[1:]).replace("'", "")


# Where it is from, the line, the disks of the start, and the new line. The overlay of a disk is called by its name.
LINES = {
    "README: one image": ("-m 1G disk.img", "ide0-hd0", "-m 1G -drive file=/n0,format=qcow2,index=0,media=disk"),
    "Debian wiki: install from a CD": (
        "-hda debian.qcow2 -cdrom netinst.iso -boot d -m 512",
        "ide0-hd0",
        "-drive file=/n0,format=qcow2,index=0,media=disk -cdrom netinst.iso -boot d -m 512",
    ),
    "two hard disks of a pc": (
        "-M pc -hda a -hdb b,c -hdd d",
        "ide0-hd1 ide1-hd1 ide0-hd0",
        "-M pc -drive file=/n2,format=qcow2,index=0,media=disk -drive file=/n0,format=qcow2,index=1,media=disk "
        "-drive file=/n1,format=qcow2,index=3,media=disk",
    ),
    "the same on q35, whose buses have one disk": (
        "-M q35 -hda a -hdb b",
        "ide1-hd0 ide0-hd0",
        "-M q35 -drive file=/n1,format=qcow2,index=0,media=disk -drive file=/n0,format=qcow2,index=1,media=disk",
    ),
    "Arch wiki: virtio": (
        "-enable-kvm -cpu host -drive file=d.raw,format=raw,if=virtio,cache=none,aio=native -nic user,model=virtio",
        "virtio0",
        "-enable-kvm -cpu host -drive file=/n0,format=qcow2,if=virtio,cache=none,aio=native -nic user,model=virtio",
    ),
    "drives in a row, one of them with an id": (
        "-drive file=a,readonly=on -drive file=b -drive if=virtio,file=c,snapshot=on -drive if=virtio,id=x,file=d -drive if=virtio,file=e",
        "ide0-hd1 x virtio2",
        "-drive file=a,readonly=on -drive file=/n0,format=qcow2 -drive if=virtio,file=c,snapshot=on "
        "-drive file=/n1,format=qcow2,if=virtio,id=x -drive file=/n2,format=qcow2,if=virtio",
    ),
    "an index that is given, and a CD in between": (
        "-M q35 -drive file=a,read-only=on -drive file=b,media=cdrom -drive if=virtio,index=3,file=c -drive if=virtio,file=d",
        "virtio3 virtio0",
        "-M q35 -drive file=a,read-only=on -drive file=b,media=cdrom -drive file=/n0,format=qcow2,if=virtio,index=3 "
        "-drive file=/n1,format=qcow2,if=virtio",
    ),
    "a comma in a path, options of a raw image": (
        "-drive if=none,id=d0,file=/a,,b.img,driver=raw,offset=512,size=1M,discard=unmap -device ide-hd,drive=d0",
        "d0",
        "-drive file=/n0,format=qcow2,if=none,id=d0,discard=unmap -device ide-hd,drive=d0",
    ),
    "a drive by keys of its file": (
        "-drive if=virtio,file.driver=nbd,file.path=/s,driver=qcow2,backing.driver=raw,node-name=n",
        "virtio0",
        "-drive file=/n0,format=qcow2,if=virtio,node-name=n",
    ),
    "os-autoinst: a drive and its device, ids on both": (
        "-drive id=hd0-overlay0-drive,file=raid/hd0-overlay0,format=qcow2,if=none,cache=unsafe "
        "-device virtio-blk,id=hd0-device,drive=hd0-overlay0-drive,bootindex=0,serial=hd0 "
        "-chardev ringbuf,id=serial0,logfile=serial0,logappend=on -serial chardev:serial0 "
        "-qmp unix:qmp_socket,server=on,wait=off -monitor telnet:127.0.0.1:20012,server,nowait -vnc :90,share=force-shared",
        "hd0-device",
        "-drive file=/n0,format=qcow2,id=hd0-overlay0-drive,if=none,cache=unsafe "
        "-device virtio-blk,id=hd0-device,drive=hd0-overlay0-drive,bootindex=0,serial=hd0 "
        "-chardev ringbuf,id=serial0,logfile=/d/serial0 -serial chardev:serial0 "
        "-monitor none -vnc none",
    ),
    "the same without an id of the device": (
        "-drive id=hd0,file=x,if=none -device virtio-blk,drive=hd0",
        "hd0",
        "-drive file=/n0,format=qcow2,id=hd0,if=none -device virtio-blk,drive=hd0",
    ),
    "lima": (
        "-drive file=/l/diffdisk,if=virtio,discard=on -drive id=cdrom0,if=none,format=raw,readonly=on,file=/l/cidata.iso "
        "-device virtio-scsi-pci,id=scsi0 -device scsi-cd,bus=scsi0.0,drive=cdrom0 "
        "-netdev user,id=net0,net=192.168.5.0/24,hostfwd=tcp:127.0.0.1:60022-:22 "
        "-device virtio-net-pci,netdev=net0,mac=52:55:55:12:34:56 -device virtio-rng-pci -display none "
        "-chardev socket,id=char-serial,path=/l/serial.sock,server=on,wait=off,logfile=/l/serial.log -serial chardev:char-serial "
        "-chardev socket,id=char-qmp,path=/l/qmp.sock,server=on,wait=off -qmp chardev:char-qmp "
        "-name lima-default -pidfile /l/qemu.pid",
        "virtio0",
        "-drive file=/n0,format=qcow2,if=virtio,discard=on -drive id=cdrom0,if=none,format=raw,readonly=on,file=/l/cidata.iso "
        "-device virtio-scsi-pci,id=scsi0 -device scsi-cd,bus=scsi0.0,drive=cdrom0 "
        "-netdev user,id=net0,net=192.168.5.0/24 "
        "-device virtio-net-pci,netdev=net0,mac=52:55:55:12:34:56 -device virtio-rng-pci -display none "
        "-chardev socket,id=char-serial,logfile=/d/serial.log,path=/d/serial.sock,server=on,wait=off -serial chardev:char-serial "
        "-chardev socket,id=char-qmp,path=/d/qmp.sock,server=on,wait=off "
        "-name lima-default",
    ),
    "two forwarded ports and a search list": (
        "-nic user,hostfwd=tcp::2222-:22,hostfwd=tcp::8080-:80,dnssearch=a,dnssearch=b",
        "",
        "-nic user,dnssearch=a,dnssearch=b",
    ),
    "blockdev by keys": (
        "-blockdev driver=qcow2,node-name=root,file.driver=file,file.filename=a.qcow2,file.aio=io_uring,discard=unmap "
        "-device virtio-blk-pci,drive=root,id=vda",
        "vda",
        "-blockdev qcow2,node-name=root,discard=unmap,file.driver=file,file.filename=/n0,file.aio=io_uring "
        "-device virtio-blk-pci,drive=root,id=vda",
    ),
    "blockdev, a protocol alone": (
        "-blockdev host_device,node-name=n,filename=/dev/sdb,cache.direct=on -device scsi-hd,drive=n,id=s",
        "s",
        "-blockdev qcow2,node-name=n,cache.direct=on,file.driver=file,file.filename=/n0 -device scsi-hd,drive=n,id=s",
    ),
    "blockdev beneath a throttle, and a raw image with an offset": (
        "-object throttle-group,id=tg -blockdev file,node-name=f,filename=a.raw,locking=off "
        "-blockdev raw,node-name=r,file=f,offset=0,size=512 -blockdev throttle,node-name=t,throttle-group=tg,file=r "
        "-device virtio-blk-pci,drive=t,id=vda",
        "vda",
        "-object throttle-group,id=tg -blockdev file,filename=/n0,node-name=f,locking=off "
        "-blockdev qcow2,node-name=r,file=f -blockdev throttle,node-name=t,throttle-group=tg,file=r "
        "-device virtio-blk-pci,drive=t,id=vda",
    ),
    "devices without an id are numbered: plain ones, if=virtio, JSON": (
        "-device virtio-rng-pci -drive if=virtio,file=v,readonly=on -blockdev raw,node-name=a,file.driver=file,file.filename=a "
        "-device virtio-blk-pci,drive=a -blockdev raw,node-name=b,file.driver=file,file.filename=b "
        """-device '{"driver":"virtio-blk-pci","drive":"b"}'""",
        "device[1] device[3]",
        "-device virtio-rng-pci -drive if=virtio,file=v,readonly=on -blockdev qcow2,node-name=a,file.driver=file,file.filename=/n0 "
        "-device virtio-blk-pci,drive=a -blockdev qcow2,node-name=b,file.driver=file,file.filename=/n1 "
        """-device {"driver":"virtio-blk-pci","drive":"b"}""",
    ),
    "UEFI by -drive": (
        "-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd -drive if=pflash,format=raw,file=VARS.fd",
        "pflash1",
        "-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd -drive file=/n0,format=qcow2,if=pflash",
    ),
    "UEFI by nodes": (
        "-machine q35,pflash0=code,pflash1=vars -blockdev raw,node-name=code,read-only=on,file.driver=file,file.filename=c "
        "-blockdev raw,node-name=vars,file.driver=file,file.filename=v",
        "system.flash1",
        "-machine q35,pflash0=code,pflash1=vars -blockdev raw,node-name=code,read-only=on,file.driver=file,file.filename=c "
        "-blockdev qcow2,node-name=vars,file.driver=file,file.filename=/n0",
    ),
    "a console on the terminal": ("-nographic -serial mon:stdio -append -S", "", "-nographic -serial mon:stdio -append -S"),
    "ports that the guest keeps, in order": (
        "-serial tcp::4444,server -serial file:/var/log/vm.log -serial unix:/run/s,server,nowait -serial /dev/ttyS0 "
        "-parallel none -debugcon file:/var/log/vm.log -serial pty",
        "",
        "-serial null -serial file:/d/vm.log -serial unix:/d/s,server=on,wait=off -serial null "
        "-parallel none -debugcon file:/d/2-vm.log -serial pty",
    ),
    "debugging": (
        "-s -S -gdb tcp::9000 -D /tmp/log -d int -trace enable=virtio*,file=/tmp/trace -pidfile /run/p -daemonize",
        "",
        "-S -D /d/log -d int -trace virtio*,file=/d/trace",
    ),
    "a state that was waited for, and a tag that was loaded": ("-incoming tcp:0:4444 -loadvm snap1 -m 64", "", "-m 64"),
    "a monitor of QEMU 11": (
        """-chardev stdio,id=c,mux=on -object monitor-hmp,id=m,chardev=c -mon c -object '{"qom-type":"iothread","id":"i"}'""",
        "",
        """-chardev stdio,id=c,mux=on -object {"qom-type":"iothread","id":"i"}""",
    ),
    "chardevs of all kinds": (
        "-chardev socket,id=a,host=0,port=1,server=on -chardev udp,id=b,port=3 -chardev pipe,id=c,path=/p -chardev pty,id=d,path=/l "
        "-chardev socket,id=e,path=/peer -chardev file,id=f,path=/x/qmp,mux=on -chardev socket,id=g,fd=7 -chardev null,id=h",
        "",
        "-chardev null,id=a -chardev null,id=b -chardev null,id=c -chardev pty,id=d "
        "-chardev null,id=e -chardev file,id=f,mux=on,path=/d/2-qmp -chardev null,id=g -chardev null,id=h",
    ),
    "spice": (
        "-spice port=5901,addr=127.0.0.1,password=x,image-compression=off -vga qxl -chardev spicevmc,id=v,name=vdagent",
        "",
        "-spice image-compression=off,unix=on,addr=/d/spice,disable-ticketing=on -vga qxl -chardev spicevmc,id=v,name=vdagent",
    ),
    "displays": (
        "-display vnc=:1 -display spice-app -display gtk,gl=on -audiodev wav,id=a,path=/w.wav -audio wav,model=hda,path=/w.wav -object filter-dump,id=f,netdev=n,file=/x.pcap",
        "",
        "-display none -display none -display gtk,gl=on -audiodev none,id=a -audio none,model=hda -object filter-dump,id=f,netdev=n,file=/d/x.pcap",
    ),
    "networks that others can be in": (
        "-netdev socket,id=a,mcast=230.0.0.1:4000,localaddr=127.0.0.1 -netdev bridge,id=b,br=br0 -netdev tap,id=c,script=no "
        "-net nic -net user -nic none -netdev dgram,id=d,remote.type=inet,remote.host=230.0.0.1,remote.port=4000",
        "",
        "-netdev socket,id=a,mcast=230.0.0.1:4000,localaddr=127.0.0.1 -netdev bridge,id=b,br=br0 -netdev tap,id=c,script=no "
        "-net nic -net user -nic none -netdev dgram,id=d,remote.type=inet,remote.host=230.0.0.1,remote.port=4000",
    ),
}  # fmt: skip


@each(("line", "disks", "expected"), LINES.values())
def test_line_is_rewritten(line: str, disks: str, expected: str) -> None:
    images = {disk: f"/n{number}" for number, disk in enumerate(disks.split())}
    assert rewritten(line, images, directory=D) == expected


REFUSED = {
    "-netdev tap,id=n,ifname=tap0,script=no": "the interface 'tap0' belongs to the first QEMU",
    "-netdev tap,id=hostnet0,fd=23,vhost=on": "its descriptor belongs to the first QEMU",
    "-netdev socket,id=n,listen=:1234": "its connection has two ends",
    "-nic socket,connect=:1234": "its connection has two ends",
    "-netdev stream,id=n,addr.type=unix,addr.path=/s": "its connection has two ends",
    "-netdev vhost-user,id=n,chardev=c": "one machine",
    """-netdev '{"type":"tap","id":"n","ifname":"t"}'""": "the interface 't'",
    "-device vfio-pci,host=01:00.0": "a device of the host",
    "-device usb-host,vendorid=1": "a device of the host",
    "-device vhost-user-fs-pci,chardev=c,tag=x": "one machine",
    "-device vhost-vsock-pci,guest-cid=3": "its address",
    "-device virtio-net-pci,netdev=n,vhostfd=3": "vhostfd",
    "-device ivshmem-plain,memdev=m": "shared",
    "-object rng-egd,id=r,chardev=c": "one machine",
    "-tpmdev emulator,id=t,chardev=c": "a TPM",
    "-readconfig vm.cfg": "not known here",
    "-add-fd fd=3,set=2": "descriptor",
    "-set drive.d0.file=x": "different",
    "-icount shift=auto,rr=record,rrfile=f": "record",
    "-fsdev proxy,id=f,sock_fd=4": "one machine",
    "-object memory-backend-file,id=nv,mem-path=/nv,size=1G,share=on": "write to the same file",
    "-device '{broken'": "not JSON",
    "-device '{}x'": "not JSON",
    "-drive file=a,index=x": "not the number",
}


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


WRITTEN = {
    "-hda a -hdb b": "ide0-hd1",
    "-drive if=pflash,file=vars -drive if=virtio,file=b": "pflash0",
    "-drive if=virtio,file=b,readonly=off -snapshot -no-reboot": "",
    "-drive if=virtio,file=b,file.locking=off": "virtio0",
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
    ]  # fmt: skip


def test_base_that_another_disk_reads_stays():
    line = (
        "-blockdev qcow2,node-name=base,read-only=on,file.driver=file,file.filename=b "
        "-blockdev qcow2,node-name=a,backing=base,file.driver=file,file.filename=a -device ide-hd,drive=a,id=a "
        "-device ide-hd,drive=base,id=c"
    )
    assert "node-name=base" in rewritten(line, {"a": "/n"})
    assert "backing" not in rewritten(line, {"a": "/n"})


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
    for private in (
        MAIN.replace("share=on", "share=off"),
        "-object memory-backend-memfd,id=m,size=1G,share=on",
    ):
        assert rewritten(private) == private


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
    assert for_start([*program, "-cdrom", "x", "-pidfile", "p"], Start()) == [*program, "-cdrom", "x"]


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
