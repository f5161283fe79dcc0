"""Images of a machine that is off: which are read, and which are refused before anything opens them."""

from __future__ import annotations

import getpass
import os
import re
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpsnap.errors import (
    BadArgument,
    FileMoved,
    ImageInUse,
    InvalidTarget,
    NotFound,
    Refused,
    StillNeeded,
    UnsafeImage,
    Unsupported,
)
from qmpsnap.run.preflight import read_chains, refuse_exchanged, refuse_unusable
from qmpsnap.run.safe_open import open_file
from tests.each import all_failures, each
from tests.headers import patched, qcow2_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1 << 20
TABLES = (3 << 16) + 8  # bytes up to the end of the L1 table of an empty image


@pytest.fixture
def place(tmp_path):
    """A directory of images, beside another one whose files no header may name."""
    directory = tmp_path.resolve() / "vm1"
    directory.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(bytes(512))
    return directory


def image(path, backing=None, form="qcow2", **fields):
    data = qcow2_bytes(
        backing=backing, backing_format=form if backing else None, **{"virtual_size": SIZE, **fields}
    )
    path.write_bytes(data.ljust(TABLES, b"\0"))
    return str(path)


def chain_in(place):
    """The images base.raw <- mid.qcow2 <- top.qcow2."""
    (place / "base.raw").write_bytes(bytes(1000))
    image(place / "mid.qcow2", "base.raw", "raw")
    return image(place / "top.qcow2", str(place / "mid.qcow2"))


def test_read_chains_gives_each_layer_active_first(place):
    (chain,) = read_chains({"vda": chain_in(place)})
    ids = [(place / name).stat() for name in ("top.qcow2", "mid.qcow2", "base.raw")]
    assert chain.disk == "vda"
    assert chain.files == tuple(str(place / name) for name in ("top.qcow2", "mid.qcow2", "base.raw"))
    assert chain.active is chain.layers[0]
    assert [layer.format for layer in chain.layers] == ["qcow2", "qcow2", "raw"]
    assert [layer.virtual_size for layer in chain.layers] == [SIZE, SIZE, 1024]
    assert [layer.backing for layer in chain.layers] == [str(place / "mid.qcow2"), "base.raw", None]
    assert [(layer.device, layer.inode) for layer in chain.layers] == [(s.st_dev, s.st_ino) for s in ids]
    assert [layer.header is not None for layer in chain.layers] == [True, True, False]
    assert [layer.opened for layer in chain.layers[2:]] == [
        ((str(place / "base.raw"), (ids[2].st_dev, ids[2].st_ino)),)
    ]


def test_read_chains_takes_a_path_of_the_callers_directory(place, monkeypatch):
    chain_in(place)
    monkeypatch.chdir(place)
    (chain,) = read_chains({"vda": "mid.qcow2"})
    assert chain.files == (str(place / "mid.qcow2"), str(place / "base.raw"))


def test_read_chains_follows_links_that_stay_in_the_directory(place):
    chain_in(place)
    (place / "now.qcow2").symlink_to("top.qcow2")
    (place.parent / "there").symlink_to(place)
    (chain,) = read_chains({"vda": str(place.parent / "there" / "now.qcow2")})
    assert chain.files == (
        str(place.parent / "there" / "now.qcow2"),
        str(place / "mid.qcow2"),
        str(place / "base.raw"),
    )


def test_read_chains_gives_the_data_file_of_an_image(place):
    (place / "d.raw").write_bytes(bytes(SIZE))
    top = image(place / "top.qcow2", data_file=str(place / "d.raw"))
    (chain,) = read_chains({"vda": top})
    status = (place / "d.raw").stat()
    assert chain.active.data_file == str(place / "d.raw")
    assert chain.active.opened[1] == (str(place / "d.raw"), (status.st_dev, status.st_ino))


def raw(name):
    def make(place):
        (place / name).write_bytes(bytes(1000))
        return place / name

    return make


def qcow2(name):
    def make(place):
        image(place / name)
        return place / name

    return make


