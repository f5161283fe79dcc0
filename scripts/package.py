"""Build the sdist and the wheel, and try the wheel where nothing is installed but what it requires.

- The sdist has the licence, the README and whatever a build needs: the wheel that is built from it equals the
  one that is built from the checkout.
- The wheel has every file of qmpsnap/, the licence, and nothing else; its metadata has what PyPI reads.
- Without extras each public name can be imported, the test guest's command runs, and `qmpsnap` says what it
  lacks. With [cli] `qmpsnap` runs.

Environments stay in the cache until the requirements change. Nothing is built if no file has changed since
all of this was right. Used by scripts/check.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ["QMPSNAP_CACHE"]) / "package"
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2])
"""
FOR_PYPI = (
    "License-Expression: Apache-2.0",
    "License-File: LICENSE",
    "Description-Content-Type: text/markdown",
)
EVERY_NAME = """
import importlib.util, sys, qmpsnap
assert qmpsnap.__file__.startswith(sys.argv[1]), qmpsnap.__file__
assert importlib.util.find_spec("click") is None, "this environment is not empty"
for name in qmpsnap.__all__:
    getattr(qmpsnap, name)
"""


def main() -> int:
    files = [Path(file) for file in tracked("qmpsnap", "pyproject.toml", "README.md", "LICENSE")]
    contents = {str(file): (ROOT / file).read_bytes() for file in files}
    right = CACHE / f"right-{digest(sys.version, Path(__file__).read_text(), *map(str, contents.items()))}"
    if right.exists():
        return 0
    project = tomllib.loads(contents["pyproject.toml"].decode())
    needs = project["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as pool:
        place = Path(directory)
        plain = pool.submit(environment, needs)
        cli = pool.submit(environment, [*needs, *project["project"]["optional-dependencies"]["cli"]])
        builder = environment(project["build-system"]["requires"])
        for file, content in contents.items():
            (place / "checkout" / file).parent.mkdir(parents=True, exist_ok=True)
            (place / "checkout" / file).write_bytes(content)
        sdist = pool.submit(build, builder, "sdist", place / "checkout", place / "sdist")
        with tarfile.open(sdist.result()) as archive:
            archive.extractall(place / "unpacked", filter="data")
        (unpacked,) = (place / "unpacked").iterdir()
        again = pool.submit(build, builder, "wheel", unpacked, place / "again")
        wheel = build(builder, "wheel", place / "checkout", place / "wheel")
        faults = [*compared(entries(wheel), entries(again.result()), contents)]
        installed = place / "installed"
        pip("install", "--no-deps", "--no-index", "--ignore-installed", f"--prefix={installed}", str(wheel))
        tries = used(installed, plain.result(), cli.result())
        faults += [fault for fault in pool.map(lambda check: check(), tries) if fault]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        for old in CACHE.glob("right-*"):
            old.unlink(missing_ok=True)
        right.touch()
    return 1 if faults else 0


def tracked(*paths: str) -> list[str]:
    """The files that a commit of everything would have."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *paths]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).exists()]


def digest(*parts: str) -> str:
    return hashlib.blake2s("\0".join(parts).encode(), digest_size=8).hexdigest()


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *words]
    subprocess.run(command, check=True, cwd="/")


def environment(needs: Iterable[str]) -> Path:
    """The Python of an environment that has only these packages, and theirs; made where there is none."""
    place = CACHE / digest(sys.version, *needs)
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=CACHE))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
        pip("--python", str(made / "bin/python"), "install", *needs)
        try:
            made.rename(place)
        except OSError:  # another check was quicker
            shutil.rmtree(made)
    return place / "bin" / "python"


def ran(
    command: Sequence[Path | str], cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)


def build(python: Path, kind: str, source: Path, into: Path) -> Path:
    into.mkdir()
    ended = ran([python, "-c", BUILD, kind, into], cwd=source)
    if ended.returncode:
        sys.exit(f"cannot build the {kind}:\n{ended.stderr}")
    (made,) = into.iterdir()
    return made


def entries(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def compared(wheel: Mapping[str, bytes], again: Mapping[str, bytes], ours: Mapping[str, bytes]) -> list[str]:
    """What is wrong with the files of the wheel."""
    package = {name for name in ours if name.startswith("qmpsnap/")}
    found = {name for name in wheel if ".dist-info/" not in name}
    licences = [name for name in wheel if name.endswith("/LICENSE")]
    (metadata,) = (wheel[name].decode().splitlines() for name in wheel if name.endswith("/METADATA"))
    return [
        *(f"not in the wheel: {name}" for name in sorted(package - found)),
        *(f"in the wheel, and not in the checkout: {name}" for name in sorted(found - package)),
        *(f"differs in the wheel: {name}" for name in sorted(package & found) if wheel[name] != ours[name]),
        *([] if licences else ["the wheel has no LICENSE"]),
        *(f"not in the wheel's metadata: {line}" for line in FOR_PYPI if line not in metadata),
        *(
            f"differs in the wheel that is built from the sdist: {name}"
            for name in sorted(wheel.keys() | again.keys())
            if wheel.get(name) != again.get(name)
        ),
    ]


def used(installed: Path, plain: Path, cli: Path) -> list[Callable[[], str]]:
    """Each gives what is wrong, or "". The command is started as a shell would start it."""
    (site,) = installed.glob("lib*/python*/site-packages")
    command = str(installed / "bin" / "qmpsnap")

    def run(python: Path, *words: str, code: int = 0, says: str = "") -> str:
        ended = ran([python, *words], cwd=Path("/"), env={"PYTHONPATH": str(site), "HOME": "/"})
        output = ended.stdout + ended.stderr
        if ended.returncode == code and says in output:
            return ""
        return f"{' '.join(words)} in an environment of its own: exit {ended.returncode}\n{output}"

    return [
        partial(run, plain, "-c", EVERY_NAME, str(installed)),
        partial(run, plain, "-m", "qmpsnap.testing.guest", "--help", says="fetch"),
        partial(run, plain, command, "--help", code=2, says="pip install 'qmpsnap[cli]'"),
        partial(run, cli, command, "--help", says="snapshot"),
        partial(run, cli, "-m", "qmpsnap", "chain", "--help", says="Example"),
    ]


if __name__ == "__main__":
    sys.exit(main())
