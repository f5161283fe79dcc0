"""The command that ends what is left of an operation whose client is gone."""

from __future__ import annotations

from qmpsnap.model.record import IntentRecord


def needs_guest(record: IntentRecord) -> bool:
    """Whether the machine has to run before the operation can be completed or taken back."""
    return record.origin is not None


def finishing(record: IntentRecord, *, vanished: bool) -> tuple[str, ...]:
    """Return the command line that completes the operation, or takes it back.

    A commit that was stopped has written into its base. Only the same commit repairs that.

    Args:
        record: The operation.
        vanished: Whether it can no longer be completed, as `Plan.vanished` says.
    """
    if not vanished or not record.folded:
        return ("qmpsnap", "job", "wait", record.id)
    files = record.chains.get(record.disk, ())
    above, below = files.index(record.folded[0]), files.index(record.folded[-1]) + 1
    top = ("--top", record.folded[0]) if above else ()
    # A base that is no file is the deepest layer, which is the default.
    base = ("--base", files[below]) if below < len(files) else ()
    return ("qmpsnap", "commit", record.disk, *top, *base)
