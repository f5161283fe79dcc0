"""A file system that exists in memory only, for planners' tests and for the fake target.

It holds the images of a drawn graph; every directory exists and is writable unless set otherwise. `look`
answers a planner's questions, `perform` performs the steps on files.
"""

from __future__ import annotations

import posixpath

from msgspec import convert
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.files import Ask, BackingLink, DirFact, FileFact, Files, OpenFile
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.header import Header, backing_path
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import LayerState, MemoryFact, MemoryNote
from qmpsnap.model.names import is_invalid_name
from qmpsnap.model.record import IntentRecord, MomentRecord, Record, moment_of
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.records import changed

__all__ = ["FakeFiles"]

MIB = 1024 * 1024
LATER = 2.0**32  # seconds since 1970, in the year 2106
_ON_MOMENTS = frozenset({"keep-branch", "keep-link", "keep-lost", "keep-continued", "keep-place"})


class FakeFiles:
    """Files of a drawn graph.

    Args:
        graph: Its layers become images, each backed by the one below.
        shared: Whether they are visible; if not, `look` says only that.

    Attributes:
        facts: The files, by path; add and remove at will.
        directories: Unusual directories, by path.
        records: Intent and moment records, each in its directory.
        links: Directories of records, each with another one that it leads to.
        unreadable: What a survey could not read, as "PATH: REASON".
        memories: VM state files, by path.
        open: What QEMU has open under a name, if that is unusual, by path.
        readers: Files, each with the name of a moment in it that a client of ours reads.
    """

    def __init__(self, graph: Graph, *, shared: bool = True) -> None:
        self.shared = shared
        self.facts: dict[str, FileFact] = {}
        self.directories: dict[str, DirFact] = {}
        self.records: list[Record] = []
        self.links: set[tuple[str, str]] = set()
        self.unreadable: tuple[str, ...] = ()
        self.memories: dict[str, MemoryFact] = {}
        self.open: dict[str, OpenFile] = {}
        self.readers: frozenset[tuple[str, str]] = frozenset()
        self.follow(graph)

    @property
    def names(self) -> tuple[str, ...]:
        """Every file, sorted."""
        return tuple(sorted(self.facts))

    def put(
        self,
        path: str,
        *,
        format: str = "qcow2",  # noqa: A002 - QEMU's word
        size_bytes: int = 64 * MIB,
        backing: str | None = None,
        backing_format: str | None = None,
    ) -> None:
        """Put an image there, replacing what was there.

        Args:
            path: Absolute path.
            format: Only "qcow2" has a header that we read.
            size_bytes: What a guest sees.
            backing: Backing file as the header records it.
            backing_format: Its format as recorded; None: "qcow2" if there is a backing file.
        """
        header, resolved = None, None
        if format == "qcow2":
            below = (backing_format or "qcow2") if backing else None
            header = Header(format, size_bytes, backing=backing, backing_format=below)
            real = backing_path(backing, of=path) if backing else None
            resolved = posixpath.normpath(real) if real else None
        size = 196_616 if header else size_bytes
        modified = self.facts[path].modified if path in self.facts else 1.0
        self.facts[path] = FileFact(
            "regular",
            size,
            header=header,
            real=path,
            backing=resolved,
            modified=modified,
            modified_ns=int(modified) * 10**9,
        )

    def touch(self, path: str) -> None:
        """Mark a file as written later than any record; what `put` creates is older than all."""
        if path in self.facts:
            self.facts[path] = replace(self.facts[path], modified=LATER, modified_ns=int(LATER) * 10**9)

    def follow(self, graph: Graph) -> None:
        """Make the images' headers agree with the graph, as QEMU writes them."""
        for disk in graph.disks.values():
            for layer in disk.layers:
                if layer.file.startswith("/"):
                    self.put(
                        layer.file,
                        format=layer.format,
                        size_bytes=layer.virtual_size,
                        backing=layer.backing,
                        backing_format=layer.backing_format,
                    )

    def look(self, ask: Ask) -> Files:
        """Answer a planner's question."""
        if not self.shared:
            return Files(open=Frozen(dict(self.open)))
        missing = {path: FileFact("missing", real=path) for path in ask.files if path not in self.facts}
        places = {*ask.records, *(to for place, to in self.links if place in ask.records)}
        links = {
            BackingLink(fact.real, fact.backing)
            for path, fact in self.facts.items()
            if fact.backing is not None
            and not is_invalid_name(path)
            and (path in ask.files or posixpath.dirname(path) in ask.survey)
        }
        return Files(
            shared=True,
            files=Frozen({path: self.facts[path] for path in ask.files if path in self.facts} | missing),
            directories=Frozen({path: self._directory(path) for path in ask.directories}),
            backing_links=tuple(sorted(links)),
            looked_in=ask.survey,
            images=Frozen(
                {
                    fact.real: fact
                    for path, fact in self.facts.items()
                    if posixpath.dirname(path) in ask.survey
                }
            ),
            unreadable=self.unreadable,
            records=tuple(record for record in self.records if record.directory in places),
            memories=Frozen({path: self._memory(path) for path in ask.memories}),
            fresh=frozenset(file for file, backing in ask.fresh if self._is_fresh(file, backing)),
            states=tuple(path for path in sorted(self.memories) if _among(path, ask.states)),
            readers=self.readers.intersection(ask.readers),
            open=Frozen(dict(self.open)),
        )

    def _directory(self, path: str) -> DirFact:
        exists = not path.endswith(".qmpsnap") or any(record.directory == path for record in self.records)
        return self.directories.get(
            path, DirFact(path, exists=exists, writable=exists, free_bytes=1024 * MIB)
        )

    def _is_fresh(self, path: str, backing: str) -> bool:
        """Whether it is backed by that file, or "" by none, and was never touched."""
        fact = self.facts.get(path)
        return fact is not None and (fact.backing or "") == backing and fact.modified < LATER

    def _memory(self, path: str) -> MemoryFact:
        if path in self.memories:
            return self.memories[path]
        size = self.facts[path].size if path in self.facts else -1
        header = self.facts[path].header if path in self.facts else None
        if header is not None and header.snapshot_count:
            states = (record.state for record in self.records if record.state is not None)
            tags = tuple(state.tag for state in states if state.file == path)
            return MemoryFact(path, size=size, problem="it is an image", tags=tags)
        return MemoryFact(path, size=size, problem="it does not end in a note of ours")

    def perform(self, step: Step) -> None:
        """Perform one step on files.

        Raises:
            TargetExists: When a file to be created, or a new name, exists.
            InvalidTarget: When there is no such record.
        """
        arguments = step.arguments
        match step.command:
            case "write-record":
                self.records.append(replace(step.detail["record"], directory=arguments["directory"]))
            case "finish-record":
                self.records = [record for record in self.records if not _finishes(step, record)]
            case "link-records":
                self.links.add((arguments["place"], arguments["directory"]))
            case "keep-store":
                self._keep_store(step)
            case "keep-moment":
                self._keep(arguments["directory"], arguments["id"])
            case "create-overlay":
                self._refuse_taken(arguments["file"])
                self.put(
                    arguments["file"],
                    size_bytes=arguments["size_bytes"],
                    backing=arguments["backing"],
                    backing_format=arguments["backing_format"],
                )
            case "create-image":
                self._refuse_taken(arguments["file"])
                self.put(arguments["file"], format=arguments["format"], size_bytes=arguments["size_bytes"])
            case "create-file" | "create-memory" | "create-store":
                self._refuse_taken(arguments["file"])
                form = "qcow2" if step.command == "create-store" else "raw"
                self.put(arguments["file"], format=form, size_bytes=0)
            case "retire-file" if arguments["policy"] == "rename":
                self._refuse_taken(arguments["to"])
                fact = self.facts.pop(arguments["file"])
                self.facts[arguments["to"]] = replace(fact, real=arguments["to"])
            case "apply-snapshot" | "reserve-memory":  # the fake's files have no contents
                pass
            case "retire-file" if arguments["policy"] == "keep":
                pass
            case "remove-scratch":  # nor has it temporary files
                pass
            case "retire-file" | "remove-file" | "remove-orphan" | "remove-state":
                self.facts.pop(arguments["file"], None)
                self.memories.pop(arguments["file"], None)
            case "seal-memory" | "seal-store":
                self._seal(step)
            case _:
                self._rewrite(step)

    def _rewrite(self, step: Step) -> None:
        """Perform one step on the record of a moment."""
        moment = self._moment(step.arguments["directory"], step.arguments["id"])
        after = changed(moment, step)
        assert step.command in _ON_MOMENTS, f"there is no action {step.command!r}"  # noqa: S101
        self.records[self.records.index(moment)] = after

    def _keep_store(self, step: Step) -> None:
        arguments = step.arguments
        moment = self._moment(arguments["directory"], arguments["id"])
        (made,) = [one.state for one in self.records if one.id == arguments["by"]]
        self.records[self.records.index(moment)] = replace(moment, state=made)
        self.facts.pop(arguments["instead_of"], None)
        self.memories.pop(arguments["instead_of"], None)

    def _keep(self, directory: str, id: str) -> None:  # noqa: A002 - a record's word
        for index, record in enumerate(self.records):
            if isinstance(record, IntentRecord) and record.id == id:
                self.records[index] = moment_of(record)
                return
        raise InvalidTarget(f"the record {id} no longer exists in {directory}", file=directory)

    def _seal(self, step: Step) -> None:
        file = step.arguments["file"]
        self._refuse_taken(file)
        fact = self.facts.pop(step.arguments["partial"])
        header = replace(fact.header, snapshot_count=1) if fact.header is not None else None
        self.facts[file] = replace(fact, real=file, size=4 * MIB, header=header)
        if step.command == "seal-memory":
            detail = step.detail
            layers = tuple(self._as_now(disk, layer) for disk, layer in detail["layers"])
            fingerprint = convert(detail["fingerprint"], Fingerprint)
            note = MemoryNote(detail["id"], detail["name"], 4 * MIB, detail["running"], fingerprint, layers)
            self.memories[file] = MemoryFact(file, 4 * MIB, note)

    def _as_now(self, disk: str, file: str) -> LayerState:
        fact = self.facts[file]
        return LayerState(disk, file, fact.inode, fact.size, fact.modified_ns)

    def _moment(self, directory: str, moment: str) -> MomentRecord:
        for record in self.records:
            if isinstance(record, MomentRecord) and record.id == moment:
                return record
        raise InvalidTarget(f"the moment {moment} no longer exists in {directory}", file=directory)

    def _refuse_taken(self, file: str) -> None:
        if file in self.facts:
            raise TargetExists(f"{file} exists already", file=file)


def _among(path: str, places: tuple[tuple[str, str], ...]) -> bool:
    """Whether a VM state file is in one of the places, each a directory with the prefix of its names."""
    where, name = posixpath.split(path)
    return any(where == directory and name.startswith(f"{stem}.") for directory, stem in places)


def _finishes(step: Step, record: Record) -> bool:
    arguments = step.arguments
    ids = arguments["ids"] if isinstance(record, IntentRecord) else arguments.get("moments", ())
    return record.directory == arguments["directory"] and record.id in ids
