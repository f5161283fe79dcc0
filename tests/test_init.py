from __future__ import annotations

import ast
import importlib
import inspect

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
