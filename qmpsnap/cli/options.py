"""Types of arguments, and options that several verbs have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmpsnap.cli import candidates
from qmpsnap.cli.app import remember
from qmpsnap.cli.machine_names import is_word
from qmpsnap.cli.picture import of_plan

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?(?:/s)?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Live(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A name in the machine; completed with the existing ones."""

    def __init__(self, name: str, find: Callable[[click.Context], list[str]]) -> None:
        self.name = name
        self._find = find

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        """The name as it is; a relative path (no other kind of name looks like one) is made absolute."""
        if not value:
            self.fail(f"the {self.name} is empty", param, ctx)
        name, equals, file = str(value).partition("=")  # a disk may bring its FILE along
        if "/" in name and not name.startswith("/"):
            name = str(Path(name).absolute())
        return f"{name}{equals}{file}"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names in the running machine; none when it does not answer at once.

        The shell inserts a completion unquoted, and a snapshot's name may come from anybody:
        a name that is not one plain word is not offered.
        """
        del param
        return [
            click.shell_completion.CompletionItem(name)
            for name in self._find(ctx)
            if name.startswith(incomplete) and is_word(name)
        ]


class _Name(_Live):
    """A name that is neither a path nor a disk's; taken as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        """Accept any text that is not empty, whether the machine knows it or not."""
        if not value:
            self.fail(f"the {self.name} is empty", param, ctx)
        return str(value)


class _File(click.Path):
    """A file name, relative to the current directory; made absolute."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        if not value:
            self.fail("the file name is empty", param, ctx)
        return str(Path(value).absolute())


class _Speed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """Bytes per second, such as 500000, 100K, 10M or 1.5G."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's
        if isinstance(value, int):
            return value
        match = _SPEED.fullmatch(value)
        if match is None:
            self.fail(
                f"{value!r} is not a speed; give bytes per second, such as 500000, 100K, 10M or 1.5G",
                param,
                ctx,
            )
        return round(float(match[1]) * _FACTORS[match[2].upper()])


COMMAND = _Name("command", candidates.commands)
EVENT = _Name("event", candidates.events)
DISK = _Live("disk", candidates.disks)
LAYER = _Live("layer", candidates.layers)
JOB = _Live("job", candidates.jobs)
MOMENT = _Live("name", candidates.snapshots)
FILE = _File()
SPEED = _Speed()


def _remembered(*names: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:  # noqa: A002 - click's
    """A flag that `App` holds, and the verb's function is not given."""
    return click.option(*names, is_flag=True, expose_value=False, callback=remember, help=help)


dry_run = _remembered("-n", "--dry-run", help="Print the plan and its exact QMP; send nothing.")
progress = _remembered(
    "--progress",
    help="Print progress on stderr, one line per update; as JSON with --json. [default: a bar on a terminal]",
)
wait = _remembered(
    "--wait",
    help="Wait for running jobs, however long they take; one that never ends by itself is refused. "
    "[default: refuse]",
)

keep_files = click.option(
    "--keep-files", is_flag=True, help="Keep files that nothing needs any more. [default: remove them]"
)
look_further = click.option(
    "--look-in",
    multiple=True,
    type=FILE,
    metavar="DIR",
    help="Another directory to search for images backed by a layer that is to be merged. May be repeated. "
    "[default: the directories of the chains]",
)
plain = click.option(
    "--plain", is_flag=True, help="Allow encrypted data to be written unencrypted. [default: refuse]"
)

via = click.option(
    "--via",
    type=click.Choice(["hmp", "jobs"]),
    help="How to handle internal snapshots: through QEMU's human monitor (savevm etc.), or by its jobs "
    "(snapshot-save). [default: the human monitor; jobs when a writable disk is left out, "
    "or is throttled]",
)


def job_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every verb that runs a job."""
    for option in (
        dry_run,
        of_plan,
        wait,
        progress,
        plain,
        click.option(
            "--speed",
            type=SPEED,
            metavar="BYTES",
            default=0,
            help="Limit in bytes per second, e.g. 100K, 10M, 1G. [default: none]",
        ),
        click.option(
            "--on-error",
            type=click.Choice(["report", "stop", "ignore"]),
            default="report",
            show_default=True,
            help="On an I/O error: fail (report), pause until resumed (stop), or retry (ignore).",
        ),
    ):
        function = option(function)
    return function
