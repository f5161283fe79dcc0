"""Command lines as people and tools write them, each with that of another QEMU, or with why there is none."""

# A row that is broken into its arguments says less than one that is long:
# ruff: noqa: E501, ISC004

from __future__ import annotations

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
        "-chardev null,id=e -chardev file,id=f,mux=on,path=/d/2-qmp,append=on -chardev null,id=g "
        "-chardev null,id=h",
    ),
    "serial ports to files": (
        "-serial file:console.log -serial file:/x/console.log -serial file:qemu.log",
        "",
        "-serial file:/d/console.log -serial file:/d/2-console.log -serial file:/d/2-qemu.log",
    ),
    "spice": (
        "-spice port=5901,addr=127.0.0.1,password=x,image-compression=off -vga qxl -chardev spicevmc,id=v,name=vdagent",
        "",
        "-spice image-compression=off,unix=on,addr=/d/spice,disable-ticketing=on -vga qxl -chardev spicevmc,id=v,name=vdagent",
    ),
    "displays": (
        "-display vnc=:1 -display spice-app -display gtk,gl=on -audiodev wav,id=a,path=/w.wav -audio wav,model=hda,path=/w.wav -object filter-dump,id=f,netdev=n,file=/x.pcap",
        "",
        "-display none -display none -display egl-headless -audiodev none,id=a -audio none,model=hda -object filter-dump,id=f,netdev=n,file=/d/x.pcap",
    ),
    "windows, a terminal, and what is nobody's": (
        "-display gtk -display sdl,gl=off -display curses -display dbus,p2p=no -display none -display egl-headless,rendernode=/r -full-screen",
        "",
        "-display none -display none -display none -display none -display none -display egl-headless,rendernode=/r",
    ),
    "Proxmox VE: qm showcmd": (
        "-id 100 -name vm,debug-threads=on -no-shutdown "
        "-chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off -mon chardev=qmp,mode=control "
        "-chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon chardev=qmp-event,mode=control "
        "-pidfile /var/run/qemu-server/100.pid -daemonize -smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults "
        "-vnc unix:/var/run/qemu-server/100.vnc,password=on -m 2048 -iscsi initiator-name=iqn.1993-08.org.debian:01:1 "
        "-drive if=none,id=drive-ide2,media=cdrom,aio=io_uring -device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2 "
        "-device virtio-scsi-pci,id=scsihw0 "
        "-drive file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring,detect-zeroes=on "
        "-device scsi-hd,bus=scsihw0.0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100 -machine type=pc+pve0",
        "scsi0",
        "-id 100 -name vm,debug-threads=on -no-shutdown "
        "-chardev socket,id=qmp,path=/d/100.qmp,server=on,wait=off "
        "-chardev null,id=qmp-event "
        "-smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults "
        "-vnc none -m 2048 -iscsi initiator-name=iqn.1993-08.org.debian:01:1 "
        "-drive if=none,id=drive-ide2,media=cdrom,aio=io_uring -device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2 "
        "-device virtio-scsi-pci,id=scsihw0 "
        "-drive file=/n0,format=qcow2,if=none,id=drive-scsi0,cache=none,aio=io_uring,detect-zeroes=on "
        "-device scsi-hd,bus=scsihw0.0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100 -machine type=pc+pve0",
    ),
    "quickemu": (
        "-name deb,process=deb -machine q35,smm=off,vmport=off -device virtio-balloon -pidfile deb/deb.pid -vga none "
        "-device virtio-vga-gl,xres=1280 -display sdl,gl=on -chardev spicevmc,id=ccid,name=smartcard "
        "-audiodev pa,id=audio0 -netdev user,hostname=deb,hostfwd=tcp::22220-:22,id=nic -device virtio-net,netdev=nic "
        "-drive if=pflash,format=raw,unit=0,file=CODE_4M.fd,readonly=on -drive if=pflash,format=raw,unit=1,file=deb/VARS.fd "
        "-drive media=cdrom,index=0,file=deb.iso -device virtio-blk-pci,drive=SystemDisk "
        "-drive id=SystemDisk,if=none,format=qcow2,file=deb/disk.qcow2 "
        "-monitor unix:deb/deb-monitor.socket,server,nowait -serial unix:deb/deb-serial.socket,server,nowait",
        "SystemDisk pflash1",
        "-name deb,process=deb -machine q35,smm=off,vmport=off -device virtio-balloon -vga none "
        "-device virtio-vga-gl,xres=1280 -display egl-headless -chardev spicevmc,id=ccid,name=smartcard "
        "-audiodev pa,id=audio0 -netdev user,hostname=deb,id=nic -device virtio-net,netdev=nic "
        "-drive if=pflash,format=raw,unit=0,file=CODE_4M.fd,readonly=on -drive file=/n1,format=qcow2,if=pflash,unit=1 "
        "-drive media=cdrom,index=0,file=deb.iso -device virtio-blk-pci,drive=SystemDisk "
        "-drive file=/n0,format=qcow2,id=SystemDisk,if=none "
        "-monitor none -serial unix:/d/deb-serial.socket,server=on,wait=off",
    ),
    "kata, without its descriptors": (
        "-machine q35,accel=kvm,nvdimm=on -m 2048M,slots=10,maxmem=8G -device virtconsole,chardev=charconsole0,id=console0 "
        "-chardev socket,id=charconsole0,path=/run/vc/vm/a/console.sock,server=on,wait=off "
        "-device nvdimm,id=nv0,memdev=mem0,unarmed=on "
        "-object memory-backend-file,id=mem0,mem-path=/opt/kata.img,size=128M,readonly=on,share=on "
        "-object rng-random,id=rng0,filename=/dev/urandom -nographic --no-reboot",
        "",
        "-machine q35,accel=kvm,nvdimm=on -m 2048M,slots=10,maxmem=8G -device virtconsole,chardev=charconsole0,id=console0 "
        "-chardev socket,id=charconsole0,path=/d/console.sock,server=on,wait=off "
        "-device nvdimm,id=nv0,memdev=mem0,unarmed=on "
        "-object memory-backend-file,id=mem0,mem-path=/opt/kata.img,size=128M,readonly=on,share=on "
        "-object rng-random,id=rng0,filename=/dev/urandom -nographic -no-reboot",
    ),
    "Packer": (
        "-machine type=pc,accel=kvm -netdev user,id=user.0,hostfwd=tcp::3213-:22 -device virtio-net,netdev=user.0 "
        "-drive file=output/x,if=virtio,cache=writeback,discard=ignore,format=qcow2 -vnc 127.0.0.1:69 -boot once=d",
        "virtio0",
        "-machine type=pc,accel=kvm -netdev user,id=user.0 -device virtio-net,netdev=user.0 "
        "-drive file=/n0,format=qcow2,if=virtio,cache=writeback,discard=ignore -vnc none -boot once=d",
    ),
    "a drive by its driver's keys": (
        "-drive driver=file,filename=a.raw,if=virtio,cache.direct=on,locking=off -drive driver=nbd,host=h,port=1,id=n,if=none -device ide-hd,drive=n",
        "virtio0 n",
        "-drive file=/n0,format=qcow2,if=virtio,cache.direct=on -drive file=/n1,format=qcow2,id=n,if=none -device ide-hd,drive=n",
    ),
    "a part of a file, and another that the guest only reads": (
        "-blockdev file,node-name=f,filename=p.raw,locking=off -blockdev raw,node-name=a,file=f,size=1048576 "
        "-blockdev raw,node-name=b,file=f,offset=1048576,read-only=on "
        "-device virtio-blk,drive=a,id=vda -device virtio-blk,drive=b,id=vdb,share-rw=on",
        "vda",
        "-blockdev file,node-name=f,filename=p.raw,locking=off "
        "-blockdev qcow2,node-name=a,file.driver=file,file.filename=/n0,file.locking=off "
        "-blockdev raw,node-name=b,file=f,offset=1048576,read-only=on "
        "-device virtio-blk,drive=a,id=vda -device virtio-blk,drive=b,id=vdb,share-rw=on",
    ),
    "two parts of a file": (
        "-blockdev file,node-name=f,filename=p.raw -blockdev raw,node-name=a,file=f,size=1048576 "
        "-blockdev raw,node-name=b,file=f,offset=1048576 "
        "-device virtio-blk,drive=a,id=vda,share-rw=on -device virtio-blk,drive=b,id=vdb,share-rw=on",
        "vda vdb",
        "-blockdev file,filename=/n1,node-name=f "
        "-blockdev qcow2,node-name=a,file.driver=file,file.filename=/n0 -blockdev qcow2,node-name=b,file=f "
        "-device virtio-blk,drive=a,id=vda,share-rw=on -device virtio-blk,drive=b,id=vdb,share-rw=on",
    ),
    "a quorum of two, and a node that no device uses": (
        "-blockdev qcow2,node-name=n,file.driver=file,file.filename=a -blockdev qcow2,node-name=m,file.driver=file,file.filename=b "
        """-blockdev '{"driver":"quorum","node-name":"q","vote-threshold":1,"children":["n","m"]}' """
        "-blockdev raw,node-name=loose,file.driver=file,file.filename=c -device virtio-blk,drive=q,id=vda",
        "vda",
        """-blockdev {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "/n0"}} """
        "-device virtio-blk,drive=q,id=vda",
    ),
    "tests of QEMU, a terminal by a name, and a directory that the guest only reads": (
        "-qtest unix:/q -qtest-log /l -serial pty:/p -serial mon:pty:/p -virtfs local,path=/s,mount_tag=s,security_model=none,readonly=on "
        "-device usb-mtp,rootdir=/s",
        "",
        "-serial pty -serial mon:pty -virtfs local,path=/s,mount_tag=s,security_model=none,readonly=on "
        "-device usb-mtp,rootdir=/s",
    ),
    "networks that others can be in": (
        "-netdev socket,id=a,mcast=230.0.0.1:4000,localaddr=127.0.0.1 -netdev bridge,id=b,br=br0 -netdev tap,id=c,script=no "
        "-net nic -net user -nic none -netdev dgram,id=d,remote.type=inet,remote.host=230.0.0.1,remote.port=4000,local.type=inet,local.host=127.0.0.1,local.port=4000 -netdev hubport,id=h,hubid=0,netdev=a",
        "",
        "-netdev socket,id=a,mcast=230.0.0.1:4000,localaddr=127.0.0.1 -netdev bridge,id=b,br=br0 -netdev tap,id=c,script=no "
        "-net nic -net user -nic none -netdev dgram,id=d,remote.type=inet,remote.host=230.0.0.1,remote.port=4000,local.type=inet,local.host=127.0.0.1,local.port=4000 -netdev hubport,id=h,hubid=0,netdev=a",
    ),
}  # fmt: skip

REFUSED = {
    "-netdev tap,id=n,ifname=tap0,script=no": "the interface 'tap0' belongs to the first QEMU",
    "-netdev tap,id=hostnet0,fd=23,vhost=on": "its descriptor belongs to the first QEMU",
    "-netdev socket,id=n,listen=:1234": "its connection has two ends",
    "-nic socket,connect=:1234": "its connection has two ends",
    "-netdev stream,id=n,addr.type=unix,addr.path=/s": "its connection has two ends",
    "-netdev dgram,id=n,remote.type=inet,remote.host=10.0.0.1,remote.port=1,local.type=inet,local.port=1": "two ends",
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
    "-fsdev local,id=f,path=/share,security_model=none": "write to the same directory",
    "-virtfs local,path=/share,mount_tag=s,security_model=mapped-xattr": "write to the same directory",
    "-device usb-mtp,rootdir=/share,readonly=off": "write to the same directory",
    "-object memory-backend-file,id=nv,mem-path=/nv,size=1G,share=on": "write to the same file",
    "-device '{broken'": "not JSON",
    "-device '{}x'": "not JSON",
    "-drive file=a,index=x": "not the number",
}
