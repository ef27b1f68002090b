"""Archives from elsewhere cannot write outside their folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from zoo.errors import UserError
from zoo.fetch.archives import unpack


def zipped(path: Path, **members: bytes) -> Path:
    return zipped_names(path, members)


def zipped_names(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def tarred(path: Path, *infos: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        for info, content in infos:
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return path


def test_good_archives(tmp_path: Path) -> None:
    archive = zipped_names(tmp_path / "a.zip", {"a/b.txt": b"b", "c.txt": b"c"})
    out = tmp_path / "out"
    assert sorted(p.relative_to(out).as_posix() for p in unpack(archive, out)) == ["a/b.txt", "c.txt"]
    assert (out / "a" / "b.txt").read_bytes() == b"b"
    unpack(tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("./d/e.txt"), b"e")), out)
    assert (out / "d" / "e.txt").read_bytes() == b"e"


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt"])
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    out = tmp_path / "inner" / "out"
    archive = zipped_names(tmp_path / "a.zip", {"good.txt": b"g", name: b"x"})
    with pytest.raises(UserError, match="Nothing was unpacked"):
        unpack(archive, out)
    bundle = tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("good.txt"), b"g"), (tarfile.TarInfo(name), b"x"))
    with pytest.raises(UserError, match="Nothing was unpacked"):
        unpack(bundle, out)
    assert not list(out.iterdir())
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_and_devices(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(link, "/etc")
    with pytest.raises(UserError, match="link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("thing")
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(UserError, match="link or a device"):
            unpack(tarred(tmp_path / "a.tar.gz", (info, b"")), tmp_path / "out")


def test_a_link_that_is_there_already(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(outside)
    with pytest.raises(UserError, match="through a link"):
        unpack(zipped_names(tmp_path / "a.zip", {"a/b.txt": b"b"}), out)
    assert not list(outside.iterdir())


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "a.zip", zeros=bytes(3_000_000))
    with pytest.raises(UserError, match="fit"):
        unpack(archive, tmp_path / "out", most_bytes=1000)
    monkeypatch.setattr("zoo.fetch.archives._SMALL", 1000)
    monkeypatch.setattr("zoo.fetch.archives.RATIO", 100)
    with pytest.raises(UserError, match="100 times"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_false_size_stops_the_writing(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", a=b"x" * 5000)
    raw = bytearray(archive.read_bytes())
    size = (5000).to_bytes(4, "little")
    for at in (i for i in range(len(raw)) if raw[i : i + 4] == size):
        raw[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(bytes(raw))
    with pytest.raises(UserError):
        unpack(archive, tmp_path / "out")
    assert all(p.stat().st_size <= 10 for p in (tmp_path / "out").iterdir())


def test_no_archive_and_twice_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match="no archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    with pytest.raises(UserError, match="stands twice"):
        unpack(tarred(tmp_path / "b.tar.gz", *[(tarfile.TarInfo("a"), b"1")] * 2), tmp_path / "out")
    whole = zipped(tmp_path / "c.zip", a=bytes(range(256)) * 50).read_bytes()
    (tmp_path / "c.zip").write_bytes(whole[:60] + b"\0\0\0\0" + whole[64:])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "c.zip", tmp_path / "out")