@each(
    ("make", "given", "read"),
    [
        (qcow2("a.qcow2"), None, "qcow2"),
        (qcow2("a.qcow2"), "qcow2", "qcow2"),
        (qcow2("a.img"), "qcow2", "qcow2"),
        (qcow2("a.qcow2"), "raw", "raw"),  # the caller's word
        (raw("a.img"), "raw", "raw"),
        (raw("a.qcow2"), "raw", "raw"),
    ],
)
def test_read_chains_opens_an_image_in_the_format_that_is_known(place, make, given, read):
    formats = {"vda": given} if given else {}
    (chain,) = read_chains({"vda": str(make(place))}, formats=formats)
    assert [layer.format for layer in chain.layers] == [read]


@each(
    ("make", "given", "text", "hint"),
    [
        (raw("a.img"), None, "format of .* was not given", "--format vda=raw"),
        (qcow2("a.img"), None, "may have been written by a guest", "--format vda=qcow2"),
        (qcow2("a.QCOW2"), None, "may have been written by a guest", "--format vda=qcow2"),
        (raw("a.qcow2"), None, "has a name in .qcow2, but has no qcow2 header", "--format vda=raw"),
        (raw("a.img"), "qcow2", "was given as qcow2, but has no", "--format vda=raw"),
    ],
)
def test_read_chains_never_guesses_a_format(place, make, given, text, hint):
    formats = {"vda": given} if given else {}
    with pytest.raises(UnsafeImage, match=text) as caught:
        read_chains({"vda": str(make(place))}, formats=formats)
    assert hint in caught.value.hint


def backed(name, form="qcow2"):
    return lambda place: image(place / "top.qcow2", name.replace("PLACE", str(place)), form)


def linked_out(place):
    (place / "link").symlink_to(place.parent / "other" / "secret")
    return image(place / "top.qcow2", "link", "raw")


def linked_out_by_a_directory(place):
    (place / "dir").symlink_to(place.parent / "other")
    return image(place / "top.qcow2", "dir/secret", "raw")


def itself_linked_out(place):
    image(place.parent / "other" / "x.qcow2")
    (place / "top.qcow2").symlink_to("../other/x.qcow2")
    return place / "top.qcow2"


def below(place):
    (place / "sub").mkdir()
    image(place / "sub" / "base.qcow2")
    return image(place / "top.qcow2", "sub/base.qcow2")


def lower_data_file(name):
    def make(place):
        image(place / "base.qcow2", data_file=name.replace("PLACE", str(place)))
        return image(place / "top.qcow2", "base.qcow2")

    return make


def own_data_file(place):
    os.link(image(place / "top.qcow2", data_file=str(place / "d.raw")), place / "d.raw")
    return place / "top.qcow2"


def loop_of_one(place):
    return image(place / "top.qcow2", "top.qcow2")


def loop_of_two(place):
    image(place / "base.qcow2", "top.qcow2")
    return image(place / "top.qcow2", "base.qcow2")


def loop_by_a_hard_link(place):
    os.link(image(place / "top.qcow2", "base.qcow2"), place / "base.qcow2")
    return place / "top.qcow2"


def loop_by_a_link(place):
    (place / "base.qcow2").symlink_to("top.qcow2")
    return image(place / "top.qcow2", "base.qcow2")


def a_kind(make: Callable[[Path], object]):
    def put(place):
        make(place / "base")
        return image(place / "top.qcow2", "base", "raw")

    return put


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


def no_format(place):
    (place / "base.raw").write_bytes(bytes(512))
    (place / "top.qcow2").write_bytes(qcow2_bytes(backing="base.raw"))
    return place / "top.qcow2"


def not_qcow2(place):
    (place / "base").write_bytes(bytes(512))
    return image(place / "top.qcow2", "base")


def header_with(offset, layout, *values):
    """A chain whose base has those values in its header."""

    def make(place):
        data = qcow2_bytes(virtual_size=SIZE).ljust(TABLES, b"\0")
        (place / "base.qcow2").write_bytes(patched(data, offset, layout, *values))
        return image(place / "top.qcow2", "base.qcow2")

    return make


