"""Plans on VM state in files: checkpoint, save, restore, revert."""
