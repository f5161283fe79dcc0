"""Pure values: what is, as QEMU and the images say it."""
