from __future__ import annotations

import ast
import collections.abc
import contextlib
import importlib
import inspect
import sys
import typing
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import qmpsnap


def test_every_public_name_is_there_once():
    assert len(qmpsnap.__all__) == len(set(qmpsnap.__all__))
    assert all(getattr(qmpsnap, name) is not None for name in qmpsnap.__all__)


def test_every_public_name_is_what_a_type_checker_takes_it_for():
    tree = ast.walk(ast.parse(inspect.getsource(qmpsnap)))
    homes = {
        name.name: one.module
        for one in tree
        if isinstance(one, ast.ImportFrom) and one.module and one.module.startswith("qmpsnap.")
        for name in one.names
    }
    assert set(homes) == set(qmpsnap.__all__)
    for name, home in homes.items():
        assert getattr(qmpsnap, name) is getattr(importlib.import_module(home), name)


def test_a_name_that_is_not_public_is_not_there():
    assert set(qmpsnap.__all__) <= set(dir(qmpsnap))
    with pytest.raises(AttributeError, match="module 'qmpsnap' has no attribute 'nonsense'"):
        _ = qmpsnap.nonsense  # type: ignore[attr-defined]  # which a type checker knows, too


def test_every_public_class_tells_its_arguments():
    """A struct's annotations are read then: each name in them has to be there at run time."""
    public = [getattr(qmpsnap, name) for name in qmpsnap.__all__]
    for one in public:
        if inspect.isclass(one):
            assert inspect.signature(one) is not None


def choices(annotation: object) -> set[frozenset[object]]:
    """The closed choices in an annotation, each with its words."""
    if get_origin(annotation) is Literal:
        return {frozenset(get_args(annotation))}
    return {choice for inner in get_args(annotation) for choice in choices(inner)}


def _is_ours(value: object) -> bool:
    """Whether it is a module of ours: `qmpsnap.cli.list` is not the `list` of an annotation."""
    return inspect.ismodule(value) and value.__name__.startswith("qmpsnap")


def used_choices() -> dict[str, set[frozenset[object]]]:
    """The closed choices of each field of a public class, and of each parameter of its methods."""
    names = {**vars(typing), **vars(collections.abc), **vars(contextlib)}
    for name, module in sys.modules.copy().items():
        if name.startswith("qmpsnap"):
            # A name that one module imports for a type checker only is found in another.
            names |= {key: value for key, value in vars(module).items() if not _is_ours(value)}
    names |= {name: getattr(qmpsnap, name) for name in qmpsnap.__all__}
    used = {}
    for owner in (getattr(qmpsnap, name) for name in qmpsnap.__all__):
        if inspect.isclass(owner):
            known = names | vars(sys.modules[owner.__module__])
            for field, annotation in get_type_hints(owner, known).items():
                used[f"{owner.__name__}.{field}"] = choices(annotation)
            for method, function in inspect.getmembers(owner, inspect.isfunction):
                if not function.__module__.startswith("qmpsnap"):
                    continue  # inherited
                for parameter, annotation in get_type_hints(function, known).items():
                    used[f"{owner.__name__}.{method}({parameter})"] = choices(annotation)
    return used


def test_every_closed_choice_that_a_caller_meets_has_a_public_name():
    named = {choice for name in qmpsnap.__all__ for choice in choices(getattr(qmpsnap, name))}
    used = used_choices()
    assert used["Moment.kind"] == {frozenset({"external", "internal"})}
    assert used["VM.mirror(ending)"] == {frozenset({"pivot", "finish"})}
    assert {
        (place, choice)
        for place, found in used.items()
        for choice in found
        if choice != {""} and not any(choice - {""} <= words for words in named)
    } == set()
