"""Every parameter of every public method is looked at before QEMU is asked anything at all."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qmpsnap
from qmpsnap.errors import BadArgument, BadName, Changed, CommandFailed, Refused
from qmpsnap.jobs import Jobs
from qmpsnap.plan.intent import Delete
from qmpsnap.testing.server import serve
from qmpsnap.vm import VM
from tests.each import each
from tests.headers import qcow2_bytes
from tests.run.operations import MACHINE, machine, vm_of

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.timeout(60)

NAN = float("nan")
# What none of these parameters takes. A path is taken as a str or as anything that gives a str.
NAME = ("", None, 1, b"vda", "a\0b", "\ud800", ["vda"], Path("vda"))
MOMENT = NAME
NEW = ("", None, 1, b"n", "a\0b", "../n", "a b", "n\n", "x" * 65)
MAYBE = tuple(one for one in NAME if one is not None)
NAMES = ("vda", b"vda", None, 1, [1], [""], [None], [b"vda"], ["a\0b"], {"vda": "x"})
PATH = ("", None, 1, b"/x", "/a\0b", "/\ud800", Path)
PATHS = ("/x", b"/x", None, 1, [""], [None], [b"/x"], ["/a\0b"])
FILES = (
    "vda",
    ["vda"],
    1,
    {"vda": ""},
    {"vda": None},
    {"vda": b"/x"},
    {"vda": "/a\0b"},
    {"": "/x"},
    {1: "/x"},
)
FLAG = (None, 1, 0, "no", "", b"")
COUNT = (0, -1, 1.5, "2", True)
SPEED = (-1, 1.5, NAN, "100", None, True, 1 << 63)
SECONDS = (-1.0, NAN, "1", None, True)
WORD = ("", None, 1, b"stop", "STOP", "stopp", ["stop"])
MAYBE_WORD = tuple(one for one in WORD if one is not None)
HOOKS = (1, "x", lambda progress: progress)
CALLED = (None, 1, "x")
OTHER = (None, 1, "snapshot", b"", Delete)

JOB = {"job_id": NAME, "foreign": FLAG}
RUNS: Mapping[str, Any] = {"hooks": HOOKS}
QUEUES: Mapping[str, Any] = {"wait": FLAG, "hooks": HOOKS}
COPIES = {"on_error": WORD, "speed": SPEED, "plain": FLAG, "wait": FLAG, "hooks": HOOKS}
REMOVES = {"keep_files": FLAG, "look_in": PATHS}
# Of each method a call that is right, and what is wrong for each of its parameters.
METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "snapshot": (
        {"name": "n1"},
        {
            "name": NEW,
            "disks": NAMES,
            "files": FILES,
            "use_existing": FLAG,
            "plain": FLAG,
            "inside": FLAG,
            **QUEUES,
        },
    ),
    "stream": ({"disk": "vda"}, {"disk": NAME, "base": MAYBE, "into": MAYBE, **COPIES}),
    "commit": (
        {"disk": "vda"},
        {
            "disk": NAME,
            "top": MAYBE,
            "base": MAYBE,
            "keep_overlay": FLAG,
            "look_in": PATHS,
            "invalidate": PATHS,
            "folded": (*WORD, "delete"),
            "discard_internal": FLAG,
            **COPIES,
        },
    ),
    "mirror": (
        {"disk": "vda", "target": "/c", "ending": "pivot"},
        {
            "disk": NAME,
            "target": PATH,
            "ending": (*WORD, "pvot"),
            "sync": WORD,
            "format": (*MAYBE_WORD, "vmdk"),
            "use_existing": FLAG,
            "discard_internal": FLAG,
            **COPIES,
        },
    ),
    "delete": ({"name": "old"}, {"name": MOMENT, "via": MAYBE_WORD, **REMOVES, **QUEUES}),
    "prune": (
        {"keep_last": 2},
        {"keep_last": (None, *COUNT), "max_depth": COUNT, "disks": NAMES, **REMOVES, **QUEUES},
    ),
    "checkpoint": (
        {"name": "n1"},
        {
            "name": NEW,
            "mode": (*WORD, "inplace"),
            "memory": tuple(one for one in PATH if one is not None),
            "leave": (*NAMES, ["vda"]),
            "via": ("hmp", "x", 1),
            "launcher": (print, 1, "x"),
            "wait": FLAG,
            "plain": FLAG,
            **RUNS,
        },
    ),
    "make_store": (
        {"name": "old", "launcher": print},
        {"name": MOMENT, "launcher": CALLED, **RUNS},
    ),
    "freeze_template": (
        {"directory": "/t", "launcher": print},
        {"directory": PATH, "name": ("", *NEW[2:]), "of": MAYBE, "launcher": CALLED},
    ),
    "fork": (
        {"count": 1, "launcher": print},
        {
            "count": COUNT,
            "of": MAYBE,
            "launcher": CALLED,
            "directory": tuple(one for one in PATH if one is not None),
            "wake": ("date", 3),
        },
    ),
    "diagnose": ({}, {"agent": tuple(one for one in PATH if one is not None)}),
    "records_in": ({"directory": "/t"}, {"directory": PATH}),
    "revert": (
        {"name": "old"},
        {
            "name": MOMENT,
            "leave": NAMES,
            "discard": FLAG,
            "via": MAYBE_WORD,
            "into": (*WORD, "old"),
            "wake": ("date", 3),
            **QUEUES,
        },
    ),
    "open": (
        {"name": "old"},
        {"name": MOMENT, "disk": MAYBE, "fuse": tuple(one for one in PATH if one is not None)},
    ),
    "backup": (
        {"directory": "/b"},
        {"directory": PATH, "disks": NAMES, "speed": SPEED, "hooks": HOOKS},
    ),
    "plan_backup": ({"directory": "/b"}, {"directory": PATH, "disks": NAMES}),
    "picture": ({}, {"disks": NAMES}),
    "views": ({"name": "old"}, {"name": MOMENT, "disks": NAMES}),
    "reverted": (
        {"name": "old", "launcher": print},
        {"name": MOMENT, "launcher": CALLED, "wake": ("date", 3)},
    ),
    "save": ({"file": "/m"}, {"file": PATH, "plain": FLAG, **QUEUES}),
    "restore": ({"file": "/m"}, {"file": PATH, **QUEUES}),
    "plan": ({"intent": Delete("old")}, {"intent": OTHER}),
    "when_idle": ({"intent": Delete("old")}, {"intent": OTHER}),
    "do": ({"intent": Delete("old")}, {"intent": OTHER, **QUEUES}),
    "run": ({"plan": None}, {"plan": OTHER}),
    "jobs.plan": ({"job_id": "j"}, {"job_id": NAME}),
    "jobs.get": ({"job_id": "j"}, JOB),
    "jobs.finish": ({"plan": None}, {"plan": OTHER}),
    "jobs.wait": ({"job_id": "j"}, {**JOB, **RUNS}),
    "jobs.pause": ({"job_id": "j"}, JOB),
    "jobs.resume": ({"job_id": "j"}, JOB),
    "jobs.cancel": ({"job_id": "j"}, JOB),
    "jobs.set_speed": ({"job_id": "j", "speed": 0}, {**JOB, "speed": SPEED}),
    "jobs.progress": ({"job_id": "j"}, {"job_id": NAME, "interval": SECONDS}),
    "why_paused": ({}, {"graph": (1, "x", Delete("old"))}),
    "watch": ({}, {"interval": SECONDS}),
    "jobs.places": ({}, {"graph": (1, "x", Delete("old"))}),
    "jobs.left_behind": ({}, {"graph": (1, "x", Delete("old"))}),
    "jobs.backups": ({}, {"graph": (1, "x", Delete("old"))}),
    "jobs.interrupted": ({}, {"graph": (1, "x", Delete("old")), "live": FLAG}),
    "execute": (
        {"command": "stop"},
        {
            "command": tuple(one for one in NAME if one != ["vda"]),
            "arguments": (1, "x", ["x"], {1: "x"}, {"a": b"x"}, {"a": NAN}, {"a": {"b": Path("x")}}),
        },
    ),
    "cont": ({}, {"after_migration": FLAG}),
    "check_cont": ({}, {"after_migration": FLAG}),
    "events": ({"sink": print}, {"sink": CALLED}),
}
WITHOUT = {
    "check_stop",
    "schema",
    "status",
    "stop",
    "graph",
    "jobs.list",
    "moments",
    "wait_lost",
    "reconnect",
}  # parameters
ELSEWHERE = {("run", "hooks"), ("run", "wait"), ("jobs.finish", "hooks")}  # below: it needs a plan


class Silent:
    """A machine that must not be asked anything."""

    name = "vm"

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the machine was asked: {name}")


async def called(vm: VM, method: str, arguments: Mapping[str, Any]) -> None:
    """Call it, and enter or await what it returns."""
    returned = attrgetter(method)(vm)(**arguments)
    if isinstance(returned, AbstractAsyncContextManager):
        async with returned:
            return
    if inspect.isawaitable(returned):
        await returned


def public() -> dict[str, inspect.Signature]:
    found = [(name, function) for name, function in inspect.getmembers(VM, inspect.isfunction)]
    found += [(f"jobs.{name}", function) for name, function in inspect.getmembers(Jobs, inspect.isfunction)]
    return {
        name: inspect.signature(function)
        for name, function in found
        if not name.rpartition(".")[2].startswith("_")
    }


def test_table_names_every_parameter_of_every_public_method() -> None:
    named = {(method, name) for method, (_, wrong) in METHODS.items() for name in wrong} | ELSEWHERE
    there = {(method, name) for method, how in public().items() for name in how.parameters if name != "self"}
    assert named == there
    assert set(public()) == set(METHODS) | WITHOUT


@each("method", METHODS)
async def test_method_refuses_a_wrong_argument_and_asks_nothing(method: str) -> None:
    right, wrong = METHODS[method]
    vm = vm_of(Silent())  # type: ignore[arg-type]
    taken = []
    for parameter, values in wrong.items():
        for value in values:
            try:
                await called(vm, method, {**right, parameter: value})
            except BadName as error:
                refused = error.changed is Changed.NO
            except BadArgument as error:
                refused = error.changed is Changed.NO and error.parameter == parameter in error.message
            except (AssertionError, TypeError, ValueError) as error:
                taken.append((parameter, value, repr(error)))
                continue
            else:
                refused = False
            if not refused:
                taken.append((parameter, value, "it was taken"))
    assert taken == []


async def test_run_refuses_wrong_hooks_and_asks_nothing() -> None:
    plan = await vm_of(machine("stream")).plan(qmpsnap.Stream("vda"))
    for hooks in HOOKS:
        with pytest.raises(BadArgument, match="hooks"):
            await vm_of(Silent()).run(plan, hooks)  # type: ignore[arg-type]
        rest = replace(plan, finishes="qmpsnap-stream-keep-0a1b2c3d")
        with pytest.raises(BadArgument, match="hooks"):
            await vm_of(Silent()).jobs.finish(rest, hooks)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="plan"):
        await vm_of(Silent()).jobs.finish(plan)  # type: ignore[arg-type]
    for wait in FLAG:
        with pytest.raises(BadArgument, match="wait"):
            await vm_of(Silent()).run(plan, wait=wait)  # type: ignore[arg-type]


@each("interval", SECONDS)
def test_hooks_take_no_wrong_interval(interval: Any) -> None:
    with pytest.raises(BadArgument, match="interval"):
        qmpsnap.Hooks(interval=interval)


async def test_closed_choice_names_the_words_that_are_taken() -> None:
    with pytest.raises(BadArgument, match="ending is 'pvot': give 'pivot' or 'finish'") as caught:
        await vm_of(Silent()).mirror("vda", "/c", ending="pvot")  # type: ignore[arg-type]
    assert caught.value.allowed == ("pivot", "finish")
    with pytest.raises(BadArgument) as caught:
        await vm_of(Silent()).checkpoint("c1", mode="inplace")  # type: ignore[arg-type]
    assert caught.value.allowed == ("stop", "background", "in-place", "internal")


async def test_checkpoint_takes_the_mode_internal_as_the_command_line_does() -> None:
    fake = machine("checkpoint-internal")
    done = await vm_of(fake).checkpoint("n1", mode="internal", leave=["vdb"], via="jobs")
    assert (done.op, done.chains) == ("checkpoint-internal", {"vda": MACHINE.disks["vda"].files})
    assert [one.name for one in fake.state.disks["vda"].active.snapshots] == ["n1"]
    assert [one.name for one in fake.state.disks["vdb"].active.snapshots] == ["old"]
    again = machine("checkpoint-internal")
    assert (await vm_of(again).checkpoint("n1", mode="internal")).op == "checkpoint-internal"
    assert again.files.names == machine("checkpoint-internal").files.names  # no file of memory


async def test_checkpoint_internal_keeps_no_memory_in_a_file() -> None:
    with pytest.raises(BadArgument, match="memory"):
        await vm_of(Silent()).checkpoint("n1", mode="internal", memory="/m")  # type: ignore[arg-type]


CONNECT: Mapping[str, Any] = {
    "address": ("", None, 1, b"/s", "/s\0", ("h",), ("h", "1"), ("h", 0), ("h", 1 << 16)),
    "shared_fs": (1, "yes", ""),
    "state_dir": ("", 1, b"/d", "/\0"),
    "pid": ("1", 1.0, True, 0, -1),
    "reply_limit": (0, *SECONDS),
    "greeting_limit": (0, *SECONDS),
    "name": (None, 1, b"vm"),
    "record": ("", 1, b"/r", "/\0"),
}
LAUNCH: Mapping[str, Any] = {
    "machine": ("qemu", b"qemu", None, 1, [], [1], [""], [b"qemu"], ["a\0"]),
    "start": ((), {}, "/d", 1),
    "qmp": ("", 1, b"/", "/\0"),
    "console_log": ("", 1, b"/", "/\0", "/log of no console"),
    "cwd": ("", 1, b"/", "/\0"),
    "env": ("A=1", ["A=1"], 1, {"A": 1}, {"A": None}, {1: "a"}, {"": "a"}, {"A=B": "a"}, {"A": "\0"}),
    "log": ("", 1, b"/", "/\0"),
    "state_dir": ("", 1, b"/d", "/\0"),
    "name": (None, 1, b"vm"),
    "record": ("", 1, b"/r", "/\0"),
}


async def test_connect_refuses_a_wrong_argument_and_sends_nothing(tmp_path: Path) -> None:
    assert set(inspect.signature(qmpsnap.connect).parameters) == set(CONNECT)
    async with serve(str(tmp_path / "s")) as server:
        for parameter, values in CONNECT.items():
            for value in values:
                with pytest.raises(BadArgument, match=parameter):
                    async with qmpsnap.connect(**{"address": server.path, parameter: value}):
                        pass
        assert server.received == []


@each("name", ["s", "@s", "tcp:s:1"])
async def test_connect_takes_a_path_object_and_never_as_another_kind_of_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with serve(str(tmp_path / name)) as server:
        with pytest.raises(CommandFailed, match="query-jobs"):  # it answers only the greeting
            async with qmpsnap.connect(Path(name)):
                pass
        assert server.received != []


async def test_launch_refuses_a_wrong_argument_and_starts_nothing(tmp_path: Path) -> None:
    assert set(inspect.signature(qmpsnap.launch).parameters) == set(LAUNCH)
    made = tmp_path / "made"
    for parameter, values in LAUNCH.items():
        for value in values:
            with pytest.raises(BadArgument, match=parameter):
                async with qmpsnap.launch(**{"machine": ["touch", str(made)], parameter: value}):
                    pass
    await asyncio.sleep(0)
    assert not made.exists()


OFFLINE: dict[str, tuple[object, ...]] = {
    "images": (
        1,
        "vda",
        {},
        {"vda": ""},
        {"vda": None},
        {"a b": "/x"},
        {"": "/x"},
        {1: "/x"},
        {"vda": b"/x"},
    ),
    "formats": ("raw", 1, {"vda": "vmdk"}, {"vdb": "raw"}, {"vda": None}),
    "allow_dirs": (*(one for one in PATHS if one is not None), None),
    "read_only": FLAG,
    "daemon": PATH,
    "state_dir": ("", 1, b"/d", "/\0"),
    "name": (None, 1, b"vm"),
    "record": ("", 1, b"/r", "/\0"),
    "disks": ("", 1, b"/x", None),
}


async def test_offline_refuses_a_wrong_argument_and_starts_nothing(tmp_path: Path) -> None:
    assert set(inspect.signature(qmpsnap.offline).parameters) == set(OFFLINE)
    image = tmp_path / "a.qcow2"
    image.write_bytes(qcow2_bytes())
    for parameter, values in OFFLINE.items():
        for value in values:
            options: dict[str, Any] = {"daemon": "/none"}
            images: Any = {"vda": image}
            match parameter:
                case "images":
                    images = value
                case "disks":
                    options["vdb"] = value
                case _:
                    options[parameter] = value
            with pytest.raises(BadArgument):
                async with qmpsnap.offline(images, **options):
                    pass
    with pytest.raises(BadArgument, match="two images"):
        async with qmpsnap.offline({"vda": image}, vda=image):
            pass


def test_bad_argument_is_a_refusal_and_a_value_error() -> None:
    error = BadArgument("no", parameter="p", value=b"x")
    assert isinstance(error, Refused)
    assert isinstance(error, ValueError)
    assert isinstance(BadName("no", name="x"), ValueError)
    assert error.exit_code == 3
    assert error.to_json()["value"] == "b'x'"
