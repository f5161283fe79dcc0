import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.header import Header, backing_path, luks_place, parse_header
from tests.each import each
from tests.headers import patched, qcow2_bytes


@each("version", [2, 3])
def test_parse_header_reads_all_of_qcow2_when_it_has_a_backing_file(version):
    data = qcow2_bytes(
        version=version, backing="base.raw", backing_format="raw", snapshots=2, cluster_bits=12
    )
    assert parse_header(data) == Header(
        format="qcow2",
        virtual_size=1 << 30,
        backing="base.raw",
        backing_format="raw",
        snapshot_count=2,
        l1_offset=3 << 12,
        l1_entries=512,
        cluster_bits=12,
    )
    header = parse_header(patched(patched(data, 32, ">I", 2), 72, ">Q", 3))
    assert header is not None
    assert (header.encryption, header.incompatible) == (2, 3 if version == 3 else 0)


def test_parse_header_reads_data_file_and_bitmaps_of_qcow2():
    header = parse_header(qcow2_bytes(data_file="data.raw", bitmaps=3))
    assert header is not None
    assert (header.data_file, header.bitmaps) == ("data.raw", 3)
    assert (header.backing, header.backing_format) == (None, None)


LUKS = b"LUKS\xba\xbe\x00\x01".ljust(104, b"\0") + struct.pack(">I", 4040)


@each(
    ("data", "place"),
    [
        (LUKS, (0, 4040 * 512)),
        (LUKS[:104] + struct.pack(">I", 0), None),
        (LUKS[:104] + struct.pack(">I", (16 << 11) + 1), None),  # more than 16 MiB
        (patched(LUKS, 7, "B", 2), None),  # version 2
        (b"", None),
    ],
)
def test_luks_header_ends_where_the_data_begin(data, place):
    assert luks_place(data) == place


@each(
    ("method", "pointer", "place"),
    [
        (2, (262144, 2068480), (262144, 2068480)),
        (0, (262144, 2068480), None),  # a stale extension
        (2, (262144, 1 << 40), None),
        (2, (1 << 63, 512), None),
    ],
)
def test_parse_header_tells_where_the_luks_header_of_qcow2_lies(method, pointer, place):
    data = patched(qcow2_bytes().ljust(4096, b"\0"), 32, ">I", method)
    data = patched(data, 104, ">IIQQII", 0x0537BE77, 16, *pointer, 0, 0)
    header = parse_header(data)
    assert header is not None
    assert header.luks == place


def test_parse_header_counts_no_bitmaps_when_their_extension_is_stale():
    header = parse_header(patched(qcow2_bytes(bitmaps=3), 88, ">Q", 0))
    assert header is not None
    assert header.bitmaps == 0


def test_parse_header_tells_a_data_file_without_a_name_from_none():
    nameless = parse_header(patched(qcow2_bytes(), 72, ">Q", 4))
    without = parse_header(qcow2_bytes())
    assert nameless is not None
    assert without is not None
    assert (nameless.data_file, without.data_file) == ("", None)


def test_parse_header_takes_a_name_right_behind_the_header_for_no_extension():
    data = patched(patched(qcow2_bytes(version=2)[:72] + b"/a/base.raw", 8, ">Q", 72), 16, ">I", 11)
    header = parse_header(data)
    assert header is not None
    assert header.backing == "/a/base.raw"


def test_parse_header_passes_over_unknown_extensions():
    header = parse_header(qcow2_bytes(backing="b", backing_format="qcow2", pad=13))
    assert header is not None
    assert (header.backing, header.backing_format) == ("b", "qcow2")


@each("data", [b"", b"QF", b"\0" * 512, b"KDMV" + b"\0" * 508, b"QED\0" + b"\0" * 508])
def test_parse_header_is_none_when_there_is_no_known_magic(data):
    assert parse_header(data) is None


def test_parse_header_keeps_bytes_that_are_no_utf_8():
    name = b"/d/\xff\xe9.raw"
    header = parse_header(qcow2_bytes(backing=name.decode("utf-8", "surrogateescape")))
    assert header is not None
    assert header.backing is not None
    assert header.backing.encode("utf-8", "surrogateescape") == name


def test_parse_header_ends_a_name_at_its_first_nul_as_qemu_does():
    header = parse_header(qcow2_bytes(backing="/a\0/b"))
    assert header is not None
    assert header.backing == "/a"


BACKED = qcow2_bytes(backing="/base", backing_format="raw")


