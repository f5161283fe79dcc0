"""The group of verbs, the options that all of them share, and how a verb is declared.

A verb's module is imported when the verb is used, so that `qmpsnap chain` loads no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from qmpsnap.cli.help_text import HelpContext, example_lines

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SOCKET_VARIABLE = "QMPSNAP_SOCKET"
DAEMON_VARIABLE = "QMPSNAP_STORAGE_DAEMON"

# In the order of the help. Where each is declared: module of qmpsnap.cli, attribute.
_VERBS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "chain": ("chain", "chain"),
        "snapshot": ("snapshot", "snapshot"),
        "stream": ("stream", "stream"),
        "commit": ("commit", "commit"),
        "mirror": ("mirror", "mirror"),
        "checkpoint": ("checkpoint", "checkpoint"),
        "save": ("save", "save"),
        "restore": ("restore", "restore"),
        "list": ("list", "list_"),
        "revert": ("revert", "revert"),
        "delete": ("delete", "delete"),
        "prune": ("prune", "prune"),
        "open": ("open", "open_"),
        "backup": ("backup", "backup"),
        "template": ("clones", "template"),
        "clone": ("clones", "clone"),
        "fork": ("clones", "fork"),
        "ps": ("ps", "ps"),
        "jobs": ("jobs", "jobs"),
        "job": ("job", "job"),
        "top": ("top", "top"),
        "events": ("events", "events"),
        "status": ("guest", "status"),
        "thaw": ("thaw", "thaw"),
        "cont": ("guest", "cont"),
        "stop": ("guest", "stop"),
        "doctor": ("doctor", "doctor"),
        "qmp": ("qmp", "qmp"),
        "record": ("record", "record"),
        "shell": ("shell", "shell"),
        "replay": ("replay", "replay"),
        "explain": ("explain", "explain"),
        "completion": ("completion", "completion"),
    }
)
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"blockpull": "stream", "blockcommit": "commit", "blockcopy": "mirror"}
)


@dataclass
class App:
    """The options that say how, not what: all verbs share them but the last four.

    Attributes:
        socket: Path of QEMU's monitor, tcp:HOST:PORT, or a machine; "" when none was given.
        socket_by_variable: Whether it came from the environment.
        images: The active images of a machine that is off, each as DISK=IMAGE.
        formats: Formats of those images, each as DISK=FORMAT.
        allow_dirs: Directories of files that the headers of those images may name.
        storage_daemon: The program that opens those images.
        json: Whether results and errors are JSON.
        verbose: How often -v was given.
        shared_fs: Whether QEMU's files are visible here; None to detect it.
        state_dir: Directory of records; None for beside each base image.
        record: File to create with every QMP message; None for no file.
        launcher: Command that starts another QEMU of the machine; None when none is known.
        connects: Whether the verb speaks to that machine.
        dry_run: Whether to print the plan only.
        picture: The format in which that prints a picture of the chains; "": it prints the plan as text.
        wait: Whether to wait for jobs that are in the way.
        progress: Whether to print progress on stderr.
        moved: Disks whose root has moved so far, each with its new active file.
        ended: Whether an operation has ended.
    """

    socket: str = ""
    socket_by_variable: bool = False
    images: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    allow_dirs: tuple[str, ...] = ()
    storage_daemon: str = "qemu-storage-daemon"
    json: bool = False
    verbose: int = 0
    shared_fs: bool | None = None
    state_dir: str | None = None
    record: str | None = None
    launcher: str | None = None
    connects: bool = False
    dry_run: bool = False
    picture: str = ""
    wait: bool = False
    progress: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False


_SHARED = MappingProxyType({"yes": True, "no": False, "auto": None})


def remember(context: click.Context, option: click.Parameter, value: Any) -> None:  # noqa: ANN401 - click's
    """Store an option of `App`; click calls this for one given before the verb, and for one after it."""
    app = context.ensure_object(App)
    source = context.get_parameter_source(option.name or "")
    if source not in {click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT}:
        return
    match option.name:
        case "verbose":
            app.verbose += value
        case "shared_fs":
            app.shared_fs = _SHARED[value]
        case "images" | "formats" | "allow_dirs" as name:
            setattr(app, name, (*getattr(app, name), *value))
        case "record":
            record_to(app, value)
        case "socket":
            app.socket = value
            app.socket_by_variable = source is click.core.ParameterSource.ENVIRONMENT
        case name:
            setattr(app, str(name), value)


def record_to(app: App, file: str) -> None:
    """Let the session be recorded.

    Raises:
        click.UsageError: When another record was asked for before.
    """
    if app.record not in {None, file}:
        raise click.UsageError(f"two records are asked for, {app.record!r} and {file!r}: give one")
    app.record = file


def _shared_options(*, again: bool) -> list[click.Parameter]:
    """Make the options that precede the verb; `again`: the same options after the verb."""

    def option(*names: str, **details: Any) -> click.Option:  # noqa: ANN401 - click's
        return click.Option(names, expose_value=False, callback=remember, hidden=again, **details)

    return [
        option(
            "-s",
            "--socket",
            metavar="PATH|NAME|PID|tcp:HOST:PORT",
            envvar=None if again else SOCKET_VARIABLE,
            type=MachineOption(),
            help="QEMU's monitor, or a machine of this host by the name or the process id that `qmpsnap ps` "
            f"lists. [default: ${SOCKET_VARIABLE}]",
        ),
        option(
            "-i",
            "--image",
            "images",
            metavar="DISK=IMAGE",
            multiple=True,
            type=ImageOption(),
            help="A disk of a machine that is off, and its active image; then "
            f"${SOCKET_VARIABLE} is ignored. May be repeated.",
        ),
        option(
            "--format",
            "formats",
            metavar="DISK=raw|qcow2",
            multiple=True,
            help="Format of that image. [default: qcow2, if its name ends in .qcow2]",
        ),
        option(
            "--allow-dir",
            "allow_dirs",
            metavar="DIR",
            multiple=True,
            type=click.Path(exists=True, file_okay=False, readable=False),
            help="Directory in which an image's backing files may be. May be repeated. "
            "[default: the directory of each given image]",
        ),
        option(
            "--storage-daemon",
            metavar="PATH",
            envvar=None if again else DAEMON_VARIABLE,
            type=click.Path(readable=False),
            help="The program that opens images. "
            f"[default: ${DAEMON_VARIABLE}, else qemu-storage-daemon on PATH]",
        ),
        option("--json", is_flag=True, help="Results and errors as one JSON object. [default: text]"),
        option(
            "-v", "--verbose", count=True, help="Log each step; -vv: the QMP traffic. [default: warnings]"
        ),
        option(
            "--shared-fs",
            type=click.Choice(list(_SHARED)),
            help="Whether QEMU's files are visible here. [default: auto, which finds out]",
        ),
        option(
            "--state-dir",
            metavar="DIR",
            type=click.Path(readable=False),
            help="Directory of qmpsnap's records. [default: beside each base image]",
        ),
        option(
            "--record",
            metavar="FILE",
            type=click.Path(readable=False),
            help="Create this file, and write every QMP message to it; secrets are masked.",
        ),
        option(
            "--launcher",
            metavar="COMMAND",
            help="Command that starts a second QEMU of the machine, if a verb needs it: as a rule a script "
            'that ends in `exec qemu-system-x86_64 OPTIONS "$@"`, and has the image of the disk NAME from '
            "$QMPSNAP_DISK_NAME.",
        ),
    ]


class MachineOption(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A monitor's path or address, or a machine; the shell completes paths, and the machines' names."""

    name = "machine"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Give the machines' names, and leave paths to the shell."""
        from qmpsnap.cli.machine_names import machine_names  # noqa: PLC0415 - for completion alone

        del ctx, param
        item = click.shell_completion.CompletionItem
        return [item(incomplete, type="file"), *map(item, machine_names(incomplete))]