HOSTILE = [
    (backed('json:{"driver":"file","filename":"/etc/passwd"}', "raw"), UnsafeImage, "not a plain file name"),
    (
        backed('json:{"driver":"file","filename":"{place}/base"}'.replace("{place}", "x")),
        UnsafeImage,
        "plain",
    ),
    (backed("nbd:unix:/run/nbd.sock", "raw"), UnsafeImage, "not a plain file name"),
    (backed("nbd://10.0.0.1/disk", "raw"), UnsafeImage, "not a plain file name"),
    (backed("http://example.org/disk", "raw"), UnsafeImage, "not a plain file name"),
    (backed("file:base.raw", "raw"), UnsafeImage, "not a plain file name"),
    (backed("host_device:/dev/sda", "raw"), UnsafeImage, "not a plain file name"),
    (backed("fat:/etc", "raw"), UnsafeImage, "not a plain file name"),
    (backed("/etc/passwd", "raw"), UnsafeImage, "leads to '/etc/passwd', outside the directory"),
    (backed("file:/etc/passwd", "raw"), UnsafeImage, "leads to '/etc/passwd', outside the directory"),
    (backed("../other/secret", "raw"), UnsafeImage, "outside the directory"),
    (backed("PLACE/../other/secret", "raw"), UnsafeImage, "outside the directory"),
    (backed("/proc/self/environ", "raw"), UnsafeImage, "outside the directory"),
    (backed("/dev/zero", "raw"), UnsafeImage, "outside the directory"),
    (linked_out, UnsafeImage, "a symbolic link to .*other/secret', outside"),
    (linked_out_by_a_directory, UnsafeImage, "outside the directory"),
    (itself_linked_out, UnsafeImage, "is a symbolic link to .*other/x.qcow2', outside"),
    (below, UnsafeImage, "outside the directory"),
    (lower_data_file("/etc/passwd"), UnsafeImage, "leads to '/etc/passwd', outside"),
    (lower_data_file("PLACE/../other/secret"), UnsafeImage, "outside the directory"),
    (lower_data_file("d.raw"), UnsafeImage, "'d.raw' as its data file, which is not an absolute path"),
    (lower_data_file('json:{"driver":"nbd"}'), UnsafeImage, "not an absolute path"),
    (lower_data_file(""), UnsafeImage, "no name of its data file"),
    (own_data_file, UnsafeImage, "is a loop"),
    (loop_of_one, UnsafeImage, "is a loop"),
    (loop_of_two, UnsafeImage, "is a loop"),
    (loop_by_a_hard_link, UnsafeImage, "is a loop"),
    (loop_by_a_link, UnsafeImage, "is a loop"),
    (a_kind(os.mkfifo), UnsafeImage, "cannot be an image: it is a FIFO"),
    (a_kind(unix_socket), UnsafeImage, "cannot be an image: it is a socket"),
    (a_kind(os.mkdir), UnsafeImage, "cannot be an image: it is a directory"),
    (a_kind(lambda path: path.symlink_to(path.name)), InvalidTarget, "the path contains a symbolic link"),
    (backed("none/../base", "raw"), NotFound, "does not exist"),
    (no_format, UnsafeImage, "does not record the format of its backing file"),
    (not_qcow2, UnsafeImage, "as qcow2, which has no qcow2 header"),
    (backed("base", "vmdk"), NotFound, "'.*base', the backing or data file of .*, does not exist"),
    (backed("sub/base"), UnsafeImage, "outside the directory"),
    (header_with(4, ">I", 4), UnsafeImage, "is invalid: qcow2 of unknown version 4"),
    (header_with(20, ">I", 63), UnsafeImage, "is invalid: cluster bits 63"),
    (header_with(8, ">QI", 1 << 63, 10), UnsafeImage, "is invalid: backing file name"),
    (
        header_with(8, ">QI", 120, 0xFFFFFFFF),
        UnsafeImage,
        "is invalid: backing file name of 4294967295 bytes",
    ),
    (header_with(36, ">I", 0xFFFFFFFF), UnsafeImage, "claims an L1 table of 4294967295 entries"),
    (header_with(36, ">I", 0), UnsafeImage, "claims a virtual size"),
    (
        header_with(24, ">Q", (1 << 64) - 1),
        UnsafeImage,
        "claims a virtual size of 18446744073709551615 bytes",
    ),
    (header_with(60, ">I", 0xFFFFFFFF), UnsafeImage, "claims 4294967295 snapshots"),
    (header_with(100, ">I", 0xFFFFFFFF), UnsafeImage, "is invalid: header length"),
    (header_with(104, ">II", 0x44415441, 0xFFFFFFFF), UnsafeImage, "is invalid: header extension"),
    (header_with(72, ">Q", 1 << 40), Unsupported, "features that are not known here .*0x10000000000"),
]


