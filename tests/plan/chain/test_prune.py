from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.errors import BadArgument
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.intent import Prune
from tests.each import each
from tests.plan.chain.test_delete import BASE, A, B, C, drawn, files, moment
from tests.plan.scenes import STATE, planned

D = "/images/d.qcow2"
FIVE = "base <- a <- b <- c <- d*"
FOUR = (
    moment("one", A, BASE, created="2024-05-01T12:00:01.000000+00:00"),
    moment("two", B, A, BASE, created="2024-05-01T12:00:02.000000+00:00"),
    moment("three", C, B, A, BASE, created="2024-05-01T12:00:03.000000+00:00"),
    moment("four", D, C, B, A, BASE, created="2024-05-01T12:00:04.000000+00:00"),
)


def test_all_but_the_newest_go_and_the_biggest_layer_receives_what_is_above_and_below_it() -> None:
    of = drawn(FIVE, a=9, b=2, base=3)
    plan = planned(Prune(keep_last=2), of, files=files(of, *FOUR))
    assert [step.command for part in plan.parts for step in part.steps if step.job_id and step.writes] == [
        "block-stream",
        "block-commit",
    ]
    assert plan.to_json()["after"] == {"vda": [D, C, A]}
    assert plan.notes[0].startswith(f"vda: at most 5 MiB to copy into {A}")
    assert plan.op == "prune"


def test_newest_are_those_on_top_where_the_clock_was_set_back() -> None:
    of = drawn(FIVE, base=9)
    times = ("13:00:01", "12:00:02", "12:00:03", "12:00:04")
    back = [
        replace(one, created=f"2024-05-01T{time}.000000+00:00") for one, time in zip(FOUR, times, strict=True)
    ]
    plan = planned(Prune(keep_last=2), of, files=files(of, *back))
    assert plan.to_json()["after"] == {"vda": [D, C, BASE]}


def test_records_of_a_run_end_with_the_job_that_ends_each() -> None:
    of = drawn(FIVE, a=9)
    first, second = planned(Prune(keep_last=2), of, files=files(of, *FOUR)).parts
    assert finish_record(STATE, (), (FOUR[0].id,)) in first.steps
    assert finish_record(STATE, (), (FOUR[1].id,)) in second.steps


@each(
    ("depth", "after"),
    [(5, None), (4, (D, C, B, BASE)), (3, (D, C, BASE)), (2, (D, BASE)), (1, (BASE,))],
)
def test_chain_is_folded_until_it_has_so_many_layers(depth: int, after: tuple[str, ...] | None) -> None:
    of = drawn(FIVE, base=9, a=1, b=2, c=3, d=4)
    plan = planned(Prune(max_depth=depth), of, files=files(of, *FOUR))
    found = plan.to_json()["after"]
    assert isinstance(found, dict)
    assert len(found.get("vda", of.disks["vda"].files)) == depth
    if after is None:
        assert plan.steps == ()


def test_chain_stays_longer_where_others_are_based_on_it() -> None:
    of = drawn(FIVE)
    found = files(of, *FOUR)
    found.put("/images/x.qcow2", backing=A)
    found.put("/images/y.qcow2", backing=C)
    plan = planned(Prune(max_depth=1), of, files=found)
    assert plan.to_json()["after"] == {"vda": [D, C, A, BASE]}


def test_nameless_layers_of_earlier_deletions_are_merged() -> None:
    of = drawn(FIVE, b=9)
    links = tuple(replace(one, deleted=True) for one in FOUR[:2])
    plan = planned(Prune(keep_last=2), of, files=files(of, *links, *FOUR[2:]))
    assert plan.to_json()["after"] == {"vda": [D, C, B]}
    assert finish_record(STATE, (), tuple(one.id for one in links)) in plan.parts[-1].steps


def test_layers_that_never_held_a_moment_stay() -> None:
    of = drawn(FIVE)
    plan = planned(Prune(max_depth=1), of, files=files(of, FOUR[3]))
    assert plan.to_json()["after"] == {"vda": [C, B, A, BASE]}


def test_disks_that_are_not_named_do_not_count() -> None:
    of = drawn(FIVE)
    plan = planned(Prune(keep_last=1, disks=("vda",)), of, files=files(of, *FOUR))
    assert plan.to_json()["after"] == {"vda": [D, BASE]}


def test_prune_of_what_is_to_stay_does_nothing() -> None:
    of = drawn(FIVE)
    plan = planned(Prune(keep_last=4), of, files=files(of, *FOUR))
    assert (plan.steps, plan.then) == ((), ())


@each("fields", [{}, {"keep_last": 1, "max_depth": 1}, {"keep_last": 0}])
def test_prune_takes_one_rule(fields: dict[str, int]) -> None:
    try:
        Prune(**fields)  # type: ignore[arg-type]
    except BadArgument as error:
        assert error.parameter == "keep_last"  # noqa: PT017 - each row is tried
    else:
        raise AssertionError("it was taken")


def test_layers_without_a_snapshot_that_something_needs_get_no_note() -> None:
    of = drawn(FIVE)
    found = files(of, replace(FOUR[0], deleted=True), *FOUR[1:])
    found.put("/images/x.qcow2", backing=BASE)
    plan = planned(Prune(keep_last=3), of, files=found)
    assert (plan.steps, plan.notes, str(plan)) == ((), (), "nothing to delete")


def test_chain_that_stays_too_deep_says_which_layers_stay_and_why() -> None:
    of = drawn(FIVE)
    found = files(of, FOUR[2], FOUR[3])
    found.put("/images/x.qcow2", backing=B)
    plan = planned(Prune(max_depth=2), of, files=found)
    assert plan.parts[-1].notes[-1] == (
        f"vda still has 4 layers, not 2: /images/x.qcow2 is based on {B}; "
        f"{A} holds no snapshot that could be deleted; {BASE} holds no snapshot that could be deleted"
    )
