"""The doctor of a machine or of images, as it is typed in this process."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from qmpsnap.cli.main import run as run_command


class Doctor:
    """The doctor of a machine or of images, as it is typed; its commands are run exactly as printed."""

    def __init__(self, capsys, qemu, *words):
        self.words, self._capsys, self._qemu = words, capsys, qemu

    def look(self, *more):
        """What it finds, as (code, subject), and the lines that mend it."""
        code, out, err = self._run(*self.words, *more, "doctor")
        assert all(" warning " in line for line in err.splitlines()), err  # the log says some of it, too
        lines = out.splitlines()
        named = [line.removeprefix("limit: ") for line in lines if not line.startswith(" ")]
        self.mending = [line.removeprefix("  mend: ") for line in lines if line.startswith("  mend: ")]
        limits = sum(line.startswith("limit: ") for line in lines)
        healthy = lines[0] == "no trouble found"
        assert (code, healthy) in {(0, True), (8, False)}
        self.text = out
        return [tuple(line.split(": ", 1)) for line in named[healthy:]], limits

    def troubles(self):
        found, limits = self.look()
        return found[: len(found) - limits]

    def mend(self):
        """Run what was printed; the exit codes."""
        return [self.do(line) for line in self.mending]

    def do(self, line):
        if line.startswith("qmpsnap "):
            code, _, err = self._run(*shlex.split(line)[1:])
            assert code == 0, f"{line}: {err}"
            return
        path = {"PATH": f"{self._qemu.directory}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], env=os.environ | path, check=True, capture_output=True)

    def mend_all(self, rounds=6):
        """Look and mend until nothing is found; every trouble that was found meanwhile."""
        seen = []
        for _ in range(rounds):
            found = self.troubles()
            seen += [one for one in found if one not in seen]
            if not found:
                return seen
            self.mend()
        raise AssertionError(f"still ill after {rounds} rounds: {self.text}")

    def _run(self, *words):
        code = run_command([str(word) for word in words])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


def forget_format(image):
    """Make the extension of the header that records the format of the backing file an unknown one."""
    path = Path(image)
    path.write_bytes(path.read_bytes().replace(bytes.fromhex("e2792aca"), bytes.fromhex("11111111"), 1))
