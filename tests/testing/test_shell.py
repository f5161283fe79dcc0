from __future__ import annotations

import os

import pytest

from qmpsnap.errors import BadArgument, GuestFailed, InvalidTarget, TargetExists
from qmpsnap.testing.shell import MIB, Ran, whole_seconds
from tests.testing.shells import HostShell

CONTENTS = [b"", b"\0\xff\r\n", bytes(range(256)) * 8200]
IDS = ["empty", "binary", "parts"]


@pytest.mark.parametrize("data", CONTENTS, ids=IDS)
async def test_copies_are_the_file_byte_for_byte(tmp_path, data):
    shell, source, inside, back = HostShell(), *(tmp_path / name for name in ("a", "b 'b", "c"))
    source.write_bytes(data)
    source.chmod(0o750)
    await shell.copy_in(source, str(inside))
    await shell.copy_out(str(inside), back)
    assert (inside.read_bytes(), inside.stat().st_mode & 0o777) == (data, 0o750)
    assert back.read_bytes() == data == await shell.read_file(str(inside))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b 'b", "c"]


async def test_write_file_replaces_a_file_only_when_asked(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(GuestFailed, match="it exists"):
        await HostShell().write_file(str(file), b"new")
    assert file.read_text() == "old"
    await HostShell().write_file(str(file), b"new", replace=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]


@pytest.mark.parametrize("replace", [False, True])
async def test_write_file_refuses_a_directory_and_puts_nothing_into_it(tmp_path, replace):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("real", "link"):
        with pytest.raises(GuestFailed, match=r"it exists|it is a directory"):
            await HostShell().write_file(str(tmp_path / name), b"x", replace=replace)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["link", "real"]


async def test_file_may_be_called_like_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    await HostShell().write_file("-n", b"data")
    assert await HostShell().read_file("-n") == b"data"
    assert [path.name for path in tmp_path.iterdir()] == ["-n"]


@pytest.mark.parametrize("name", ["a b", "q'q\"q", "new\nline\n", "$(touch x)`touch y`", "é\t*"])
async def test_file_may_have_any_name_of_utf_8(tmp_path, name):
    await HostShell().write_file(f"{tmp_path}/{name}", b"data")
    assert await HostShell().read_file(f"{tmp_path}/{name}") == b"data"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("path", ["/a\udcff", "/a\x04b"])
async def test_name_that_cannot_be_sent_is_refused(path):
    for call in (HostShell().write_file(path, b""), HostShell().read_file(path)):
        with pytest.raises(BadArgument, match="a path in the guest must be UTF-8, without EOT"):
            await call


@pytest.mark.parametrize("missing", ["wc", "stat"])
async def test_size_is_read_by_stat_which_reads_no_content_or_else_by_wc(tmp_path, monkeypatch, missing):
    (tmp_path / missing).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / missing).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    await HostShell().write_file(str(tmp_path / "file"), b"data")
    assert await HostShell().read_file(str(tmp_path / "file")) == b"data"


async def test_write_file_ends_at_the_first_piece_that_the_disk_does_not_take(tmp_path):
    class Full(HostShell):
        pieces = 0

        async def execute(self, script, *, stdin=b"", **options):
            self.pieces += stdin != b""
            full = (
                "cat() { head -c 10; echo cat: No space left on device >&2; command cat > /dev/null; false; }"
            )
            return await super().execute(f"{full}\n{script}", stdin=stdin, **options)

    shell, file = Full(), tmp_path / "file"
    file.write_text("old")
    with pytest.raises(
        GuestFailed, match=r"cat: No space left on device; .*/file' is as it was, and no part"
    ):
        await shell.write_file(str(file), bytes(3 * MIB), replace=True)
    assert (shell.pieces, list(tmp_path.iterdir()), file.read_text()) == (1, [file], "old")


async def test_what_a_script_reads_is_bounded():
    with pytest.raises(BadArgument, match="at most 1048576 bytes"):
        await HostShell().run("cat", stdin=bytes(MIB + 1))


