"""A QEMU of another user that lies: its word moves nothing that this user could not have moved itself."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qmpsnap
from qmpsnap.errors import InvalidTarget, QmpsnapError, Refused
from qmpsnap.model.files import OpenFile
from qmpsnap.plan.intent import Commit, Intent, Snapshot
from qmpsnap.run.peer_access import barred
from qmpsnap.testing.server import Return, serve
from tests.cli.conftest import disks, stands
from tests.headers import qcow2_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
GIB = 1 << 30
COMMANDS = (
    "block-commit", "block-job-cancel", "block-stream", "blockdev-add", "blockdev-del", "device_add",
    "blockdev-snapshot-sync", "drive-mirror", "human-monitor-command", "job-cancel", "job-complete",
    "job-dismiss", "job-finalize", "transaction",
)  # fmt: skip

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can start another user's QEMU")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of nobody's, and one of ours that nobody may enter; pytest's own may not be entered."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name).resolve()
        made.chmod(0o755)
        (made / "theirs").mkdir()
        os.chown(made / "theirs", NOBODY, NOBODY)
        (made / "ours").mkdir(mode=0o700)
        yield made


def image(file: Path, *, backing: Path | None = None, user: int = NOBODY, mode: int = 0o600) -> Path:
    data = qcow2_bytes(backing=str(backing), backing_format="qcow2") if backing else qcow2_bytes()
    file.write_bytes(data)
    os.chown(file, user, user)
    file.chmod(mode)
    return file


@contextmanager
def liar(place: Path, chain: tuple[str, ...], *, held: tuple[Path, ...]) -> Iterator[str]:
    """A process of nobody's with these files open, as far as it may; it says that its disk is that chain."""
    socket = f"{place}/theirs/s"
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setgroups([])
            os.setresuid(NOBODY, NOBODY, NOBODY)
            for file in held:
                for flags in (os.O_RDWR, os.O_RDONLY):
                    try:
                        os.set_inheritable(os.open(file, flags), True)
                        break
                    except OSError:
                        continue
            asyncio.run(_answer(socket, chain, tell))
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"x"
        yield socket
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def _answer(socket: str, chain: tuple[str, ...], tell: int) -> None:
    async with serve(socket) as server:
        disks(server, vda=chain)
        server.answer("query-commands", Return([{"name": name} for name in COMMANDS]))
        for command in ("query-jobs", "query-block-jobs", "query-fdsets"):
            server.answer(command, Return([]))
        stands(server)
        os.write(tell, b"x")
        await asyncio.sleep(60)


async def planned(socket: str, intent: Intent, **options: Any) -> qmpsnap.Plan:
    async with qmpsnap.connect(socket, **options) as vm:
        return await vm.plan(intent)


async def refused(socket: str, intent: Intent, *, error: type[QmpsnapError] = InvalidTarget) -> QmpsnapError:
    with pytest.raises(error) as caught:
        async with qmpsnap.connect(socket) as vm:
            await vm.run(await vm.plan(intent))
    return caught.value


def listing(place: Path) -> dict[str, bytes | None]:
    return {
        str(one): one.read_bytes() if one.is_file() else None
        for one in sorted(place.rglob("*"))
        if not one.is_socket()
    }


async def test_what_the_peer_may_write_to_is_moved_on_its_word(place: Path) -> None:
    base = image(place / "theirs/base")
    s1 = image(place / "theirs/s1", backing=base)
    top = image(place / "theirs/top", backing=s1)
    files = (str(top), str(s1), str(base))
    with liar(place, files, held=(top, s1, base)) as socket:
        assert "retire-file" in str(await planned(socket, Commit("vda", top="s1")))
        assert "create-overlay" in str(await planned(socket, Snapshot("n1")))


