"""Drawn scenes for planners' tests: a graph, its files, and who else is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.step import MoveRoot, PutOverlays
from qmpsnap.plan import planner
from qmpsnap.plan.record_places import state_questions, with_parents
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.testing.drawing import graph as drawn
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS, a_machine

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph, Layer
    from qmpsnap.model.machine import Machine
    from qmpsnap.model.step import Overlay, Root, Step
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan

NOW = "2024-05-01T12:00:00.000000+00:00"
STATE = "/images/base.qmpsnap"
ONE_DISK = drawn(vda="base <- s1*")


def planned(
    intent: Intent,
    graph: Graph,
    *,
    files: FakeFiles | None = None,
    jobs: tuple[Job, ...] = (),
    commands: frozenset[str] = COMMANDS,
    state_dir: str = "",
    machine: Machine | None = None,
    off: bool = False,
) -> Plan:
    """What the planner makes of an intent, asked as `VM.plan` asks it."""
    files = files or FakeFiles(graph)
    found = files.look(planner.ask(intent, graph, state_dir=state_dir, off=off))
    more = planner.ask_again(intent, graph, found, state_dir=state_dir, off=off)
    if more is not None:
        found = files.look(more)
    facts = graph, found, jobs, Features(commands), NOW, state_dir
    if planner.works_on(intent, off=off) == "guest":
        return planner.plan(intent, GuestScene(*facts, machine=machine or a_machine(graph)))
    return planner.plan(intent, Scene(*facts), off=off)


def started(plan: Plan) -> Step:
    """The step that starts the plan's job."""
    assert plan.start is not None
    return plan.start


def root_of(step: Step) -> Root:
    """What a disk reads after the step."""
    assert isinstance(step.effect, MoveRoot)
    return step.effect.root


def overlays_of(step: Step) -> tuple[Overlay, ...]:
    """The overlays that the step puts on."""
    assert isinstance(step.effect, PutOverlays)
    return step.effect.overlays


def unseen(graph: Graph) -> FakeFiles:
    """Files that cannot be seen from here."""
    return FakeFiles(graph, shared=False)


def with_layer(disk: Disk, index: int, **changes: object) -> Disk:
    """The disk with one layer changed; 0 is the active one."""
    layers: list[Layer] = list(disk.layers)
    layers[index] = replace(layers[index], **changes)
    return replace(disk, layers=tuple(layers))


def job(job_id: str, kind: str = "mirror", status: JobStatus = JobStatus.RUNNING) -> Job:
    """A job of that kind."""
    return Job(job_id, kind, status, ready=status is JobStatus.READY)


def scene(
    of: Graph = ONE_DISK, *, files: FakeFiles | None = None, jobs: tuple[Job, ...] = (), state_dir: str = ""
) -> Scene:
    """What a planner knows of the graph, with the records that may lie beside its disks."""
    places = state_questions(of, state_dir)
    ask = Ask(directories=with_parents(places), records=places)
    return Scene(
        of,
        (files or FakeFiles(of)).look(ask),
        jobs,
        Features(frozenset({"human-monitor-command"})),
        NOW,
        state_dir,
    )


def encrypted(drawing: str) -> tuple[Graph, FakeFiles]:
    """A machine with one disk, all of whose layers are encrypted with the secret `sec0`, and its files."""
    of = drawn(vda=drawing)
    disk = of.disks["vda"]
    layers = tuple(replace(layer, encrypted=True, secret="sec0") for layer in disk.layers)
    of = replace(of, disks=Frozen(vda=replace(disk, layers=layers)))
    files = FakeFiles(of)
    for layer in layers:
        files.facts[layer.file] = replace(files.facts[layer.file], luks=True, device=1, inode=2)
    return of, files
