from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.files import FileFact, OpenFile
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import LONG_CHAIN
from qmpsnap.model.moments import Moment, MomentPart, Moments
from qmpsnap.model.wrong_start import WrongStart
from qmpsnap.testing.drawing import graph
from tests.model.records import TIME
from tests.plan.diagnosis.look import BASE, CHAIN, S1, S2, codes, fact, facts, only, with_file
from tests.plan.scenes import with_layer


def open_files(*known: OpenFile) -> Frozen[str, OpenFile]:
    return Frozen({one.name: one for one in known})


@pytest.mark.parametrize(("recorded", "what"), [("/old/base.qcow2", "no file"), (S2, "another file")])
def test_a_header_that_names_another_file_is_rewritten(recorded: str, what: str) -> None:
    found = only(with_file(facts(), S1, fact(S1, recorded, "qcow2")))
    assert (found.code, found.subject) == ("backing-wrong", S1)
    assert what in found.cause
    assert found.remedy[:3] == ("qmpsnap", "qmp", "block-stream")
    assert (
        '"device": "vda-s1", "base-node": "vda-base", "backing-file": "/images/base.qcow2"' in found.remedy[3]
    )


def test_a_name_that_leads_to_no_local_file_is_wrong() -> None:
    assert codes(with_file(facts(), S1, replace(fact(S1, "nbd://host/x", "qcow2"), backing=None))) == [
        ("backing-wrong", S1)
    ]


def test_a_header_that_lost_its_backing_file_gets_it_back() -> None:
    found = only(with_file(facts(), S1, fact(S1)))
    assert (found.code, found.remedy[2]) == ("backing-wrong", "block-stream")


def test_a_header_that_names_a_backing_file_that_is_not_used_is_cleared_later() -> None:
    found = only(with_file(facts(), BASE, fact(BASE, "/images/older.qcow2", "qcow2")))
    assert (found.code, found.remedy) == ("backing-wrong", ())
    assert found.advice.endswith("qemu-img rebase -u -f qcow2 -b '' /images/base.qcow2")


@pytest.mark.parametrize("form", ["raw", "throttle"])
def test_another_format_is_rewritten(form: str) -> None:
    found = only(with_file(facts(), S1, fact(S1, BASE, form)))
    assert (found.code, found.remedy[2]) == ("format-wrong", "block-stream")
    assert f"calls the backing file {form}, and it is qcow2" in found.cause


def test_a_qcow2_image_that_is_read_as_raw_is_found_by_its_name_and_header() -> None:
    command = "qemu-img rebase -u -f qcow2 -b base.qcow2 -F qcow2 /images/s1.qcow2"
    there = graph(with_layer(CHAIN.disks["vda"], 2, format="raw"))
    seen = with_file(facts(there), S1, replace(fact(S1, "base.qcow2", "raw"), backing=BASE))
    found = only(seen)
    assert (found.code, found.subject, found.remedy) == ("format-wrong", S1, ())
    assert found.advice.startswith(
        f"with the machine off: {command} - if that was made as qcow2; keep a copy"
    )
    found = only(replace(seen, status=None))
    assert (found.subject, " ".join(found.remedy)) == (S1, command)
    assert codes(with_file(seen, BASE, FileFact("regular", real=BASE))) == []
    window = graph(with_layer(CHAIN.disks["vda"], 2, format="raw", window=True))
    assert codes(replace(seen, graph=window)) == []


def test_an_active_layer_that_is_read_as_raw_is_found_while_a_machine_runs() -> None:
    seen = facts(graph(with_layer(graph(vda="base*").disks["vda"], 0, format="raw")))
    assert codes(seen) == [("format-wrong", BASE)]
    assert codes(replace(seen, status=None)) == []


def test_a_format_that_is_missing_is_written() -> None:
    found = only(with_file(facts(), S1, fact(S1, BASE)))
    assert (found.code, found.remedy[2]) == ("format-missing", "block-stream")


def test_headers_are_compared_only_where_they_can_be() -> None:
    seen = with_file(facts(), S1, fact(S1, "/old", "qcow2"))
    assert codes(replace(seen, status=None)) == []
    assert codes(replace(seen, files=replace(seen.files, shared=False))) == []
    inner = graph(with_layer(CHAIN.disks["vda"], 1, inner="quorum"))
    assert codes(replace(seen, graph=inner)) == []
    assert codes(with_file(facts(), S1, FileFact("missing", real=S1))) == []


def test_a_layer_that_was_moved_is_moved_back() -> None:
    moved = OpenFile(S1, "moved", "/elsewhere/s1", 1, 2)
    found = only(with_file(facts(), S1, FileFact("missing"), open=open_files(moved)))
    assert (found.code, found.remedy) == ("layer-moved", ("mv", "-T", "/elsewhere/s1", S1))
    replaced = replace(moved, replaced=True)
    found = only(with_file(facts(), S1, fact(S1), open=open_files(replaced)))
    assert found.remedy == ("qmpsnap", "mirror", "vda", "/images/s2.copy.qcow2", "--pivot")
    assert found.advice.startswith(
        "or move /images/s1.qcow2 away and /elsewhere/s1 back to that name; from then"
    )


def test_a_layer_that_was_removed_is_left_for_a_copy() -> None:
    gone = OpenFile(S1, "unlinked", "", 1, 2)
    found = only(with_file(facts(), S1, FileFact("missing"), open=open_files(gone)))
    assert found.remedy == ("qmpsnap", "mirror", "vda", "/images/s2.copy.qcow2", "--pivot")
    assert found.advice == "from then on the machine is started from the copy"


def test_a_chain_has_a_bound() -> None:
    drawn = " <- ".join(f"n{number}" for number in range(LONG_CHAIN))
    assert codes(facts(graph(vda=f"{drawn}*"))) == []
    seen = facts(graph(vda=f"{drawn} <- top*"))
    found = only(seen)
    assert (found.code, found.subject) == ("chain-long", "vda")
    newest = f"/images/n{LONG_CHAIN - 1}.qcow2"
    assert found.remedy == ("qmpsnap", "commit", "vda", "--top", newest, "--base", "/images/n0.qcow2")
    named = Moment("m", "external", TIME, (MomentPart("vda", "/images/n0.qcow2"),))
    found = only(replace(seen, moments=Moments((named,), Frozen())))
    assert found.remedy == ("qmpsnap", "prune", "--disk", "vda", "--max-depth", "100")


def test_a_machine_that_was_started_from_an_old_file_is_told_so() -> None:
    seen = facts(below=(WrongStart("vda", S2, ("/images/new one", "/images/b")),))
    found = only(seen)
    assert (found.code, found.subject, found.remedy) == ("started-below", "vda", ())
    assert found.cause == f"{S2} is written to, and /images/new one, /images/b are based on it"
    assert "start it from '/images/new one' or /images/b" in found.advice
    found = only(replace(seen, status=None, below=(WrongStart("vda", S2, ("/images/b",)),)))
    assert found.cause == f"{S2} is named as the active layer, and /images/b is based on it"
