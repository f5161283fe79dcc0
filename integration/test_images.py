"""Image files made by every qemu-img that is here, and read by our own parser."""

import json
import os
import subprocess
from pathlib import Path

import anyio
import pytest

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.files import Ask
from qmpsnap.model.header import backing_path, parse_header
from qmpsnap.run import cleanup, survey
from qmpsnap.run.images import Images
from tests.headers import qcow2_bytes

SIZE = 1 << 30
SCRIPT = Path(__file__).parent.parent / "scripts" / "qemu-matrix"
MATRIX = [
    line.split(maxsplit=1)
    for line in subprocess.run([SCRIPT], capture_output=True, text=True, check=True).stdout.splitlines()
]
NAMES = [
    "plain.qcow2",
    "with space",
    "com,ma,,=",
    "co:lon",
    "quo'te\"s",
    "back\\slash",
    "ünï-☃",
    "%d$HOME`x`*?",
    "-dash",
    "no-utf-8-\udcff",
    "new\nline",
    "json:{}",
    "nbd:x",
    "x" * 200,
]


@pytest.fixture(params=[directory for _, directory in MATRIX], ids=[version for version, _ in MATRIX])
def qemu(request):
    return Path(request.param)


@pytest.fixture
def run(qemu, tmp_path):
    """Run one of this QEMU's programs in the test's directory."""

    def call(program, *arguments):
        return subprocess.run(
            [qemu / program, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout

    return call


@pytest.fixture
def images():
    return Images()


def info(run, file):
    return json.loads(run("qemu-img", "info", "--output=json", file))


def header_of(path):
    with path.open("rb") as file:
        return parse_header(file.read(1 << 21))


@pytest.mark.parametrize("name", NAMES)
async def test_create_image_writes_every_name_as_it_is(images, tmp_path, run, name):
    base = f"{tmp_path}/base-{name}"
    Path(base).touch()
    os.truncate(base, SIZE)
    created = await images.create_image(
        f"{tmp_path}/{name}", format="qcow2", size_bytes=SIZE, backing=base, backing_format="raw", like=base
    )
    found = header_of(tmp_path / name)
    assert found is not None
    assert (found.backing, found.backing_format, found.virtual_size) == (base, "raw", SIZE)
    assert cleanup.fresh(created.file, base) is not None
    if name.isprintable():  # JSON has no spelling for the others
        assert Path(info(run, created.file)["full-backing-filename"]).samefile(base)


@pytest.mark.parametrize("backing_format", ["raw", "qcow2", "vmdk"])
async def test_create_image_writes_the_backing_format(images, tmp_path, backing_format):
    await images.create_image(
        f"{tmp_path}/o",
        format="qcow2",
        size_bytes=SIZE,
        backing="/no/such/base",
        backing_format=backing_format,
        like=None,
    )
    found = header_of(tmp_path / "o")
    assert found is not None
    assert (found.backing, found.backing_format) == ("/no/such/base", backing_format)


async def test_create_image_makes_a_raw_one_of_the_size_that_was_asked(images, tmp_path, run):
    await images.create_image(f"{tmp_path}/i", size_bytes=(1 << 40) + 512, format="raw", like=None)
    assert (
        json.loads(run("qemu-img", "info", "-f", "raw", "--output=json", "i"))["virtual-size"]
        == (1 << 40) + 512
    )


SIZES = [0, 1, 512, 513, 1 << 20, 512 << 20, (512 << 20) + 1, 1 << 30, (1 << 40) + 512, 2 << 50]


@pytest.mark.parametrize("size", SIZES)
async def test_empty_image_is_sound_and_equals_what_qemu_img_makes(images, tmp_path, run, size):
    """Everything that qemu-img tells of the two is the same, but for how much of the file is used."""
    await images.create_image(f"{tmp_path}/ours", size_bytes=size, format="qcow2", like=None)
    run("qemu-img", "check", "-q", "-f", "qcow2", "ours")
    if size > 1 << 50:  # qemu-img itself is slow at tables of 32 MiB
        return
    run("qemu-img", "create", "-q", "-f", "qcow2", "theirs", str(size))
    told = [
        json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", name))
        for name in ("ours", "theirs")
    ]
    for one in told:
        for key in ("filename", "actual-size", "children"):
            one.pop(key, None)
    assert told[0] == told[1]
    if size < 1 << 40:
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", "ours", "theirs")


@pytest.mark.parametrize("size", [0, 513, (512 << 20) + 512])
async def test_empty_overlay_takes_writes_anywhere_and_reads_its_base(images, tmp_path, run, size):
    run("qemu-img", "create", "-q", "-f", "raw", "base", str(size))
    base, overlay = tmp_path / "base", tmp_path / "o"
    if size:
        with base.open("r+b") as file:
            file.write(b"\x11" * 512)
    await images.create_image(
        str(overlay), format="qcow2", size_bytes=size, backing=str(base), backing_format="raw", like=None
    )
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "o", "base") if size % 512 == 0 else None
    if size:
        run("qemu-io", "-f", "qcow2", "-c", "read -P 0x11 0 512", "o")
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x22 {size // 512 * 512 - 512} 512", "o")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 0x33 0 1", "o")
    run("qemu-img", "check", "-q", "-f", "qcow2", "o")
    run("qemu-img", "resize", "-q", "-f", "qcow2", "o", "2T")
    run("qemu-img", "snapshot", "-c", "one", "o")
    run(
        "qemu-img",
        "rebase",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "/somewhere/else/" + "x" * 900,
        "-F",
        "qcow2",
        "o",
    )
    found = header_of(overlay)
    assert found is not None
    assert (found.backing, found.backing_format) == ("/somewhere/else/" + "x" * 900, "qcow2")
    run("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", "o")
    run("qemu-img", "check", "-q", "-f", "qcow2", "o")


async def test_create_image_makes_several_at_once(images, tmp_path):
    base = f"{tmp_path}/base"
    Path(base).touch()
    async with anyio.create_task_group() as group:
        for name in range(8):
            group.start_soon(
                lambda file: images.create_image(
                    file, format="qcow2", size_bytes=SIZE, backing=base, backing_format="raw", like=base
                ),
                f"{tmp_path}/{name}",
            )
    files = survey.look(Ask(files=(base,), survey=(str(tmp_path),)))
    assert files.backed_by(base) == tuple(f"{tmp_path}/{name}" for name in range(8))


async def test_create_image_leaves_nothing_when_the_disk_is_full(images, small):
    place = small("64k")
    (place / "filler").write_bytes(bytes(56 << 10))
    with pytest.raises(InvalidTarget, match="no space left on the file system"):
        await images.create_image(
            f"{place}/o", format="qcow2", size_bytes=SIZE, backing="/b", backing_format="raw", like=None
        )
    assert [path.name for path in place.iterdir()] == ["filler"]


async def test_create_image_says_so_when_the_file_system_is_read_only(images, small):
    place = small("64k")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    files = survey.look(Ask(directories=(str(place),)))
    fact = files.directories[str(place)]
    assert (fact.exists, fact.writable, fact.problem) == (True, False, "read-only file system")
    with pytest.raises(InvalidTarget, match="read-only file system"):
        await images.create_image(
            f"{place}/o", format="qcow2", size_bytes=SIZE, backing="/b", backing_format="raw", like=None
        )


@pytest.mark.parametrize(
    "options",
    ["", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd"],
)
def test_overlay_is_not_fresh_once_anything_is_written(tmp_path, run, options):
    base = tmp_path / "base"
    base.touch()
    os.truncate(base, 64 << 20)
    more = ["-o", options] if options else []
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", *more, "o")
    assert cleanup.fresh(f"{tmp_path}/o", str(base)) is not None
    run("qemu-io", "-f", "qcow2", "-c", "write -z 63M 512", "o")
    assert cleanup.fresh(f"{tmp_path}/o", str(base)) is None


@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M"])
@pytest.mark.parametrize("recorded", ["base", "./base", "sub/../base", "{d}/base", "file:{d}/base"])
def test_parse_header_agrees_with_qemu_img(tmp_path, run, options, recorded):
    base = tmp_path / "base"
    base.touch()
    (tmp_path / "sub").mkdir()
    recorded = recorded.format(d=tmp_path)
    run(
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-o",
        options,
        "-b",
        recorded,
        "-F",
        "raw",
        "o",
        "64M",
    )
    for name in "ab":
        run("qemu-img", "snapshot", "-q", "-c", name, "o")
    told, found = info(run, tmp_path / "o"), header_of(tmp_path / "o")
    assert found is not None
    assert (
        (found.format, found.virtual_size),
        (found.backing, found.backing_format, found.snapshot_count),
    ) == (
        (told["format"], told["virtual-size"]),
        (told["backing-filename"], told["backing-filename-format"], len(told["snapshots"])),
    )
    resolved = backing_path(recorded, of=f"{tmp_path}/o")
    assert resolved is not None
    assert Path(resolved).samefile(base)
    assert Path(told.get("full-backing-filename", base).removeprefix("file:")).samefile(base)


def test_parse_header_counts_the_bitmaps_that_qemu_img_lists(tmp_path, run):
    run("qemu-img", "create", "-q", "-f", "qcow2", "o", "64M")
    for name in "abc":
        run("qemu-img", "bitmap", "--add", "o", name)
    found = header_of(tmp_path / "o")
    assert found is not None
    assert found.bitmaps == len(info(run, "o")["format-specific"]["data"]["bitmaps"]) == 3


def test_parse_header_names_the_data_file(tmp_path, run):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "o", "64M")
    found = header_of(tmp_path / "o")
    assert found is not None
    assert found.data_file == "d.raw"


def test_headers_made_by_hand_are_headers_to_qemu_img(tmp_path, run):
    (tmp_path / "o").write_bytes(qcow2_bytes(backing="/no/such/base").ljust(1 << 20, b"\0"))
    told = json.loads(run("qemu-img", "info", "-U", "--output=json", "o"))
    assert (told["backing-filename"], told["virtual-size"]) == ("/no/such/base", SIZE)
