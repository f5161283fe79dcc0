"""The layers of a template's disks, as they must stay. Blocking."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.model.files import Ask
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.names import SCRATCH
from qmpsnap.model.template import FileState, TemplateDisk, TemplateLayer
from qmpsnap.model.view import DiskView
from qmpsnap.run.survey import look as survey
from qmpsnap.run.template_files import look


def layers_of(views: Sequence[DiskView]) -> Frozen[str, TemplateDisk]:
    """Return size, time and inode of the layers of the disks, as of now.

    Raises:
        InvalidTarget: When one is gone.
    """
    return Frozen(
        {
            view.disk: TemplateDisk(
                tuple(
                    TemplateLayer(
                        layer.file,
                        "raw" if layer.format == "raw" else "qcow2",
                        _state(layer.file),
                        Frozen({layer.data_file: _state(layer.data_file)} if layer.data_file else {}),
                    )
                    for layer in view.layers
                ),
                view.virtual_size,
            )
            for view in views
        }
    )


def refuse_of_fork(chains: Mapping[str, Sequence[str]]) -> None:
    """Refuse the layers of a machine that is a fork's child, and whose overlays are removed with the fork.

    Args:
        chains: The files of each disk's layers, newest first.

    Raises:
        Unsupported: When they are those of one.
    """
    for disk, files in chains.items():
        passing = [file for file in files if posixpath.dirname(file).rpartition("/")[2].startswith(SCRATCH)]
        if not passing:
            continue
        keepers = survey(Ask(files=tuple(files), survey=tuple(map(posixpath.dirname, files)))).keepers
        if any(keeper.owner.kind == "fork" and keeper.state == "needed" for keeper in keepers.values()):
            raise Unsupported(
                f"no template can be made of a fork's child: {passing[0]!r} is removed when the fork ends",
                feature="a template of layers that do not stay",
                hint=f"copy each disk to a file that stays: {command('mirror', disk, 'FILE', '--pivot')}",
            )


def refuse_written(views: Sequence[DiskView], disks: Mapping[str, TemplateDisk]) -> None:
    """Refuse if a layer was written to or replaced.

    Raises:
        InvalidTarget: When one was.
    """
    if layers_of(views) != disks:
        raise InvalidTarget(
            "a layer was written to while the template was made",
            file=views[0].layers[0].file,
            hint="end the job that writes to it, and try again",
        )


def _state(file: str) -> FileState:
    state = look((file,))[file]
    if state is None:
        raise InvalidTarget(f"the layer {file!r} is gone", file=file)
    return state
