"""Plans on snapshots inside images: with VM state, or of disks alone."""
