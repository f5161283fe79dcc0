from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import UnsafeImage
from qmpsnap.run.examined_images import damages, follow_broken
from qmpsnap.run.preflight import read_chains
from tests.headers import qcow2_bytes

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = UnsafeImage("it was refused", file="", hint="do that")


def followed(image: Path, *allowed: Path) -> list[tuple[str, str]]:
    """The paths of the chain, and what is there."""
    broken = follow_broken("vda", str(image), REFUSED, tuple(map(str, allowed)))
    assert (broken.disk, broken.reason, broken.hint) == ("vda", "it was refused", "do that")
    return [(path, fact.kind) for path, fact in broken.files]


def image(path: Path, backing: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(qcow2_bytes(backing=backing, backing_format="qcow2" if backing else None))
    return path


def test_a_chain_is_followed_to_where_it_breaks(tmp_path: Path) -> None:
    top = image(tmp_path / "top.qcow2", "mid.qcow2")
    assert followed(top) == [(str(top), "regular"), (f"{tmp_path}/mid.qcow2", "missing")]
    image(tmp_path / "mid.qcow2", "top.qcow2")  # a loop
    assert [path for path, _ in followed(top)] == [str(top), f"{tmp_path}/mid.qcow2"]
    assert followed(tmp_path / "absent") == [(f"{tmp_path}/absent", "missing")]


def test_a_header_leads_only_where_the_caller_allows(tmp_path: Path) -> None:
    outside = image(tmp_path / "other" / "base.qcow2")
    top = image(tmp_path / "mine" / "top.qcow2", str(outside))
    assert followed(top) == [(str(top), "regular")]
    assert followed(top, tmp_path / "other") == [(str(top), "regular"), (str(outside), "regular")]
    for name in ("json:{}", "nbd://host/x"):
        assert followed(image(top, name)) == [(str(top), "regular")]
    (tmp_path / "mine" / "pipe").mkdir()
    assert followed(image(top, "pipe"))[1] == (f"{tmp_path}/mine/pipe", "other")


def test_images_beside_the_chain_are_listed(tmp_path: Path) -> None:
    top = image(tmp_path / "mine" / "top.qcow2", "/gone/base.qcow2")
    beside = image(tmp_path / "mine" / "base.qcow2")
    allowed = image(tmp_path / "other" / "more.qcow2")
    (tmp_path / "other" / "directory").mkdir()
    broken = follow_broken("vda", str(top), REFUSED, (str(tmp_path / "other"), "/absent"))
    assert broken.near == (str(beside), str(top), str(allowed))


def test_damages_are_named(tmp_path: Path) -> None:
    good, dirty, corrupt = (tmp_path / f"{name}.qcow2" for name in ("good", "dirty", "corrupt"))
    for path, incompatible in ((good, 0), (dirty, 1), (corrupt, 2)):
        data = bytearray(qcow2_bytes())
        data[79] = incompatible
        path.write_bytes(data)
    chains = [chain for path in (dirty, corrupt) for chain in read_chains({path.stem: str(path)})]
    assert damages(chains) == {str(dirty): "was not closed properly", str(corrupt): "is marked as corrupt"}
    (whole,) = read_chains({"good": str(good)})
    assert list(damages([whole])) == [str(good)]  # a header alone is a truncated image
