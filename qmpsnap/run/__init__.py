"""The shell: the only code that does I/O, and the only code that can change a VM."""
