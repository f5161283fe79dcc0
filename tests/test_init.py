from __future__ import annotations

import subprocess
import sys

import pytest

import qmpsnap


def test_every_public_name_is_there_and_has_one_home():
    homes = [name for names in qmpsnap._HOMES.values() for name in names]
    assert sorted(homes) == sorted(set(qmpsnap.__all__))
    assert all(getattr(qmpsnap, name) is not None for name in qmpsnap.__all__)
    assert set(qmpsnap.__all__) <= set(dir(qmpsnap))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        qmpsnap.nothing_of_ours  # noqa: B018


def test_naming_the_package_loads_nothing_of_it():
    loaded = "[one for one in sys.modules if one.startswith(('qmpsnap.', 'qemu', 'anyio'))]"
    code = f"import sys, qmpsnap; print({loaded})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "[]\n"