def test_read_chains_refuses_a_hostile_chain_and_says_why(tmp_path):
    with all_failures() as checked:
        for number, (make, kind, text) in enumerate(HOSTILE):
            home = tmp_path.resolve() / str(number)
            (home / "vm1").mkdir(parents=True)
            (home / "other").mkdir()
            (home / "other" / "secret").write_bytes(bytes(512))
            top = str(make(home / "vm1"))
            with checked(f"{number}: {text}"):
                with pytest.raises(Refused, match=text) as caught:
                    read_chains({"vda": top})
                assert type(caught.value) is kind


def test_read_chains_refuses_another_format_than_raw_and_qcow2(place):
    (place / "base").write_bytes(bytes(512))
    with pytest.raises(Unsupported, match="records the format 'vmdk'") as caught:
        read_chains({"vda": image(place / "top.qcow2", "base", "vmdk")})
    assert caught.value.feature == "images of other formats"


def test_read_chains_opens_nothing_outside(place, monkeypatch):
    opened = []

    def noted(file):
        opened.append(file)
        return open_file(file)

    monkeypatch.setattr("qmpsnap.run.preflight.open_file", noted)
    for make in (backed("/etc/passwd", "raw"), linked_out, lower_data_file("/etc/passwd")):
        for file in place.iterdir():
            file.unlink()
        with pytest.raises(UnsafeImage):
            read_chains({"vda": str(make(place))})
    assert {Path(file).parent for file in opened} == {place}


def test_read_chains_reads_what_lies_in_an_allowed_directory_or_below_it(place):
    pool = place.parent / "pool" / "bases"
    pool.mkdir(parents=True)
    image(pool / "base.qcow2")
    top = image(place / "top.qcow2", "../pool/bases/base.qcow2")
    for allowed in (pool, pool.parent, str(pool) + "/", "/"):
        (chain,) = read_chains({"vda": top}, allow_dirs=[str(allowed)])
        assert chain.files == (top, f"{place}/../pool/bases/base.qcow2")
    (place.parent / "pool2").mkdir()
    for allowed in (place.parent / "pool2", place.parent / "poo", place.parent / "pool" / "bas"):
        with pytest.raises(UnsafeImage) as caught:
            read_chains({"vda": top}, allow_dirs=[str(allowed)])
        assert f"--allow-dir {pool}" in caught.value.hint


def test_read_chains_reads_at_most_a_thousand_layers(place):
    image(place / "0.qcow2")
    for number in range(1, 1001):
        image(place / f"{number}.qcow2", f"{number - 1}.qcow2")
    assert len(read_chains({"vda": str(place / "999.qcow2")})[0].layers) == 1000
    with pytest.raises(UnsafeImage, match="more than 1000 layers"):
        read_chains({"vda": str(place / "1000.qcow2")})


def test_read_chains_takes_disks_that_share_a_base(place):
    image(place / "base.qcow2")
    one, two = (image(place / f"{name}.qcow2", "base.qcow2") for name in "ab")
    assert [chain.files[1] for chain in read_chains({"vda": one, "vdb": two})] == [f"{place}/base.qcow2"] * 2


def test_read_chains_refuses_two_disks_of_one_image(place):
    top = chain_in(place)
    os.link(top, place / "again.qcow2")
    for other in (top, place / "again.qcow2"):
        with pytest.raises(UnsafeImage, match="the disks vda and vdb are the same image"):
            read_chains({"vda": top, "vdb": str(other)})