async def test_checksum_of_a_large_file_may_take_longer(tmp_path):
    class Slow(HostShell):
        limits: list[float]

        async def execute(self, script, *, limit=30.0, **options):
            self.limits = [*getattr(self, "limits", []), limit] if "sha256sum" in script else []
            return await super().execute(script, limit=limit, **options)

    shell = Slow()
    for size, limit in ((0, 60), (4 * MIB, 124)):
        await shell.write_file(str(tmp_path / "file"), bytes(size), replace=True)
        assert shell.limits == [limit]
        shell.limits = []
        await shell.read_file(str(tmp_path / "file"))
        assert shell.limits == [limit]


async def test_copy_out_replaces_a_file_only_when_asked(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.symlink_to("nowhere")
    with pytest.raises(TargetExists):
        await HostShell().copy_out(str(source), target)
    await HostShell().copy_out(str(source), target, replace=True)
    assert (target.is_symlink(), target.read_text()) == (False, "new")


async def test_copy_out_leaves_nothing_when_the_file_changes_meanwhile(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 70_000)

    def change(ran: Ran) -> Ran:
        source.write_bytes(source.read_bytes() + b"y")
        return ran

    with pytest.raises(GuestFailed, match="was changed while it was read"):
        await HostShell(change).copy_out(str(source), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("size", "reason"),
    [("99", "has 99 bytes: at most 10"), ("-1", "has -1"), ("x", "has -1"), ("", "has -1")],
)
async def test_read_file_reads_no_more_than_asked_for(size, reason):
    with pytest.raises(GuestFailed, match=reason):
        await HostShell(lambda _: Ran(0, size.encode())).read_file("/etc/passwd", most=10)


@pytest.mark.parametrize("path", ["/nonexistent/file", "/dev/null", "/"])
async def test_read_file_reads_files_alone(path):
    with pytest.raises(GuestFailed, match="no such file"):
        await HostShell().read_file(path)


async def test_copy_in_refuses_a_file_that_is_too_large(tmp_path):
    (tmp_path / "source").write_bytes(b"123")
    with pytest.raises(InvalidTarget, match="larger than 2 bytes"):
        await HostShell().copy_in(tmp_path / "source", str(tmp_path / "target"), most=2)


async def test_copy_out_says_where_it_cannot_write(tmp_path):
    (tmp_path / "source").touch()
    with pytest.raises(InvalidTarget, match="No such file"):
        await HostShell().copy_out(str(tmp_path / "source"), tmp_path / "none/target")


async def test_write_file_leaves_nothing_when_it_was_not_written_as_sent(tmp_path):
    def damage(ran: Ran) -> Ran:
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[::-1])
        return ran

    with pytest.raises(GuestFailed, match="not written as sent"):
        await HostShell(damage).write_file(str(tmp_path / "file"), b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        (Ran(3, b"no\n"), "'true' ended with status 3: no"),
        (Ran(3, b""), "it printed nothing"),
        (Ran(143, b""), r"ended with status 143 \(128 \+ SIGTERM\)"),
        (Ran(137, b""), r"was killed in the guest \(SIGKILL\), before its limit"),
        (Ran(0, b"begin", cut=True), "printed more than 5 bytes"),
    ],
)
async def test_run_raises_unless_all_went_well(ran, reason):
    with pytest.raises(GuestFailed, match=reason) as failed:
        await HostShell(lambda _: ran).run("true")
    assert (failed.value.script, failed.value.status) == ("true", ran.status)


async def test_run_says_that_a_script_was_killed_at_its_limit():
    with pytest.raises(GuestFailed, match="'true' was killed at its limit: it printed nothing"):
        await HostShell(lambda _: Ran(137, b"")).run("true", limit=0)


@pytest.mark.parametrize("script", ["echo \0", "echo \x04", "x" * 200_000, b"true", "echo \udcff"])
async def test_run_refuses_what_cannot_be_sent(script):
    with pytest.raises(BadArgument):
        await HostShell().run(script)


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "1", None])
def test_limit_is_a_number_of_seconds(limit):
    with pytest.raises(BadArgument):
        whole_seconds(limit)


@pytest.mark.parametrize(("limit", "seconds"), [(0, 1), (0.5, 1), (1, 1), (1.01, 2)])
def test_limit_is_rounded_up(limit, seconds):
    assert whole_seconds(limit) == seconds
