"""A client that kills itself, forked for each order (`forking.py`); see `test_kill.py`.

An order is {"socket", "images", "qemu", "case", "folder", "point", "delay"}: run the case
there, or if there is no such case, take a backup into a directory of that name, and die by SIGKILL at that
point of its steps, or so many seconds after it. One with "store" instead of "case" makes the store of the
checkpoint of that name; the point is then the number of a step that its helper has done. One with "template"
makes a template of the guest in that directory; its points are those of the machine's steps, of the helper's,
and before and after each piece of work on files. One with "fork" forks the guest into one child, with
temporary files in that directory ("": where they are by default); its points are the same, with those of the
child's steps. It exits with 0 when the operation has fewer points.

An order {"socket", "qemu", "end", "point"} finishes the interrupted operation of that id.

An order {"group": {NAME: SOCKET}, "intent", "victim", "point"} takes a moment of a group, or reverts to it,
and counts the steps of one machine, the victim.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import AsyncExitStack

import qmpsnap
import qmpsnap.fork
import qmpsnap.template_making
from integration.cases import CASES
from integration.harness import copies_counted, kill_me, stepped, stepped_offline
from integration.helpers import launcher
from integration.known_images import QEMUS
from qmpsnap import own_checkpoint
from qmpsnap.run import keepers, scratch


async def run(order):
    def at(point):
        if point == order["point"] and order.get("delay"):
            threading.Timer(order["delay"], kill_me).start()
        elif point == order["point"]:
            kill_me()

    if "group" in order:
        await run_group(order, at)
        return
    # PATH may begin with one of the matrix, which is then in it twice.
    qemu = next(qemu for qemu in QEMUS if qemu.version == order["qemu"])
    if "store" in order:
        async with qmpsnap.connect(order["socket"]) as vm:
            helper = launcher(qemu, at=lambda _, __, number: at(number))
            await vm.make_store(order["store"], launcher=helper)
        return
    if "template" in order or "fork" in order:
        await many_points(order, qemu, at)
        return
    if "end" in order:
        async with stepped(order["socket"], at) as vm:
            await vm.jobs.wait(order["end"])
        return
    images = order["images"]
    machine = stepped_offline(qemu, images, at) if images else stepped(order["socket"], at)
    async with machine as vm:
        if order["case"] in CASES:
            await vm.run(await vm.plan(CASES[order["case"]].intent(order["folder"])))
        else:
            with copies_counted(vm._target):
                await vm.backup(f"{order['folder']}/{order['case']}")


async def many_points(order, qemu, at):
    numbers = itertools.count()

    def passed(*_):
        at(next(numbers))

    def counted(work):
        async def run(*arguments):
            passed()
            done = await work(*arguments)
            passed()
            return done

        return run

    modules = (
        [qmpsnap.template_making]
        if "template" in order
        else [qmpsnap.template, qmpsnap.template_making, qmpsnap.fork, own_checkpoint, keepers, scratch]
    )
    for module, name in itertools.product(modules, ("in_thread", "made_in_thread")):
        if hasattr(module, name):
            setattr(module, name, counted(getattr(module, name)))
    async with stepped(order["socket"], passed) as vm:
        start = launcher(qemu, at=passed)
        if "template" in order:
            await vm.freeze_template(order["template"], launcher=start)
            return
        async with vm.fork(1, launcher=start, directory=order["fork"] or None) as children:
            passed()
            async for child in children:
                assert child.error is None
            passed()


async def run_group(order, at):
    async with AsyncExitStack() as stack:
        machines = {
            name: await stack.enter_async_context(
                stepped(sock, at if name == order["victim"] else lambda _: None)
            )
            for name, sock in order["group"].items()
        }
        group = qmpsnap.Group(machines)
        moments = {"disks": qmpsnap.Snapshot("s"), "revert": qmpsnap.Revert("s")}
        intent = moments.get(order["intent"]) or qmpsnap.Checkpoint("s", order["intent"])
        await group.run(await group.plan(intent))