def test_read_chains_refuses_a_disk_that_is_a_layer_of_another(place):
    top = chain_in(place)
    mid = str(place / "mid.qcow2")
    for images in ({"vda": top, "vdb": mid}, {"vdb": mid, "vda": top}):
        with pytest.raises(StillNeeded, match=r"is the disk vdb, and is needed by .* the disk vda") as caught:
            read_chains(images)
        assert caught.value.by == (top,)


def test_read_chains_refuses_a_data_file_of_two_images(place):
    (place / "d.raw").write_bytes(bytes(SIZE))
    one, two = (image(place / f"{name}.qcow2", data_file=str(place / "d.raw")) for name in "ab")
    with pytest.raises(UnsafeImage, match="have the same data file"):
        read_chains({"vda": one, "vdb": two})


def test_a_missing_image_that_a_commit_has_renamed_is_told_from_others(place):
    (place / "s1.qcow2.invalid").touch()
    with pytest.raises(NotFound) as caught:
        read_chains({"vda": str(place / "s1.qcow2")})
    assert f"renamed to '{place}/s1.qcow2.invalid'" in caught.value.hint


def test_read_chains_refuses_what_is_not_there_or_not_readable(place):
    with pytest.raises(NotFound, match=r"gone.qcow2' does not exist"):
        read_chains({"vda": str(place / "gone.qcow2")})
    with pytest.raises(UnsafeImage, match="it is a directory"):
        read_chains({"vda": str(place)}, formats={"vda": "raw"}, allow_dirs=[str(place.parent)])
    with pytest.raises(InvalidTarget, match="the name is too long"):
        read_chains({"vda": str(place / ("x" * 300))}, formats={"vda": "raw"})


@each(
    ("formats", "text"),
    [({"vdb": "raw"}, "no image of that disk is given"), ({"vda": "vmdk"}, "give 'qcow2' or 'raw'")],
)
def test_read_chains_refuses_formats_that_mean_nothing(place, formats, text):
    with pytest.raises(BadArgument, match=text):
        read_chains({"vda": str(place / "x.qcow2")}, formats=formats)


def test_read_chains_refuses_a_file_that_is_exchanged_while_it_is_opened(place, monkeypatch):
    top = chain_in(place)

    def exchanged(file):
        """The directory of the images becomes a link, after its real path was looked at."""
        place.rename(place.parent / "old")
        place.symlink_to(place.parent / "old")
        return open_file(file)

    monkeypatch.setattr("qmpsnap.run.preflight.open_file", exchanged)
    with pytest.raises(UnsafeImage, match="was replaced while it was being opened"):
        read_chains({"vda": top})


@each(
    ("make", "kind", "text", "hint"),
    [
        (header_with(72, ">Q", 1), UnsafeImage, "was not closed properly", "qemu-img check -f qcow2 -r all"),
        (header_with(72, ">Q", 2), UnsafeImage, "is marked as corrupt", "qemu-img check -f qcow2 -r all"),
        (header_with(72, ">Q", 3), UnsafeImage, "is marked as corrupt", "qemu-img check -f qcow2 -r all"),
        (header_with(32, ">I", 2), Unsupported, r"is encrypted \(LUKS\)", "use -s"),
        (header_with(32, ">I", 1), Unsupported, r"is encrypted \(AES\)", "use -s"),
    ],
)
def test_refuse_unusable_refuses_what_can_be_read_but_not_changed(place, make, kind, text, hint):
    chains = read_chains({"vda": str(make(place))})
    with pytest.raises(kind, match=text) as caught:
        refuse_unusable(chains)
    assert hint in caught.value.hint


