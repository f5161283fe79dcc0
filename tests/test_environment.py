"""That tests see the same environment whoever starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import OURS

ROOT = Path(__file__).parents[1]
LOOK = """
import json, os, signal, time
from tests.environment import settle
settle()
umask = os.umask(0)
ignored = [n.name for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
print(json.dumps([dict(os.environ), umask, ignored, time.timezone]))
"""
CALLERS = {
    "bare": {},
    "dumb terminal": {"TERM": "dumb", "COLUMNS": "40", "LINES": "5", "NO_COLOR": "1", "FORCE_COLOR": "1"},
    "elsewhere": {"LC_ALL": "POSIX", "LANGUAGE": "de", "TZ": "Asia/Tokyo"},
    "ours": {"QMPSNAP_SOCKET": "/none", "_QMPSNAP_COMPLETE": "bash_complete", "PYTHONWARNINGS": "ignore"},
}


@pytest.mark.parametrize("caller", CALLERS)
def test_tests_see_one_environment_whoever_starts_them(caller, tmp_path):
    given = {"PATH": "/usr/bin", "HOME": str(tmp_path), **CALLERS[caller]}
    command = ["nohup", sys.executable, "-c", LOOK]
    done = subprocess.run(
        command, env=given, cwd=ROOT, umask=0o077, check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    found, umask, ignored, zone = json.loads(done.stdout)
    found.pop("LC_CTYPE", None)  # Python's own, in the C locale
    assert found == {"PATH": "/usr/bin", "QMPSNAP_CACHE": f"{tmp_path}/.cache/qmpsnap", **OURS}
    assert (umask, ignored, zone) == (0o022, [], 0)


def test_what_says_where_things_are_is_left(tmp_path):
    given = {"PATH": "/usr/bin", "HOME": "/home/a", "QMPSNAP_CACHE": "/c", "QMPSNAP_GUEST": "/g"}
    done = subprocess.run([sys.executable, "-c", LOOK], env=given, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(done.stdout)[0]
    assert (found["QMPSNAP_CACHE"], found["QMPSNAP_GUEST"]) == ("/c", "/g")
