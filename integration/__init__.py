"""Tests on real QEMUs: every one that `scripts/qemu-matrix` lists."""
