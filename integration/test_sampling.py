"""The sample that is taken where the QEMUs hardly differ: nothing is left out on all of them."""

from __future__ import annotations

from integration.sampling import sampled_out


def test_every_variant_runs_once_and_each_qemu_has_its_share():
    variants = [(module, variant) for module in "ab" for variant in range(6)]
    tests = [(module, variant, (module, variant, qemu)) for module, variant in variants for qemu in range(3)]
    left = {test for *_, test in tests} - sampled_out(tests)
    assert sorted((module, variant) for module, variant, _ in left) == variants
    assert [sum(qemu == each for *_, qemu in left) for each in range(3)] == [4, 4, 4]


def test_a_test_that_is_there_on_one_qemu_alone_runs():
    assert sampled_out([("a", 1, "first"), ("a", 2, "second"), ("b", 1, "third")]) == set()
