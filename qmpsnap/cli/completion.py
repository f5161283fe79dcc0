"""`qmpsnap completion`: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from qmpsnap.cli.app import cli, verb
from qmpsnap.cli.output import emit


@verb(
    "completion",
    example="qmpsnap completion bash > ~/.local/share/bash-completion/completions/qmpsnap",
    short_help="Print the shell completion script.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    With -s, or QMPSNAP_SOCKET, disks, layers, snapshots and jobs complete with those of the running machine.
    """
    completer = get_completion_class(shell)
    assert completer is not None  # noqa: S101 - click has all three
    # bash's own class starts a bash to ask for its version; the script does not depend on it.
    script = ShellComplete.source(completer(cli, {}, "qmpsnap", "_QMPSNAP_COMPLETE"))
    emit(*script.rstrip().split("\n"))
