"""Pure values that describe the present state, as QEMU and the images report it."""
