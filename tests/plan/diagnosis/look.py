"""Facts for the rules: a healthy machine, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from qmpsnap.model.files import FileFact, Files
from qmpsnap.model.finding import Finding
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.header import Header
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.diagnosis.facts import Facts
from qmpsnap.plan.diagnosis.rules import diagnose
from qmpsnap.testing.drawing import graph
from tests.model.records import TIME, committing, stages, streaming

RUNNING = Status("running", running=True)
NONE = Moments((), Frozen())
CHAIN = graph(vda="base <- s1 <- s2*")
BASE, S1, S2 = (f"/images/{name}.qcow2" for name in ("base", "s1", "s2"))


def facts(there: Graph = CHAIN, **changed: Any) -> Facts:
    """A running machine with these disks, whose headers are as they should be."""
    layers = [layer for disk in there.disks.values() for layer in disk.layers]
    known = {layer.file: fact(layer.file, layer.backing, layer.backing_format) for layer in layers}
    whole = Facts(there, Files(shared=True, files=Frozen(known)), NONE, status=RUNNING)
    return replace(whole, **changed)


def fact(file: str, backing: str | None = None, form: str | None = None, **more: Any) -> FileFact:
    """A regular file with a qcow2 header."""
    header = Header("qcow2", 64 << 20, backing=backing, backing_format=form)
    return FileFact("regular", header=header, real=file, backing=backing, **more)


def with_file(seen: Facts, file: str, known: FileFact, **more: Any) -> Facts:
    """The facts with something else at a path."""
    files = replace(seen.files, files=Frozen({**seen.files.files, file: known}), **more)
    return replace(seen, files=files)


def only(seen: Facts) -> Finding:
    """The one thing that is found."""
    (found,) = diagnose(seen)
    return found


def codes(seen: Facts) -> list[tuple[str, str]]:
    """What is found: codes and subjects."""
    return [(found.code, found.subject) for found in diagnose(seen)]


def left(**changed: Any) -> IntentRecord:
    """The record of a stream of vda whose client is gone."""
    job = "qmpsnap-stream-keep-0a1b2c3d"
    steps = stages(streaming(job, above=S2, base=None), tidy=(finish_record("/images/base.qmpsnap", (job,)),))
    record = IntentRecord(
        job, "stream", TIME, chains={"vda": (S2, S1, BASE)}, after={"vda": (S2,)}, stages=steps
    )
    return replace(record, **changed)


def commit_left(*, kept: bool) -> IntentRecord:
    """The record of a commit of s1 into base; `kept`: of s2 into base, which kept its overlay."""
    job = f"qmpsnap-commit-{'copy' if kept else 'keep'}-0a1b2c3d"
    tidy = () if kept else (finish_record("/images/base.qmpsnap", (job,)),)
    return IntentRecord(
        job,
        "commit",
        TIME,
        chains={"vda": (S2, S1, BASE)},
        after={"vda": (S2, S1, BASE) if kept else (S2, BASE)},
        stages=stages(committing(job, above="" if kept else S2, base=BASE), tidy=tidy),
        folded=() if kept else (S1,),
        invalid=(S1, BASE) if kept else (BASE,),
    )
