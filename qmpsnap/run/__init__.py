"""All I/O, and the only code that can change a VM."""
