"""Two machines in memory, and what is looked at afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from qmpsnap.group import Group
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import a_machine
from tests.run.operations import vm_of
from tests.run.states import COMMON

A, B = graph(vda="base <- a*"), graph(vda="base <- b*", vdb="data*")


@dataclass
class Two:
    """Two machines: `a` on one image, `b` on two; both stand on the same base image."""

    a: FakeTarget
    b: FakeTarget

    @classmethod
    def made(cls, *, b_runs: bool = True) -> Two:
        """Both as they begin."""
        return cls(
            FakeTarget(A, commands=COMMON),
            FakeTarget(B, commands=COMMON, machine=a_machine(B, running=b_runs)),
        )

    @property
    def group(self) -> Group:
        """The group, as a client sees it that has just connected."""
        return Group({"a": vm_of(self.a), "b": vm_of(self.b)})

    @property
    def machines(self) -> tuple[FakeTarget, FakeTarget]:
        return self.a, self.b

    def world(self) -> tuple[object, ...]:
        """What must be as before after a failure: the chains, the files, and who runs."""
        return tuple(
            (machine.state.chains(), frozenset(machine.files.names), machine.guest.now.running)
            for machine in self.machines
        )

    async def listed(self) -> list[tuple[str, bool]]:
        """Each moment of the group, and whether it is complete; demand that nothing is interrupted."""
        for vm in self.group.machines.values():
            assert await vm.jobs.interrupted() == ()
        return [(moment.name, moment.complete) for moment in await self.group.moments()]
