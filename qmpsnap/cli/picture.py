"""Options for pictures, and how one is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from qmpsnap.cli.app import App, remember
from qmpsnap.cli.output import emit
from qmpsnap.model.picture.picture import Picture, PictureFormat

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Drawn = Literal["tree", "dot", "mermaid", "svg"]
"""How a verb shows images: as text ("tree"), or as a picture."""

_PICTURES = get_args(PictureFormat)


class _Drawn(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A form of output; or DISK=FORMAT, which the option of the same name before the verb takes."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        if "=" not in value and value not in get_args(Drawn):
            self.fail(
                f"{value!r} is neither one of {', '.join(get_args(Drawn))} nor DISK=FORMAT of an image",
                param,
                ctx,
            )
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The forms of output."""
        del ctx, param
        return [
            click.shell_completion.CompletionItem(form)
            for form in get_args(Drawn)
            if form.startswith(incomplete)
        ]


def _chosen(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str:
    """The form that was chosen last; formats of images are stored."""
    del option
    app = context.ensure_object(App)
    app.formats = (*app.formats, *(value for value in values if "=" in value))
    return ["tree", *(value for value in values if "=" not in value)][-1]


drawn = click.option(
    "--format",
    "form",
    type=_Drawn(),
    multiple=True,
    callback=_chosen,
    metavar="tree|dot|mermaid|svg",
    help="Print text (tree), or a picture: SVG, or the language of graphviz (dot) or of mermaid. "
    "[default: tree]",
)

of_plan = click.option(
    "--picture",
    type=click.Choice(_PICTURES),
    expose_value=False,
    callback=remember,
    help="With -n: print a picture of the chains before and after. [default: print the plan]",
)


def emit_picture(picture: Picture, form: str) -> None:
    """Print a picture.

    Args:
        picture: The picture.
        form: One of its formats.
    """
    emit(*picture.render(_format(form)).rstrip("\n").split("\n"))


def is_picture(app: App, form: str) -> bool:
    """Whether a verb prints a picture, and not text or JSON.

    Raises:
        UsageError: When both a picture and JSON are asked for.
    """
    if app.json and form != "tree":
        raise click.UsageError(f"--json and --format {form} exclude each other")
    return form != "tree"


def check_picture(app: App) -> None:
    """Refuse a picture of a plan that would be run, or as JSON.

    Raises:
        UsageError: When the options do not go together.
    """
    if app.picture and (app.json or not app.dry_run):
        raise click.UsageError("--picture goes with -n, and not with --json")


def _format(form: str) -> PictureFormat:
    return next(known for known in _PICTURES if known == form)
