"""`qmpsnap doctor`: name each trouble, its cause, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

import qmpsnap
from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import address_given
from qmpsnap.cli.output import emit, json_line, wrap
from qmpsnap.cli.runner import current_app, run, run_alone, words_of
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import ConnectFailed
from qmpsnap.model.finding import Finding
from qmpsnap.model.printable import printable, shell_word
from qmpsnap.vm import VM

_FOUND = 8
_GREETING_LIMIT = 2.0  # seconds; whoever holds the monitor is then looked for
_HEALTHY = "no trouble found"


@verb(
    "doctor",
    example="qmpsnap -s /run/vm1/qmp.sock doctor",
    short_help="Name each trouble, and the command that mends it.",
)
@click.option(
    "--agent",
    metavar="SOCKET",
    type=click.Path(),
    help="Socket of the guest's agent: ask it whether the guest is frozen. [default: do not ask]",
)
def doctor(agent: str | None) -> None:
    """Look at a machine or at images: name each trouble, its cause, and the command that mends it.

    Nothing is changed. A trouble is something that is wrong, or about to go wrong. A limit is no trouble: all
    is well, but a commit or a checkpoint would be refused as things are.

    The exit code is 0 when there is no trouble, and 8 when there is one.
    """

    async def work(vm: VM, _: Signals) -> tuple[Finding, ...]:
        return await vm.diagnose(agent=agent)

    try:
        findings = run(work, looks=True, greeting_limit=_GREETING_LIMIT)
    except ConnectFailed:
        findings = () if current_app().images else run_alone(_silent)
        if not findings:
            raise
    sick = any(finding.is_trouble for finding in findings)
    if current_app().json:
        emit(json_line(healthy=not sick, findings=[_to_json(finding) for finding in findings]))
    else:
        emit(*_text(findings))
    if sick:
        click.get_current_context().exit(_FOUND)


async def _silent(_: Signals) -> tuple[Finding, ...]:
    """Why the monitor does not greet."""
    return await qmpsnap.diagnose_monitor(await address_given(current_app().socket))


def _text(findings: Sequence[Finding]) -> Iterator[str]:
    if not any(finding.is_trouble for finding in findings):
        yield _HEALTHY
    for finding in findings:
        yield from _lines(finding)


def _lines(finding: Finding) -> Iterator[str]:
    limit = "" if finding.is_trouble else "limit: "
    yield f"{limit}{finding.code}: {printable(finding.subject)}"
    yield from wrap(printable(finding.cause), indent="  ", more="")
    if finding.remedy:
        yield f"  mend: {_typed(_words(finding))}"
    if finding.advice:
        yield from wrap(f"note: {printable(finding.advice)}", indent="  ", more="")


def _words(finding: Finding) -> list[str]:
    """The remedy with the options that name this machine, so that it can be run as it is."""
    program, *rest = finding.remedy or ("",)
    return [program, *words_of(current_app()), *rest] if program == "qmpsnap" else [*finding.remedy]


def _typed(words: Iterable[str]) -> str:
    """The words as a shell takes them; control characters are escaped."""
    return " ".join(map(shell_word, words))


def _to_json(finding: Finding) -> dict[str, object]:
    return {**finding.to_json(), "remedy": _words(finding)}