@each(
    ("size", "entries", "lost"),
    [
        (TABLES - 1, {}, "L1 table"),
        (3 << 16, {}, "L1 table"),
        ((2 << 16) - 1, {}, "refcount table"),
        (512, {}, "refcount table"),
        (TABLES, {1 << 16: 4 << 16}, "refcount block"),
        (TABLES, {(1 << 16) + 8: 1 << 40}, "refcount block"),
        (TABLES, {3 << 16: 4 << 16}, "L2 table"),
        (TABLES, {3 << 16: 1 << 63 | 4 << 16}, "L2 table"),  # bit 63: used once
        (TABLES, {3 << 16: 1 << 63 | 2 << 16, 1 << 16: 2 << 16}, ""),
    ],
)
def test_refuse_unusable_refuses_an_image_that_ends_before_one_of_its_tables(place, size, entries, lost):
    for name in ("top.qcow2", "base.qcow2"):
        base = image(place / "base.qcow2")
        top = image(place / "top.qcow2", "base.qcow2")
        with (place / name).open("r+b") as file:
            for offset, value in entries.items():
                file.seek(offset)
                file.write(struct.pack(">Q", value))
            file.truncate(size)
        chains = read_chains({"vda": top})
        if not lost:
            refuse_unusable(chains)
            continue
        with pytest.raises(UnsafeImage, match=f"is truncated: its file ends before its {lost}") as caught:
            refuse_unusable(chains)
        assert caught.value.file == (top if name == "top.qcow2" else base)


def test_refuse_unusable_refuses_an_image_whose_refcount_table_is_larger_than_any(place):
    chains = read_chains({"vda": str(header_with(56, ">I", 1 << 8)(place))})
    with pytest.raises(UnsafeImage, match="a refcount table of 16777216 bytes"):
        refuse_unusable(chains)


def test_refuse_unusable_takes_images_that_nobody_writes_to(place):
    top = chain_in(place)
    with Path(top).open("rb"), (place / "base.raw").open("rb"):
        refuse_unusable(read_chains({"vda": top}))


def test_refuse_unusable_refuses_a_name_that_no_json_can_carry(place):
    (place / "b\udcff").write_bytes(bytes(512))
    chains = read_chains({"vda": image(place / "\u00fc \n,.qcow2", "b\udcff", "raw")})
    with pytest.raises(Unsupported, match="is not UTF-8"):
        refuse_unusable(chains)
    refuse_unusable(read_chains({"vda": image(place / "\u00fc \n,.qcow2")}))


WRITER = "import sys; f = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"


