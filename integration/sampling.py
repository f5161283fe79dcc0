"""Which tests each QEMU takes of those that hardly depend on the QEMU; with `--all` it takes every one."""

from __future__ import annotations


def sampled_out(tests):
    """Return the tests to leave out: of those that differ by the QEMU alone, all but one.

    A module's first such test runs on the first QEMU that it is there for, the next on the next, and so on.

    Args:
        tests: For each test its module, what tells it from others of the module on the same QEMU, and itself.
    """
    modules = {}
    for module, variant, test in tests:
        modules.setdefault(module, {}).setdefault(variant, []).append(test)
    return {
        test
        for variants in modules.values()
        for number, same in enumerate(variants.values())
        for test in same
        if test is not same[number % len(same)]
    }
