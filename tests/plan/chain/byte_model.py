"""What the layers of a fake machine hold, block by block, as the steps of plans change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qmpsnap.model.step import DropLayers, Later

if TYPE_CHECKING:
    from qmpsnap.model.step import Step
    from qmpsnap.testing.fake import FakeTarget

BLOCKS = 4


@dataclass
class Bytes:
    """The images of a fake machine.

    Attributes:
        fake: The machine; `follow` is what it has to call before each step.
        data: Blocks that were written to each image, by its path.
        backing: The image that each is backed by, as its header says; none for a base.
    """

    fake: FakeTarget
    data: dict[str, dict[int, int]] = field(default_factory=dict)
    backing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for disk in self.fake.state.disks.values():
            for file, below in zip(disk.files, (*disk.files[1:], None), strict=True):
                self._add(file, below)

    def follow(self, step: Step) -> None:
        """Do to the images what the step is about to do to them."""
        arguments = step.arguments
        match step.command:
            case "create-overlay":
                self._add(arguments["file"], arguments["backing"])
            case "block-stream":
                assert isinstance(step.effect, DropLayers)
                above, base = step.effect.above, step.effect.base
                for file in self._between(above, base):
                    self.data[above] = self.data[file] | self.data[above]
                self._back(above, base)
            case "block-commit" if isinstance(step.effect, DropLayers):
                above, base = step.effect.above, str(step.effect.base)
                self._commit(self._between(above, base), base)
                self._back(above, base)
            case "block-commit":
                assert isinstance(step.effect, Later)
                top = self.fake.state.nodes[arguments["top-node"]].file
                base = step.effect.effect.root.file
                self._commit([top, *self._between(top, base)], base)
            case "retire-file" if arguments["policy"] != "keep":
                del self.data[arguments["file"]]

    def read(self, file: str) -> list[int]:
        """What the image reads, through all that it is backed by."""
        blocks: dict[int, int] = {}
        below: str | None = file
        while below is not None:
            blocks = self.data[below] | blocks
            below = self.backing.get(below)
        return [blocks.get(block, 0) for block in range(BLOCKS)]

    def _add(self, file: str, backing: str | None) -> None:
        assert file not in self.data
        self.data[file] = {}
        self._back(file, backing)

    def _back(self, file: str, backing: str | None) -> None:
        self.backing.pop(file, None)
        if backing is not None:
            self.backing[file] = backing

    def _between(self, above: str, base: str | None) -> list[str]:
        found = []
        below = self.backing.get(above)
        while below != base:
            assert below is not None
            found.append(below)
            below = self.backing.get(below)
        return found

    def _commit(self, folded: list[str], base: str) -> None:
        for file in reversed(folded):
            self.data[base] |= self.data[file]
