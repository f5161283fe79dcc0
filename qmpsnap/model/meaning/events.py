"""QEMU's events. QAPI: the events of QEMU 7.2, 10.0 and 11.1 together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.model.meaning.entry import Said

_UNPLUG = "Unplug the device in the guest first; a guest without a driver for hot-unplug cannot do it."

EVENTS: Mapping[str, Said] = MappingProxyType(
    {
        "STOP": Said("The guest was paused.", "`qmpsnap status` says why."),
        "RESUME": Said("The guest runs again."),
        "SHUTDOWN": Said(
            "QEMU is about to end, or the guest has shut down under -no-shutdown. `guest` says whether the "
            "guest asked for it, `reason` why."
        ),
        "POWERDOWN": Said("The guest was asked to shut down, as by its power button; it may ignore that."),
        "RESET": Said("The machine was reset. `guest` says whether the guest asked for it."),
        "SUSPEND": Said("The guest has suspended itself to RAM.", "`qmpsnap qmp system_wakeup` wakes it."),
        "SUSPEND_DISK": Said("The guest has suspended itself to disk; a SHUTDOWN follows."),
        "WAKEUP": Said("The guest has woken from suspend."),
        "WATCHDOG": Said("The guest's watchdog has expired. `action` says what QEMU does about it."),
        "GUEST_PANICKED": Said(
            "The guest's kernel has panicked. `action` says what QEMU does: pause, poweroff or run.",
            "See the run state guest-panicked.",
        ),
        "GUEST_CRASHLOADED": Said("The guest's kernel has panicked, and starts its crash kernel."),
        "GUEST_PVSHUTDOWN": Said("The guest has shut down, and told so through pvpanic."),
        "MEMORY_FAILURE": Said(
            "The host found memory that is damaged. `recipient` says whether the guest or QEMU uses it.",
            "Check the host's memory. Do not trust data that the guest wrote since.",
        ),
        "JOB_STATUS_CHANGE": Said(
            "A job has another state. `id` names the job, `status` the state.",
            "`qmpsnap explain STATE` says what the state means; `qmpsnap jobs` lists the jobs.",
        ),
        "BLOCK_JOB_READY": Said(
            "A mirror, or a commit of the active layer, is ready.", "See the job state ready."
        ),
        "BLOCK_JOB_PENDING": Said("A job waits to be finalized.", "See the job state pending."),
        "BLOCK_JOB_COMPLETED": Said(
            "A job on a disk has ended: well, or with the error that `error` gives. A commit or mirror has "
            "pivoted only if it was completed, so this event alone does not tell which file the disk "
            "writes to.",
            "`qmpsnap chain` shows the chain.",
        ),
        "BLOCK_JOB_CANCELLED": Said(
            "A job was cancelled. A mirror that was ready has left a complete copy; the disk has not moved."
        ),
        "BLOCK_JOB_ERROR": Said(
            "A job met an I/O error. `operation` says whether it was a read or a write, `action` what the "
            "job does: report (it fails), ignore, or stop (it pauses).",
            "If it is paused: remove the cause, then `qmpsnap job resume ID`.",
        ),
        "BLOCK_IO_ERROR": Said(
            "A read or write of the guest failed on the host. `node-name` says where, `reason` why, "
            "`nospace` whether the host's disk is full; `action` says what QEMU does: report (the guest "
            "sees it), ignore, or stop (the guest is paused).",
            "If the guest is paused: see the run state io-error.",
        ),
        "BLOCK_IMAGE_CORRUPTED": Said(
            "QEMU found a qcow2 image that contradicts itself. If `fatal` is true the image is closed for "
            "I/O, and marked as corrupt.",
            "Shut the machine down, copy the image, and run `qemu-img check` on it. Look for a second "
            "writer.",
        ),
        "BLOCK_WRITE_THRESHOLD": Said(
            "The guest has written past the mark of `block-set-write-threshold`. It is told once.",
            "Enlarge the volume, then set the next mark.",
        ),
        "BLOCK_EXPORT_DELETED": Said("An export of a node (NBD, FUSE, vhost-user) is gone."),
        "QUORUM_FAILURE": Said("The children of a quorum do not agree, so a read or write failed."),
        "QUORUM_REPORT_BAD": Said("One child of a quorum gave other data than the rest, or an error."),
        "DEVICE_DELETED": Said("The guest has released a device, and QEMU has removed it."),
        "DEVICE_UNPLUG_GUEST_ERROR": Said("The guest refused to release a device.", _UNPLUG),
        "MEM_UNPLUG_ERROR": Said("The guest refused to release a memory device (QEMU 7.2).", _UNPLUG),
        "DEVICE_TRAY_MOVED": Said("A drive's tray was opened or closed, by the guest or by a command."),
        "UNPLUG_PRIMARY": Said("The primary device of a failover pair is being unplugged for a migration."),
        "FAILOVER_NEGOTIATED": Said("The guest supports failover between two network cards."),
        "ACPI_DEVICE_OST": Said("The guest reported how plugging or unplugging a device went."),
        "MEMORY_DEVICE_SIZE_CHANGE": Said("The guest's memory device (virtio-mem) has another size."),
        "BALLOON_CHANGE": Said(
            "The guest's balloon, and with it the memory that the guest uses, has another size."
        ),
        "HV_BALLOON_STATUS_REPORT": Said("The guest's Hyper-V balloon reported how much memory is used."),
        "CPU_POLARIZATION_CHANGE": Said("An s390x guest asks for another polarization of its CPUs."),
        "SCLP_CPI_INFO_AVAILABLE": Said("An s390x guest has told its name and type."),
        "MIGRATION": Said(
            "A migration has another state; QEMU sends it only if the capability `events` is set.",
            "`qmpsnap explain STATE` says what the state means.",
        ),
        "MIGRATION_PASS": Said("A migration begins another pass over the guest's memory."),
        "VFIO_MIGRATION": Said("A passed-through device has another state of migration."),
        "COLO_EXIT": Said("A COLO pair has ended: by request, or by an error."),
        "DUMP_COMPLETED": Said(
            "The dump of `dump-guest-memory` has ended; `error` gives the reason if it failed."
        ),
        "RTC_CHANGE": Said("The guest has set its clock; `offset` is the difference in seconds."),
        "VSERPORT_CHANGE": Said(
            "A program in the guest has opened or closed a virtio-serial port, such as the guest agent its "
            "own."
        ),
        "NIC_RX_FILTER_CHANGED": Said(
            "The guest has changed which packets its network card accepts. It is told once, until "
            "`query-rx-filter`."
        ),
        "NETDEV_STREAM_CONNECTED": Said("A network backend of the type stream is connected."),
        "NETDEV_STREAM_DISCONNECTED": Said("A network backend of the type stream has lost its connection."),
        "NETDEV_VHOST_USER_CONNECTED": Said("A vhost-user network backend is connected."),
        "NETDEV_VHOST_USER_DISCONNECTED": Said("A vhost-user network backend has lost its connection."),
        "RDMA_GID_STATUS_CHANGED": Said("A paravirtual RDMA device has another address (QEMU 7.2)."),
        "PR_MANAGER_STATUS_CHANGED": Said(
            "The helper for SCSI persistent reservations was connected, or lost.",
            "If it was lost, start qemu-pr-helper again: the guest's reservations fail until then.",
        ),
        "SPICE_CONNECTED": Said("A SPICE client has connected."),
        "SPICE_INITIALIZED": Said("A SPICE client has finished its handshake."),
        "SPICE_DISCONNECTED": Said("A SPICE client has gone."),
        "SPICE_MIGRATE_COMPLETED": Said("The SPICE clients have followed a migration."),
        "VNC_CONNECTED": Said("A VNC client has connected."),
        "VNC_INITIALIZED": Said("A VNC client has finished its handshake."),
        "VNC_DISCONNECTED": Said("A VNC client has gone."),
        "VFU_CLIENT_HANGUP": Said("The client of a vfio-user server has gone."),
    }
)
"""Meaning of each event, as `events` prints it."""
