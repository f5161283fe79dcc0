"""Plans on the chain of a disk, external layers only: snapshot, stream, commit, mirror."""
