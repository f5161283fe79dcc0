"""What the doctor finds, by its code: `Finding.code`. docs/howto/troubles.md has a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.model.meaning.entry import Said

FINDINGS: Mapping[str, Said] = MappingProxyType(
    {
        "monitor-held": Said(
            "A monitor to which another client is connected, so that nobody else is served.",
            "End that client if it is not needed, or use another monitor of the machine.",
        ),
        "monitor-silent": Said(
            "A monitor that does not greet although no other client is connected: QEMU is stopped, or busy.",
            "`kill -CONT` resumes a QEMU that a signal has stopped. Else wait.",
        ),
        "disk-full": Said(
            "A guest that QEMU paused because a disk got no space.",
            "Free some space; then `qmpsnap cont` repeats the write.",
        ),
        "io-error": Said(
            "A guest that QEMU paused because a request to a disk failed, but not for lack of space.",
            "Look at the storage; then `qmpsnap cont` repeats the request.",
        ),
        "guest-failed": Said(
            "A guest that can only go on after a reset.",
            "`qmpsnap qmp system_reset`, then `qmpsnap cont`. A revert to a checkpoint loses less.",
        ),
        "load-failed": Said(
            "A guest that a failed load of VM state has stopped.",
            "`qmpsnap qmp system_reset`, then `qmpsnap cont`; or revert to a checkpoint.",
        ),
        "guest-frozen": Said(
            "File systems that somebody froze and never thawed.", "`qmpsnap thaw AGENT` thaws them."
        ),
        "started-below": Said(
            "A machine that was started from an old file, and writes into what other images are based on.",
            "Quit it, and start it from the newest layer.",
        ),
        "image-in-use": Said(
            "An image of which another process may change the bytes.",
            "Look at a machine that is not off with -s. A running machine's image must have no other writer.",
        ),
        "layer-moved": Said(
            "A layer whose name leads to another file, or nowhere, while QEMU has the file open.",
            "Move the file back. If that is not possible, copy the disk to a new file before QEMU ends.",
        ),
        "backing-missing": Said(
            "A backing file that is not where the header says.",
            "Move it back, or record the new place in the header.",
        ),
        "format-missing": Said(
            "A header that does not record the format of its backing file, so that QEMU guesses it.",
            "Record it. If it is not known for certain, find out first.",
        ),
        "format-wrong": Said(
            "A header that records another format than its backing file has, or than QEMU has it open with.",
            "Record the right one.",
        ),
        "image-refused": Said(
            "A chain that must not or cannot be opened.",
            "The reason is printed, with the option that allows it for an image that you trust.",
        ),
        "image-damaged": Said(
            "An image that was not closed properly, is marked as corrupt, or is truncated.",
            "Keep a copy; then `qemu-img check -r all` repairs it, unless it is truncated.",
        ),
        "backing-wrong": Said(
            "A layer whose header names another backing file than the one that QEMU has open.",
            "Record the right one before the next start.",
        ),
        "operation-left": Said(
            "An operation of ours whose client is gone.",
            "`qmpsnap job wait ID` completes it or takes it back.",
        ),
        "job-stopped": Said(
            "A job that an I/O error has paused.",
            "Remove the cause; then `qmpsnap job resume ID`.",
        ),
        "job-paused": Said(
            "A job that somebody has paused.",
            "`qmpsnap job resume ID` if nobody else will.",
        ),
        "job-concluded": Said(
            "A job of another client that has ended and was not dismissed.",
            "`job-dismiss` frees its id.",
        ),
        "filter-left": Said(
            "A filter of a job or a backup on top of a disk, and no job that uses it.",
            "Put the layer below it back under the device.",
        ),
        "node-left": Said(
            "A node that nothing uses, and that keeps its file open for writing.",
            "`blockdev-del` frees the file, unless the node was added to be used later.",
        ),
        "layer-invalid": Said(
            "A layer into which a commit has written, and that stays in a chain.",
            "Commit the overlay above it.",
        ),
        "snapshot-lost": Said(
            "A snapshot that no file holds any more.", "`qmpsnap delete` removes its name."
        ),
        "layer-written": Said(
            "A layer to which somebody else has written after a snapshot that is read from it.",
            "Find out who wrote there. If the guest still reads what it read then, give the file its former "
            "time back (`touch -d`); else delete the snapshots that are read from it.",
        ),
        "bitmap-inconsistent": Said(
            "A dirty bitmap that was in use when QEMU was killed: no backup can use it any more.",
            "Remove it; the next backup has to be a full one.",
        ),
        "state-missing": Said(
            "A checkpoint whose file of VM state is missing.",
            "Move it back; if it is gone, `qmpsnap delete` removes the checkpoint's name.",
        ),
        "state-unused": Said(
            "A file of VM state that no snapshot uses.",
            "Remove it, unless its record is in another directory: see --state-dir.",
        ),
        "keeper-left": Said(
            "An image of a template or a fork that was being made, or ran, when its process was killed.",
            "Remove it, with what else is left: `qmpsnap template --remove IMAGE`.",
        ),
        "record-unreadable": Said(
            "A record that cannot be read.", "Put back a copy, or move it away; no image is in danger."
        ),
        "chain-long": Said(
            "A chain with so many layers that QEMU's main loop stands still for each look at it.",
            "Commit some of them.",
        ),
        "space-low": Said(
            "A disk that can grow, on a file system that is full.",
            "Free some space, or move the disk with `qmpsnap mirror --pivot`.",
        ),
        "job-waits": Said(
            "A job of another client that waits to be told how it is to end.",
            "Nothing, if its client is still there. Else complete it or cancel it.",
        ),
        "agent-silent": Said(
            "A guest agent that does not answer, so that nobody can freeze the guest or thaw it.",
            "Start it in the guest, or end the other program that is connected to it.",
        ),
        "bitmap-busy": Said(
            "A dirty bitmap that a job or an export uses, so that no other backup can.",
            "Wait for its end.",
        ),
        "keeper-gone": Said(
            "An image that shows that a template or a clone needs a layer; but that is not there any more.",
            "If that was removed for good, remove the image: then the layer can be committed.",
        ),
        "not-writable": Said(
            "A lower layer that QEMU could not open for writing: a commit into it would be refused.",
            "Nothing, if the layer is meant to stay as it is.",
        ),
        "device-in-way": Said(
            "A device, or a mount, because of which QEMU cannot save the guest's memory.",
            "Unplug or unmount it before a checkpoint.",
        ),
        "no-internal": Said(
            "A writable disk that cannot hold a snapshot inside it, beside others that can.",
            "Use another mode of `qmpsnap checkpoint`.",
        ),
    }
)
"""Meaning of each code, those of limits last."""
