"""Unpacking archives from elsewhere: nothing is written outside the folder, and nothing before all is checked."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from zoo.errors import UserError

RATIO = 1000  # unpacked bytes a packed one, above which an archive of more than 100 MB is no data set
_SMALL = 100 * 2**20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    folder: bool
    plain: bool


def unpack(archive: Path, folder: Path, *, most_bytes: int | None = None) -> list[Path]:
    """Unpack a .zip or .tar(.gz, .bz2, .xz) below `folder`, which is created, and return the files written.

    `most_bytes`: largest total size; by default what is free on the disk. Raises `UserError`, before anything is
    written, for names that lead outside, absolute names, links and devices, a name that stands twice, a total that
    does not fit, and contents packed more than 1000 times; and for a file that is no archive or is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = shutil.disk_usage(folder).free if most_bytes is None else most_bytes
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                infos = packed.infolist()
                _check(archive, [_of_zip(i) for i in infos], limit)
                streams = ((i.filename, i.file_size, packed.open(i)) for i in infos if not i.is_dir())
                return _write(archive, folder, streams)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as bundle:
                members = bundle.getmembers()
                _check(archive, [_Member(m.name, m.size, m.isdir(), m.isreg() or m.isdir()) for m in members], limit)
                opened = ((m.name, m.size, bundle.extractfile(m)) for m in members if m.isreg())
                return _write(archive, folder, ((name, size, s) for name, size, s in opened if s is not None))
    except FileNotFoundError:
        raise UserError(f"{archive}: there is no such file.") from None
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise UserError(f"{archive}: the archive cannot be unpacked ({error}). Download it again.") from None
    raise UserError(f"{archive}: the file is no archive. Expected .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz.")


def _of_zip(info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Member(info.orig_filename, info.file_size, info.is_dir(), plain)


def _check(archive: Path, members: Iterable[_Member], limit: int) -> None:
    total, seen = 0, set()
    for member in members:
        problem = _fault(member)
        if problem:
            raise UserError(f'{archive}: "{member.name}" {problem}. Nothing was unpacked. Get the archive elsewhere.')
        name = member.name.rstrip("/")
        if not member.folder and name in seen:
            raise UserError(f'{archive}: "{member.name}" stands twice. Nothing was unpacked.')
        seen.add(name)
        total += member.size
    if total > limit:
        raise UserError(
            f"{archive}: it unpacks to {total / 1e9:.1f} GB; {limit / 1e9:.1f} GB fit. Nothing was unpacked."
        )
    packed = archive.stat().st_size
    if total > _SMALL and total > RATIO * packed:
        raise UserError(
            f"{archive}: {packed} bytes claim to hold {total}, more than {RATIO} times as much. Nothing was unpacked."
        )


def _fault(member: _Member) -> str | None:
    name = member.name
    path = PurePosixPath(name)
    if "\0" in name or not name.strip("/."):
        return None if name.strip("/") in ("", ".") and member.folder else "is no file name"
    if path.is_absolute() or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return "is an absolute name or a name of another system"
    if ".." in path.parts:
        return "leads outside the folder"
    return None if member.plain else "is a link or a device"


def _write(archive: Path, folder: Path, streams: Iterator[tuple[str, int, IO[bytes]]]) -> list[Path]:
    """Write each stream, no more bytes than were declared, so that a false size cannot fill the disk."""
    base, written = folder.resolve(), []
    for name, size, stream in streams:
        target = base / PurePosixPath(name)
        if not target.resolve().is_relative_to(base):
            raise UserError(f'{archive}: "{name}" leads outside the folder through a link that is there already.')
        target.parent.mkdir(parents=True, exist_ok=True)
        with stream, target.open("wb") as file:
            left = size
            while block := stream.read(min(2**20, left + 1)):
                left -= len(block)
                if left < 0:
                    raise UserError(f'{archive}: "{name}" is larger than the archive says. Stopped there.')
                file.write(block)
        written.append(target)
    return written
