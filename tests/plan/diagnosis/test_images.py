from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.files import FileFact
from qmpsnap.model.finding import Finding
from qmpsnap.model.frozen import Frozen
from qmpsnap.plan.diagnosis.facts import Broken
from qmpsnap.testing.drawing import graph
from tests.plan.diagnosis.look import fact, facts, only

TOP, LOW = "/new/top.qcow2", "/old/low.qcow2"
RAW = FileFact("regular", size=512)
QCOW2 = fact(LOW)


def found_in(*files: tuple[str, FileFact], near: tuple[str, ...] = (), hint: str = "") -> Finding:
    """What is found of a chain that was refused."""
    broken = Broken("vda", "it was refused", hint, files, near)
    return only(facts(graph(), status=None, broken=(broken,)))


def test_a_backing_file_is_found_by_its_name() -> None:
    over = (TOP, fact(TOP, LOW, "qcow2"))
    found = found_in(over, (LOW, FileFact("missing")), near=("/new/low.qcow2", TOP))
    assert (found.code, found.subject) == ("backing-missing", TOP)
    assert found.remedy == (
        "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "/new/low.qcow2", "-F", "qcow2", TOP,
    )  # fmt: skip
    found = found_in(over, (LOW, FileFact("symlink")), near=("/a/low.qcow2", "/b/low.qcow2"))
    assert (found.remedy, found.advice[:19]) == ((), "move the file back,")


@pytest.mark.parametrize(
    ("backing", "known", "form"),
    [
        (LOW, QCOW2, "qcow2"),
        ("/old/low.raw", RAW, "raw"),
        ("/old/low.img", QCOW2, ""),  # a guest may have written the header
        (LOW, RAW, ""),
        (LOW, replace(RAW, problem="truncated"), ""),
    ],
)
def test_a_format_is_recorded_if_it_is_certain(backing: str, known: FileFact, form: str) -> None:
    found = found_in((TOP, fact(TOP, backing)), (backing, known))
    assert (found.code, found.subject) == ("format-missing", TOP)
    words = ("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", form, TOP)
    assert found.remedy == (words if form else ())


def test_commands_in_advice_are_quoted() -> None:
    top, low = "/new/a top.qcow2", "/old/low; reboot"  # the header's word
    found = found_in((top, fact(top, low)), (low, QCOW2))
    assert found.advice.endswith(
        "qemu-img rebase -u -f qcow2 -b '/old/low; reboot' -F qcow2 '/new/a top.qcow2'; else with -F raw"
    )
    found = found_in((top, fact(top, low, "raw")), (low, FileFact("missing")))
    assert found.advice.endswith("qemu-img rebase -u -f qcow2 -b NEW -F raw '/new/a top.qcow2'")


def test_a_raw_image_that_is_called_qcow2_is_called_raw() -> None:
    found = found_in((TOP, fact(TOP, "low", "qcow2")), ("/new/low", RAW))
    assert (found.code, found.remedy[-3:]) == ("format-wrong", ("-F", "raw", TOP))


def test_any_other_refusal_is_passed_on() -> None:
    found = found_in((TOP, fact(TOP)), hint="do that")
    assert (found.code, found.subject, found.cause, found.advice) == (
        "image-refused", "vda", "it was refused", "do that",
    )  # fmt: skip
    assert found_in((TOP, fact(TOP))).advice.startswith("no command mends that")


def test_a_damaged_image_is_repaired_unless_it_is_truncated() -> None:
    found = only(facts(status=None, damaged=Frozen({TOP: "was not closed properly"})))
    assert (found.code, found.remedy[-1]) == ("image-damaged", TOP)
    found = only(facts(status=None, damaged=Frozen({TOP: "is truncated: its file ends before its L1 table"})))
    assert found.remedy == ()