class ImageOption(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A disk and its image, as DISK=IMAGE; the shell completes the image's path."""

    name = "image"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave the path to the shell."""
        del ctx, param
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


class Group(click.Group):
    """A group whose help is written like a verb's."""

    context_class = HelpContext
    aliases: Mapping[str, str] = MappingProxyType({})  # other names of its verbs

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; without any, it is a usage error that lists the commands."""
        if not args and not ctx.resilient_parsing:
            ctx.fail(f"give one of {', '.join(self.list_commands(ctx))}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; one that does not exist is a usage error that names similar ones, or all."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches  # noqa: PLC0415 - for a mistake alone

            verbs = self.list_commands(ctx)
            near = [name for name in verbs if name.startswith(args[0])]
            near = near or get_close_matches(args[0], (*verbs, *self.aliases))
            others = f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(verbs)}"
            ctx.fail(f"there is no verb {args[0]!r}; {others}")
        return super().resolve_command(ctx, args)


class Verb(click.Command):
    """A verb: it also takes the shared options, and its help ends with an example.

    Args:
        example: One command line that does something useful.
        details: click's own arguments.
    """

    context_class = HelpContext

    def __init__(self, *, example: str = "", **details: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(**details)
        own = {name for param in self.params for name in param.opts}
        # mirror has a --format of its own; that of an image then has to precede the verb.
        again = [option for option in _shared_options(again=True) if own.isdisjoint(option.opts)]
        self.params = [*self.params, *again]
        self._example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; an option that was cut short is answered by those that begin so."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            options = (name for param in self.params for name in param.opts)
            if near := sorted({name for name in options if name.startswith(error.option_name)}):
                message = f"No such option {error.option_name!r}; did you mean {' or '.join(near)}?"
                raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        del ctx
        if self._example:
            with formatter.section("Example"):
                formatter.write("".join(f"{line}\n" for line in example_lines(self._example)))


def verb(name: str, *, example: str, short_help: str | None = None) -> Callable[[Callable[..., None]], Verb]:
    """Declare a verb; its docstring is its help."""

    def declare(function: Callable[..., None]) -> Verb:
        return click.command(name, cls=Verb, example=example, short_help=short_help)(function)

    return declare


class Verbs(Group):
    """The group of all verbs; each is imported when it is asked for."""

    aliases = _ALIASES

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the verbs, in the order of the help; aliases are not listed."""
        del ctx
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb; an alias gives its verb."""
        del ctx
        place = _VERBS.get(_ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        command = getattr(import_module(f"qmpsnap.cli.{place[0]}"), place[1])
        assert isinstance(command, click.Command)  # noqa: S101 - the table above says so
        return command


def _version(context: click.Context, option: click.Parameter, value: bool) -> None:  # noqa: ARG001, FBT001 - click's
    if value and not context.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - for this option alone

        try:
            click.echo(f"qmpsnap {version('qmpsnap')}")
        except PackageNotFoundError:
            click.echo("qmpsnap, not installed")
        context.exit()


@click.group(
    cls=Verbs,
    no_args_is_help=False,
    params=[
        *_shared_options(again=False),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_version,
            help="Print the version, and exit.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB ...",
    options_metavar="[-s PATH|NAME|PID|tcp:HOST:PORT | -i DISK=IMAGE] [--json] [-v]",
    epilog="These options may also follow the verb. Verbs that change something take -n (--dry-run): "
    "it prints the exact QMP and sends none of it. "
    "Exit: 0 done, 1 result not printed, or a bug, 2 usage, "
    "3 refused, 4 QEMU said no or cannot be reached, 5 link lost, "
    "6 done but not as predicted, 7 stopped half-way, 8 the doctor found trouble, 130 interrupted.",
)
def cli() -> None:
    """Snapshots and checkpoints of virtual machines, over QEMU's own monitor, and of images alone."""