@pytest.mark.parametrize("folded", ["rename", "remove"])
@pytest.mark.parametrize("mode", [0o600, 0o644])
async def test_a_folded_layer_that_is_ours_keeps_its_name(place: Path, folded: str, mode: int) -> None:
    """A private file of ours, or one that everybody may read: QEMU cannot have written to it."""
    base = image(place / "theirs/base")
    (place / "ours").chmod(0o755)
    victim = image(place / "ours/victim", backing=base, user=0, mode=mode)
    top = image(place / "theirs/top", backing=victim)
    before = listing(place)
    with liar(place, (str(top), str(victim), str(base)), held=(top, victim, base)) as socket:
        error = await refused(socket, Commit("vda", top="victim", folded=folded))  # type: ignore[arg-type]
        assert "QEMU runs as nobody (65534), we as root (0)" in error.message
        assert ("mode 644" if mode == 0o644 else "does not have it open") in error.message
        assert "--folded keep" in error.hint
        assert "retire-file" not in str(await planned(socket, Commit("vda", top="victim", folded="keep")))
    assert listing(place) == before


async def test_no_overlay_is_made_where_the_peer_may_not_even_look(place: Path) -> None:
    base = image(place / "theirs/base")
    image(place / "ours/x", user=0)
    before = listing(place)
    names = (
        f"{place}/ours/x",
        f"{place}/theirs/a\nline\nx/../../ours/x",
        f"{place}/theirs/../ours/x",
        f"{place}/ours/new",
    )
    for name in names:
        with liar(place, (name, str(base)), held=(base,)) as socket:
            error = await refused(socket, Snapshot("n1"), error=Refused)
            assert "QEMU runs as nobody (65534), we as root (0)" in error.message
            assert await planned(socket, Snapshot("n1", files={"vda": f"{place}/mine"}, disks=("vda",)))
    assert listing(place) == before


async def test_no_overlay_is_made_beside_a_file_that_everybody_may_read(place: Path) -> None:
    """QEMU has it open, as anybody can: that is no leave to make files in its directory."""
    (place / "ours").chmod(0o755)
    base = image(place / "theirs/base")
    readable = image(place / "ours/readable", backing=base, user=0, mode=0o644)
    before = listing(place)
    with liar(place, (str(readable), str(base)), held=(readable, base)) as socket:
        error = await refused(socket, Snapshot("n1"))
        assert "it belongs to root (0), mode 644" in error.message
    assert listing(place) == before


async def test_a_file_that_was_exchanged_since_is_not_moved(place: Path) -> None:
    base = image(place / "theirs/base")
    s1 = image(place / "theirs/s1", backing=base)
    top = image(place / "theirs/top", backing=s1)
    with liar(place, (str(top), str(s1), str(base)), held=(top, s1, base)) as socket:
        s1.rename(place / "theirs/was")
        victim = image(place / "ours/victim", backing=base, user=0)
        os.link(victim, s1)
        error = await refused(socket, Commit("vda", top="s1"), error=Refused)
        assert error.changed is qmpsnap.Changed.NO
    assert (victim.stat().st_nlink, s1.stat().st_ino) == (2, victim.stat().st_ino)


def test_barred_holds_nothing_against_our_own_or_the_superusers_qemu(tmp_path: Path) -> None:
    assert barred(os.getpid(), [f"{tmp_path}/none"], {}) == {}
    assert barred(None, [f"{tmp_path}/none"], {}) == {}
    assert barred(2**22 + 1, [f"{tmp_path}/none"], {}) == {}


@pytest.mark.parametrize(
    ("user", "group", "mode", "says"),
    [
        (NOBODY, 0, 0o600, ""),
        (NOBODY, 0, 0o466, "mode 466"),  # the owner's own bits count
        (0, NOBODY, 0o660, ""),
        (0, NOBODY, 0o646, "mode 646"),
        (0, 0, 0o602, ""),
        (0, 0, 0o664, "it belongs to root (0), mode 664"),
    ],
)
def test_barred_looks_at_the_permissions_of_the_peers_user(
    place: Path, user: int, group: int, mode: int, says: str
) -> None:
    file = place / "theirs/x"
    file.write_bytes(b"x")
    os.chown(file, user, group)
    file.chmod(mode)
    status = file.stat()
    opened = {str(file): OpenFile(str(file), "same", str(file), status.st_dev, status.st_ino)}
    with liar(place, ("/none",), held=()):
        (child,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:])
        found = barred(child, [str(file)], opened)
    assert says in found.get(str(file), "")
    assert bool(found) == bool(says)
