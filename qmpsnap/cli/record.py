"""`qmpsnap record`: another command, with a record of its session."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, ShellComplete

from qmpsnap.cli.app import App, cli, record_to, verb
from qmpsnap.cli.options import FILE
from qmpsnap.cli.runner import current_app


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the other command as it is completed alone."""
    words = _without_dashes(context.params.get(parameter.name or "") or ())
    found = context.find_object(App)
    return ShellComplete(cli, {"obj": found}, "qmpsnap", "").get_completions(list(words), incomplete)


@verb(
    "record",
    example="qmpsnap -s /run/vm1/qmp.sock record session.jsonl commit vda",
    short_help="Run a command, and record its session.",
)
@click.argument("file", type=FILE)
@click.argument(
    "words", metavar="-- VERB ...", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=_complete
)
@click.pass_context
def record(context: click.Context, file: str, words: tuple[str, ...]) -> None:
    """Run VERB with all that follows, and write every QMP message to the new file FILE, as --record does.

    Secrets are masked. The output and the exit code are those of VERB. With --shared-fs no nothing is read
    from the host's files, so that the record can be replayed where they differ.
    """
    app = current_app()
    record_to(app, file)
    words = _without_dashes(words)
    code = cli.main(args=list(words), prog_name="qmpsnap", standalone_mode=False, obj=app)
    if isinstance(code, int):
        context.exit(code)


record.allow_interspersed_args = False  # what follows FILE is VERB's


def _without_dashes(words: tuple[str, ...]) -> tuple[str, ...]:
    return words[1:] if words[:1] == ("--",) else words
