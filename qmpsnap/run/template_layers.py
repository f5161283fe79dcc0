"""The layers of a template's disks, as they must stay. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.template import FileState, TemplateDisk, TemplateLayer
from qmpsnap.model.view import DiskView
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
