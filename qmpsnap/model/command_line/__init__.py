"""QEMU's command lines: read, and rewritten for another QEMU like the first."""
