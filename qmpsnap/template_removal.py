"""Removes a template; or, once it is gone, the images that showed that it needed its layers."""

from __future__ import annotations

import os
import posixpath
from functools import partial

from qmpsnap.errors import Busy, NotFound
from qmpsnap.model.files import Ask
from qmpsnap.model.keeper import Keeper, ending
from qmpsnap.run.disk import in_thread
from qmpsnap.run.keepers import remove_keepers
from qmpsnap.run.paths import absolute
from qmpsnap.run.scratch import sweep
from qmpsnap.run.survey import look
from qmpsnap.run.template_files import remove_partial
from qmpsnap.template import Template, open_template
from qmpsnap.vm import VM


async def remove_template(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Remove a template with the images that show that its layers are needed.

    If its directory was removed, name one of these images (`STEM.NAME-TOKEN.template.qcow2`, beside a layer):
    then all images that were created with it are removed. Those for overlays that a clone has kept are
    removed as well, once the overlays are gone, and so is what a process has left that was killed in a fork,
    or in making a template: also `.NAME.partial` alone, which is all that is there if it was killed early.

    Args:
        path: The template's directory, or one of these images.

    Returns:
        The images that were removed.

    Raises:
        NotFound: When there is neither a template nor such an image.
        Busy: When a clone of it runs, a template is being made, or what the image is for is still there.
        TargetExists: When that template is being made now.
        InvalidTarget: When a file cannot be removed, or the template is not ours; `changed` says whether
            others were. Call it again then.
    """
    place = absolute("path", path)
    if await in_thread(partial(os.path.isfile, place)):
        return await _of_gone(place)
    try:
        template: Template[VM] = await open_template(place)
    except NotFound as error:
        if await in_thread(partial(remove_partial, place)):  # killed early, it has left nothing else
            return ()
        error.hint = error.hint or "if it was removed, name one of the images beside the layers: qmpsnap list"
        raise
    return await template.remove()


async def _of_gone(file: str) -> tuple[str, ...]:
    """Remove the images that were created with this one, unless what they are for is still there."""
    survey = partial(look, Ask(files=(file,), survey=(posixpath.dirname(file),)))
    keeper = (await in_thread(survey)).keepers.get(os.path.realpath(file))
    if keeper is None:
        raise NotFound(f"{file!r} does not show that a layer is needed", hint="name a template's directory")
    owner = keeper.owner
    found = (await in_thread(partial(look, Ask(survey=owner.places)))).keepers
    ours = {name: other for name, other in found.items() if _together(name, other, file, keeper)}
    ours.setdefault(os.path.realpath(file), keeper)
    states = {other.state for other in ours.values()}
    if "needed" in states:
        if owner.kind == "template":
            hint = f"remove it: give {owner.directory}"
        else:
            hint = "end the machines" if owner.kind == "fork" else f"first remove {owner.directory}"
        raise Busy(f"the layer is needed by {owner}", node="", job_id="", hint=hint)
    if "left" in states and owner.kind == "template":
        await in_thread(partial(remove_partial, owner.directory))  # first: only the images show it
    elif owner.kind == "fork":
        place = posixpath.dirname(posixpath.dirname(owner.directory))
        await in_thread(partial(sweep, ("", place)))
    await remove_keepers({name: other.layer for name, other in ours.items()})
    return tuple(ours)


def _together(name: str, other: Keeper, file: str, keeper: Keeper) -> bool:
    """Whether both images were created for the same template."""
    return ending(name) == ending(file) and other.owner == keeper.owner
