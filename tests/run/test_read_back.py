from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Changed, Incomplete
from qmpsnap.model.files import OpenFile
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.run.read_back import check_files, look_back
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.each import each
from tests.plan.scenes import planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan

T = graph(vda="base <- s1 <- s2 <- s3*")
BASE, S1, S2, S3 = (f"/images/{name}.qcow2" for name in ("base", "s1", "s2", "s3"))
NEW = "/images/new.qcow2"


def after(intent: Intent, *, shared: bool = True) -> tuple[FakeTarget, Plan]:
    """A machine on which the plan was run, and the plan."""
    plan = planned(intent, T)
    assert plan.after is not None
    target = FakeTarget(plan.after)
    target.files.shared = shared
    target.files.put(NEW)
    for file, below in plan.headers.items():
        target.files.put(file, backing=below or None)
    return target, plan


async def read_back(target: FakeTarget, plan: Plan, now: Graph) -> None:
    check_files(plan, now, await look_back(target, plan, now))


CASES: list[tuple[Intent, dict[str, str]]] = [
    (Snapshot("one"), {"/images/base.one.qcow2": S3}),
    (Commit("vda", top="s2", base="base"), {S3: BASE}),
    (Commit("vda"), {}),
    (Commit("vda", keep_overlay=True), {}),
    (Stream("vda", base="s1"), {S3: S1}),
    (Stream("vda"), {S3: ""}),
    (Mirror("vda", NEW, "pivot"), {NEW: ""}),
    (Mirror("vda", NEW, "pivot", "top"), {NEW: S2}),
    (Mirror("vda", NEW, "finish"), {}),
]


@each(("intent", "headers"), CASES)
async def test_headers_that_were_written_are_read_back(intent: Intent, headers: dict[str, str]) -> None:
    target, plan = after(intent)
    assert plan.headers == headers
    assert plan.after is not None
    await read_back(target, plan, plan.after)
    for file in headers:
        target.files.put(file, backing="elsewhere/x.qcow2")
        with pytest.raises(Incomplete, match=rf"the header of {file} .*'elsewhere/x.qcow2'") as error:
            await read_back(target, plan, plan.after)
        assert error.value.changed is Changed.YES
        assert error.value.hint.endswith(f"then finish it: qmpsnap job wait {plan.operation_id}")


@each(("intent", "headers"), CASES)
async def test_files_that_were_made_have_to_be_there(intent: Intent, headers: dict[str, str]) -> None:
    target, plan = after(intent)
    assert plan.after is not None
    for file in {*headers, *plan.copies_made}:
        there = target.files.facts.pop(file)
        with pytest.raises(Incomplete, match=f"there is no {file}"):
            await read_back(target, plan, plan.after)
        target.files.facts[file] = there
        for state in ("moved", "unlinked"):
            target.files.open[file] = OpenFile(file, state, "", 1, 7)
            with pytest.raises(Incomplete, match=f"{file} is not the file that QEMU has open"):
                await read_back(target, plan, plan.after)
        del target.files.open[file]


@each(
    ("drawn", "intent", "file", "hint"),
    [
        (
            "base <- s1 <- s2 <- s3*",
            Commit("vda", top="s2", base="base"),
            S3,
            (
                "while this QEMU runs: qmpsnap qmp change-backing-file"
                ' \'{"device": "vda-s3", "image-node-name": "vda-s3", "backing-file": "/images/base.qcow2"}\''
            ),
        ),
        (
            "base.raw <- s1 <- s2*",
            Stream("vda", base="base.raw"),
            S2,
            "once this QEMU has ended: qemu-img rebase -u -F raw -b /images/base.raw /images/s2.qcow2",
        ),
        (
            "base <- s1*",
            Stream("vda"),
            S1,
            "once this QEMU has ended: qemu-img rebase -u -b '' /images/s1.qcow2",
        ),
    ],
)
async def test_the_hint_is_a_line_to_type_that_corrects_the_header(
    drawn: str, intent: Intent, file: str, hint: str
) -> None:
    plan = planned(intent, graph(vda=drawn))
    assert plan.after is not None
    target = FakeTarget(plan.after)
    for name, below in plan.headers.items():
        target.files.put(name, backing=below or None)
    target.files.put(file, backing="/images/elsewhere.qcow2")
    with pytest.raises(Incomplete) as error:
        await read_back(target, plan, plan.after)
    assert error.value.hint == f"{hint}, then finish it: qmpsnap job wait {plan.operation_id}"


async def test_nothing_is_said_of_files_that_are_not_visible() -> None:
    target, plan = after(Commit("vda", top="s2", base="base"), shared=False)
    assert plan.after is not None
    await read_back(target, plan, plan.after)


async def test_what_was_changed_again_since_is_left_alone() -> None:
    target, plan = after(Commit("vda", top="s2", base="base"))
    target.files.put(S3)  # streamed by somebody else
    await read_back(target, plan, graph(vda="s3*"))


def test_headers_of_an_earlier_run_are_those_that_it_changed() -> None:
    plan = planned(Commit("vda", top="s2", base="base"), T)
    there = graph(vda="base <- s3*")
    rest = replace(
        plan,
        intent=None,
        before=there,
        after=None,
        expect=MappingProxyType(plan.chains_after),
        began=MappingProxyType(plan.chains_before),
    )
    assert rest.headers == {S3: BASE}
    assert replace(rest, began=MappingProxyType({})).headers == {}