@each("name", ["top.qcow2", "base.raw"])
def test_refuse_unusable_names_the_process_that_writes(place, name):
    chains = read_chains({"vda": chain_in(place)})
    with Popen([sys.executable, "-c", WRITER, place / name], stdin=PIPE, stdout=PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(ImageInUse, match=re.escape(f"process {writer.pid} (python")) as caught:
            refuse_unusable(chains)
        writer.communicate()
    assert (caught.value.file, caught.value.pid) == (str(place / name), writer.pid)
    assert caught.value.program.startswith("python")
    assert caught.value.user == getpass.getuser()
    refuse_unusable(chains)


def test_refuse_unusable_refuses_an_image_that_was_exchanged(place):
    chains = read_chains({"vda": chain_in(place)})
    (place / "mid.qcow2").rename(place / "old")
    image(place / "mid.qcow2")
    with pytest.raises(FileMoved, match=r"mid.qcow2' was replaced after it was checked"):
        refuse_unusable(chains)


READER = """
import sys
import threading
import time
from contextlib import suppress
files = [open(file, 'rb') for file in sys.argv[1:]]
print('open', flush=True)
sys.stdin.read()
"""


def opened_by_a_process(files, check):
    with Popen([sys.executable, "-c", READER, *files], stdin=PIPE, stdout=PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        try:
            check(reader.pid)
        finally:
            reader.communicate()


def test_refuse_exchanged_takes_a_process_that_has_open_what_was_checked(place):
    chains = read_chains({"vda": chain_in(place)})
    opened_by_a_process(chains[0].files, lambda pid: refuse_exchanged(chains, pid))


def test_refuse_exchanged_refuses_a_process_that_has_another_file_open(place):
    chains = read_chains({"vda": chain_in(place)})

    def refused(text):
        def check(pid):
            with pytest.raises(FileMoved, match=text):
                refuse_exchanged(chains, pid)

        return check

    secret = str(place.parent / "other" / "secret")
    opened_by_a_process(chains[0].files[:-1], refused(r"base.raw' was replaced"))
    opened_by_a_process(
        [*chains[0].files, secret], refused(r"secret' was opened, which no checked header names")
    )


@settings(max_examples=60, deadline=None)
@given(
    fields=st.lists(
        st.tuples(st.integers(4, 200), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 400),
)
def test_read_chains_reads_or_refuses_any_header(tmp_path_factory, fields, cut):
    place = tmp_path_factory.getbasetemp() / "any"
    place.mkdir(exist_ok=True)
    data = bytearray(qcow2_bytes(backing="base.qcow2", backing_format="qcow2", virtual_size=SIZE))
    data += bytes(512 - len(data))
    for offset, value in fields:
        data[offset : offset + len(value)] = value
    (place / "top.qcow2").write_bytes(data[: 512 - cut])
    image(place / "base.qcow2")
    try:
        (chain,) = read_chains({"vda": str(place / "top.qcow2")})
    except Refused:
        return
    assert {*chain.files} <= {str(place / name) for name in ("top.qcow2", "base.qcow2")}


def test_read_chains_never_gives_a_file_outside_while_its_names_are_exchanged(place):
    """A file, and a directory on the way to one, become links outside and files again, again and again."""
    (place / "sub").mkdir()
    (place.parent / "other" / "base.raw").write_bytes(bytes(2048))
    (place / "sub" / "base.raw").write_bytes(bytes(1024))
    (place / "base.raw").write_bytes(bytes(1024))
    by_file = image(place / "file.qcow2", "base.raw", "raw")
    by_directory = image(place / "directory.qcow2", "sub/base.raw", "raw")
    ended = threading.Event()

    def exchange():
        while not ended.is_set():
            (place / "new").symlink_to("../other/base.raw")
            (place / "new").replace(place / "base.raw")
            (place / "sub").rename(place / "kept")
            (place / "sub").symlink_to("../other")
            (place / "new").write_bytes(bytes(1024))
            (place / "new").replace(place / "base.raw")
            (place / "sub").unlink()
            (place / "kept").rename(place / "sub")

    thread = threading.Thread(target=exchange)
    thread.start()
    sizes: list[int | None] = []
    until = time.monotonic() + 0.3
    try:
        while time.monotonic() < until or not sizes:
            for top in (by_file, by_directory):
                with suppress(Refused):
                    (chain,) = read_chains({"vda": top}, allow_dirs=[str(place)])
                    sizes.append(chain.layers[1].virtual_size)
    finally:
        ended.set()
        thread.join()
    assert set(sizes) == {1024}


PIECES = ["../", "./", "/", "other/", "vm1/", "out/", "in/", "secret", "base.qcow2", "json:", "nbd:", "file:"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """A directory with links to itself, outside, and to each other, and a sound image."""
    place = tmp_path_factory.mktemp("maze").resolve() / "vm1"
    (place.parent / "other").mkdir()
    (place.parent / "other" / "secret").write_bytes(bytes(512))
    image(place.parent / "other" / "base.qcow2")
    place.mkdir()
    image(place / "base.qcow2")
    (place / "out").symlink_to("../other")
    (place / "in").symlink_to("out/../vm1")
    (place / "secret").symlink_to("in/out/secret")
    return place


@settings(max_examples=90, deadline=None)
@given(backing=NAMES, data=st.none() | NAMES, form=st.sampled_from(["raw", "qcow2"]))
def test_read_chains_opens_nothing_outside_whatever_the_names(maze, backing, data, form):
    opened = []

    def noted(file):
        opened.append(os.path.realpath(file))
        return open_file(file)

    top = image(maze / "top.qcow2", backing, form, data_file=data)
    with pytest.MonkeyPatch.context() as patch, suppress(Refused):
        patch.setattr("qmpsnap.run.preflight.open_file", noted)
        (chain,) = read_chains({"vda": top})
        assert chain.files[1:] == () or Path(chain.files[1]).samefile(maze / "base.qcow2")
    assert {Path(file).parent for file in opened} <= {maze}