@each(
    ("data", "reason"),
    [
        (BACKED[:50], "truncated at byte 50"),
        (BACKED[:100], "truncated at byte 100"),
        (BACKED[:-1], "truncated in the backing file's name"),
        (qcow2_bytes(backing_format="raw")[:114], "truncated in header extension 0xe2792aca"),
        (patched(BACKED, 4, ">I", 1), "unknown version 1"),
        (patched(BACKED, 4, ">I", 4), "unknown version 4"),
        (patched(BACKED, 8, ">Q", 1 << 63), "extends beyond the header"),
        (patched(BACKED, 8, ">Q", (1 << 16) - 2), "extends beyond the header"),
        (patched(BACKED, 16, ">I", 1024), "name of 1024 bytes, at most 1023"),
        (patched(BACKED, 16, ">I", 0xFFFFFFFF), "at most 1023"),
        (patched(BACKED, 20, ">I", 8), "cluster bits 8"),
        (patched(BACKED, 20, ">I", 63), "cluster bits 63"),
        (patched(BACKED, 100, ">I", 96), "header length 96"),
        (patched(BACKED, 100, ">I", 1 << 31), "header length 2147483648"),
        (patched(BACKED, 108, ">I", 0xFFFFFFFF), "extension 0xe2792aca of 4294967295 bytes extends beyond"),
        (qcow2_bytes(backing_format="x" * 16), "backing format of 16 bytes"),
        (patched(qcow2_bytes(bitmaps=1), 108, ">I", 0), "truncated at byte 0"),
    ],
)
def test_parse_header_says_what_is_wrong_when_the_header_is_broken(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_header(data)


@given(
    st.one_of(
        st.binary(max_size=300).map(lambda tail: b"QFI\xfb" + tail),
        st.binary(max_size=300).map(lambda tail: b"QFI\xfb\0\0\0\3" + tail),
        st.builds(
            lambda data, at, value: patched(data, at, ">I", value),
            st.sampled_from([BACKED, qcow2_bytes(bitmaps=2, data_file="d")]),
            st.integers(4, 60),
            st.integers(0, 0xFFFFFFFF),
        ),
    )
)
def test_parse_header_gives_a_header_or_a_value_error_when_the_data_is_hostile(data):
    try:
        header = parse_header(data)
    except ValueError:
        return
    assert isinstance(header, Header)
    assert header.backing is None or len(header.backing) <= 4095


@each(
    ("recorded", "path"),
    [
        ("/a/base.raw", "/a/base.raw"),
        ("base.raw", "/d/base.raw"),
        ("../x/base.raw", "/d/../x/base.raw"),
        ("./a:b", "/d/./a:b"),
        ("/a/co:lon", "/a/co:lon"),
        ("file:/a/b", "/a/b"),
        ("host_device:/dev/sda", "/dev/sda"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/a/b"}}', "/a/b"),
        ('json:{"driver":"raw","file.driver":"host_device","file.filename":"/dev/sda"}', "/dev/sda"),
        ('json:{"file":{"file.filename":"/a/b"}}', "/a/b"),
        ('json:{"driver":"qcow2","filename":"/a/b"}', "/a/b"),
        ('json:{"driver":"file","filename":"a:b"}', "/d/a:b"),
        (
            'json:{"throttle-group":"g","driver":"throttle","file":{"driver":"raw","file":{"filename":"/a"}}}',
            "/a",
        ),
        ("nbd:unix:/s", None),
        ("nbd://host/x", None),
        ("rbd:pool/x", None),
        ('json:{"driver":"nbd","server":{"type":"unix","path":"/s"}}', None),
        ('json:{"filename":"nbd://host/x"}', None),
        ('json:{"filename":"json:{}"}', None),
        ('json:{"file":"node"}', None),
        ("json:[]", None),
        ("json:" + "[" * 100_000, None),
        ("json:{", None),
        ('json:{"filename":"\\ud800"}', None),
        ('json:{"driver":"file","filename":"/a\\u0000b"}', None),
        ("file:", None),
    ],
)
def test_backing_path_resolves_a_name_as_qemu_does(recorded, path):
    assert backing_path(recorded, of="/d/overlay.qcow2") == path


@given(st.text(max_size=80).map(lambda tail: "json:{" + tail))
def test_backing_path_never_fails_when_the_name_is_hostile(recorded):
    path = backing_path(recorded, of="/d/o")
    assert path is None or path.startswith("/")
