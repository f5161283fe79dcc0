"""Reads QEMU's command lines, and rewrites them for another QEMU of the same machine."""
