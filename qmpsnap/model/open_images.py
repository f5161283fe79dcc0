"""Tracks from which node each disk reads in a storage daemon, where no device tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.step import MoveRoot, PutOverlays, Root, Step


class OpenImages(Struct, frozen=True):
    """The open images and the roots of the disks, as derived from the steps that were done.

    Attributes:
        roots: node-name of each disk's root, by the disk's name.
        files: Path of each node that a step opened, by its node-name.
        file_nodes: node-name of the protocol node of each such node, if it was given a name.
        below: node-name of the backing node of each such node, as of when it was opened or became an overlay.
        pivots: Root that a disk gets if its job ends without an error, by the job's id.
    """

    roots: Mapping[str, str] = Frozen()
    files: Mapping[str, str] = Frozen()
    file_nodes: Mapping[str, str] = Frozen()
    below: Mapping[str, str] = Frozen()
    pivots: Mapping[str, Root] = Frozen()

    def after(self, step: Step) -> OpenImages:
        """The state after the step; the pivot of a job is only noted here, and takes effect in `ended`."""
        opened = self._added(step) if step.command == "blockdev-add" and not step.kind else self
        match step.effect:
            case PutOverlays(overlays):
                roots = {overlay.disk: overlay.node for overlay in overlays}
                covered = {overlay.node: overlay.covered for overlay in overlays}
                return replace(
                    opened, roots=Frozen({**opened.roots, **roots}), below=Frozen({**opened.below, **covered})
                )
            case MoveRoot(root) if step.command == "job-complete":
                return replace(opened, pivots=Frozen({**opened.pivots, step.job_id: root}))
            case MoveRoot(root):
                return opened.with_root(root.disk, root.node)
            case _:
                return opened

    def ended(self, job_id: str, *, well: bool) -> OpenImages:
        """The state after the end of that job; its pivot moves the disk's root only if `well` is true."""
        if job_id not in self.pivots:
            return self
        root = self.pivots[job_id]
        pending = {other: pivot for other, pivot in self.pivots.items() if other != job_id}
        roots = {**self.roots, root.disk: root.node} if well else self.roots
        return replace(self, roots=Frozen(roots), pivots=Frozen(pending))

    def beneath(self, node: str) -> Iterator[str]:
        """Nodes that were below a node when it was opened or became an overlay, the nearest first."""
        seen = {node}
        while (below := self.below.get(node)) is not None and below not in seen:
            yield below
            seen.add(below)
            node = below

    def with_root(self, disk: str, node: str) -> OpenImages:
        """The same state, except that the disk reads from that node."""
        return replace(self, roots=Frozen({**self.roots, disk: node}))

    def _added(self, step: Step) -> OpenImages:
        """The state after a step that opens an image by `blockdev-add`."""
        node, file, below = (step.arguments.get(word, "") for word in ("node-name", "file", "backing"))
        file_nodes = {node: file["node-name"]} if "node-name" in file else {}
        return replace(
            self,
            files=Frozen({**self.files, node: file["filename"]}),
            file_nodes=Frozen({**self.file_nodes, **file_nodes}),
            below=Frozen({**self.below, node: below}) if below else self.below,
        )
