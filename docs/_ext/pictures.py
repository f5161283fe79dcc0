"""Directives that draw: the pictures are made by the code that they are about, each time the pages are built.

chain-picture        the chains of its lines, each `DISK: base <- overlay*`
plan-picture INTENT  what the planner makes of the intent on these chains, before and after; the overlay
                     `vda.one.qcow2` began at the snapshot `one`
terminal COMMAND     what the command prints of a machine that is off; each line makes an image:
                     `FILE [on BACKING] [at SNAPSHOT] [holds N MiB]`, the active one last
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shlex
import tempfile
import time
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner
from docutils import nodes
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from sphinx.util.docutils import SphinxDirective

import qmpsnap
from qmpsnap.cli.app import App, cli
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.names import state_directory
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import to_json
from qmpsnap.plan.picture import picture_of_chains
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_files import FakeFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sphinx.application import Sphinx

_SIZE = 20 << 30
_LINE = re.compile(
    r"(?P<file>\S+)(?: on (?P<backing>\S+))?(?: at (?P<name>\S+))?(?: holds (?P<mib>\d+) MiB)?"
)
_THEME = TerminalTheme((13, 17, 23), (240, 246, 252), [(13, 17, 23)] * 8, [(240, 246, 252)] * 8)
_TERMINAL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img" aria-label="a terminal">
<style>.{unique_id}-matrix{{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;\
font-size:{char_height}px;line-height:{line_height}px}}{styles}</style>
<rect fill="#0d1117" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x},{terminal_y})">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


class ChainPicture(SphinxDirective):
    """Chains as they are."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw them."""
        return [_figure(picture_of_chains(_drawn(self.content).chains(), invalid=()).render("svg"))]


class PlanPicture(SphinxDirective):
    """What an operation does to chains."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Plan it, and draw the chains before and after."""
        names = {name: getattr(qmpsnap, name) for name in qmpsnap.__all__}
        intent = eval(self.arguments[0], names)  # noqa: S307 - our own page's
        drawn = _drawn(self.content)
        files = FakeFiles(drawn)
        files.records.extend(_snapshots(drawn))
        vm = qmpsnap.VM(FakeTarget(drawn, files=files))
        return [_figure(asyncio.run(vm.plan(intent)).picture().render("svg"))]


class Terminal(SphinxDirective):
    """A terminal in which a command was typed."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make the images, run the command on them, and draw what it prints."""
        with tempfile.TemporaryDirectory() as directory, chdir(directory):
            active = _made(Path(directory), self.content)
            words = ["qmpsnap", "-i", f"vda={active}", *shlex.split(self.arguments[0])]
            with _utc():
                result = CliRunner(env={"COLUMNS": "80"}).invoke(
                    cli, words[1:], prog_name="qmpsnap", obj=App()
                )
        if result.exit_code:
            raise self.error(f"{shlex.join(words)}: {result.output}")
        printed = result.output.replace(directory, "/srv/vm1")
        return [_figure(_terminal(f"$ {shlex.join(words)}\n{printed}"))]


@contextmanager
def _utc() -> Iterator[None]:
    """Have times printed in UTC meanwhile, wherever the pages are built."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def _drawn(lines: Iterable[str]) -> qmpsnap.Graph:
    disks = (line.partition(": ") for line in lines)
    return graph(*(chain(drawing, name=name, directory="/srv/vm1") for name, _, drawing in disks))


def _snapshots(drawn: qmpsnap.Graph) -> Iterator[MomentRecord]:
    """A record for each overlay that is named as `snapshot` names it."""
    for disk, files in drawn.chains().items():
        for index, file in enumerate(files):
            _, *name, _ = Path(file).name.split(".")
            if name:
                yield MomentRecord(
                    f"qmpsnap-snapshot-keep-{len(files) - index:08x}",
                    name[0],
                    f"2026-05-{len(files) - index:02}T09:30:00+00:00",
                    {disk: file},
                    {disk: files[index + 1]},
                    {disk: files[index + 1 :]},
                    directory=state_directory(files[-1]),
                )


def _made(directory: Path, lines: Iterable[str]) -> str:
    """Make images and the records of their snapshots; return the last image."""
    base = active = ""
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not an image: {line}")
        active, backing = match["file"], match["backing"]
        below = str(directory / backing) if backing else None
        empty = empty_qcow2(virtual_size=_SIZE, backing=below, backing_format="qcow2" if below else None)
        with (directory / active).open("wb") as image:
            for offset, data in empty.parts:
                image.seek(offset)
                image.write(data)
            image.seek(empty.size_bytes)
            image.write(b"x" * (int(match["mib"] or 0) << 20))
        base = base or active
        if match["name"]:
            place = Path(state_directory(str(directory / base)))
            place.mkdir(exist_ok=True)
            record = MomentRecord(
                f"qmpsnap-snapshot-keep-{number:08x}",
                match["name"],
                f"2026-05-{number:02}T09:30:00+00:00",
                {"vda": str(directory / active)},
                {"vda": str(below)},
            )
            (place / record.file_name).write_text(to_json(record))
    return active


def _terminal(text: str) -> str:
    console = Console(record=True, file=io.StringIO(), width=82, force_terminal=True)
    console.print(text.rstrip("\n"), markup=False, highlight=False, emoji=False, soft_wrap=True)
    return console.export_svg(theme=_THEME, code_format=_TERMINAL, unique_id="terminal")


def _figure(svg: str) -> nodes.raw:
    return nodes.raw("", f'<div class="picture">{svg}</div>', format="html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directives."""
    app.add_directive("chain-picture", ChainPicture)
    app.add_directive("plan-picture", PlanPicture)
    app.add_directive("terminal", Terminal)
    return {"parallel_read_safe": True}
