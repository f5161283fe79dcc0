"""What a plan does besides sending QMP commands: actions on files (`**` in a plan) and waits (`..`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.model.meaning.entry import Said

ACTIONS: Mapping[str, Said] = MappingProxyType(
    {
        "create-overlay": Said(
            "Create an overlay for a disk. The file must not exist; it gets the owner, mode and label of "
            "the layer that it covers."
        ),
        "create-file": Said("Create an empty file. It must not exist; QEMU writes the image into it."),
        "create-image": Said("Create an image without data and without a backing file. It must not exist."),
        "create-memory": Said("Create the file that QEMU writes the guest's memory and devices to."),
        "reserve-memory": Said(
            "Reserve disk space for what QEMU's memory holds at that time, or for all of it if that is not "
            "known: this QEMU would hang the guest if there were not enough."
        ),
        "create-store": Said("Create an empty qcow2 image that QEMU saves VM state in."),
        "seal-memory": Said(
            "Add to a file of VM state which machine it belongs to, put it on the disk, and give it its "
            "final name."
        ),
        "seal-store": Said("Put a store on the disk, and give it its final name."),
        "remove-state": Said("Remove a file of VM state, if it still is the file of this operation."),
        "retire-file": Said(
            "Rename the file of a layer that no longer holds its snapshot to FILE.invalid, or remove it."
        ),
        "remove-file": Said("Remove a file that this operation created, and that QEMU does not have open."),
        "remove-scratch": Said("Remove temporary files of operations of ours whose process was killed."),
        "remove-orphan": Said("Remove a file that an interrupted operation created, if it is still empty."),
        "apply-snapshot": Said(
            "Go back to a snapshot inside an image that no machine uses (qemu-img snapshot -a)."
        ),
        "write-record": Said(
            "Write down the whole plan before it starts, so that `qmpsnap job wait` can finish it if this "
            "process dies."
        ),
        "finish-record": Said("Remove the record of an operation that has ended, and records that it ends."),
        "keep-moment": Said("Keep the record of a snapshot or checkpoint, under its name."),
        "keep-store": Said("Note in a checkpoint's record the store that now holds its memory."),
        "keep-branch": Said("Note in a snapshot's record the overlays that a revert created there."),
        "keep-link": Said("Delete a snapshot, but keep which images are backed by it."),
        "keep-lost": Said(
            "Note in a snapshot's record that a commit has written into the layer that held it."
        ),
        "keep-place": Said(
            "Note in a snapshot's record that layers have left the chain that it is read from."
        ),
        "keep-continued": Said("Note in a snapshot's record a layer that goes on from it."),
        "link-records": Said("Make the records be found from another directory, too."),
        "await-job": Said(
            "Wait until a job has reached a state. QEMU's events tell; the state is then asked for."
        ),
        "adopt-job": Said("Take over a job that was started by an earlier client. Nothing is sent."),
        "await-migration": Said("Wait until VM state has been written, or read."),
        "await-closed": Said("Wait until QEMU has closed a file, so that all of its data has been written."),
        "check-roots": Said("Ask QEMU whether each disk reads from the node that it was given."),
        "check-active": Said("Ask QEMU whether each disk still writes to the layer that the plan assumes."),
        "snapshot-save": Said("Wait for a job that saves VM state; an earlier client has started it."),
        "snapshot-load": Said("Wait for a job that loads VM state; an earlier client has started it."),
    }
)
"""Meaning of each action and wait of a plan, as `-n` prints it."""
