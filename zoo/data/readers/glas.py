"""GlaS: `train_1.bmp`, `train_1_anno.bmp`, `Grade.csv` in one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import instances_of, natural, read_labels, read_rgb
from zoo.errors import UserError
from zoo.types import Instances, Label, Sample, Truth

_NAME = re.compile(r"(train|testA|testB)_(\d+)\.(bmp|png)", re.IGNORECASE)
_GRADES = ("benign", "malignant")


class GlasReader(FolderReader):
    """Colon glands with their instances (`glands`), grade (`grade`) and patient (group). BMP or PNG."""

    def index(self) -> Sequence[Entry]:
        """Return every image; the split is the first part of its name."""
        grades = self._grades()
        found: dict[str, Entry] = {}
        for path in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if not match or path.stem in found:
                continue
            files = {"image": path}
            annotation = next((p for s in (path.suffix, ".bmp", ".png") if (p := self._annotation(path, s))), None)
            if annotation:
                files["glands"] = annotation
            patient, grade = grades.get(path.stem, (None, None))
            extra = {} if grade is None else {"label": grade}
            group = None if patient is None else f"patient-{patient}"
            found[path.stem] = Entry(path.stem, group, "Warwick", match.group(1), files, extra)
        if not found:
            raise UserError(
                f"{self.card.name}: {self.folder} holds no image named train_1.bmp, testA_1.bmp or testB_1.bmp "
                "(or .png). Unpack the published archive there."
            )
        return sorted(found.values(), key=lambda e: natural(e.id))

    def _annotation(self, path: Path, suffix: str) -> Path | None:
        file = path.with_name(f"{path.stem}_anno{suffix}")
        return file if file.is_file() else None

    def _grades(self) -> dict[str, tuple[str, int]]:
        """Return id -> (patient, grade index). The published file ends its lines with lone carriage returns."""
        file = self.folder / "Grade.csv"
        if not file.is_file():
            raise UserError(
                f"{self.card.name}: {file} is not there. It names the patient of each image, which splits need. "
                "Copy it from the published archive."
            )
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        found: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(lines[1:], 2):
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) < 3 or cells[2] not in _GRADES:
                raise UserError(f"{file}:{number}: {line!r} will not do. Expected: name, patient, benign or malignant.")
            found[cells[0]] = (cells[1], _GRADES.index(cells[2]))
        return found

    def read(self, entry: Entry) -> Sample:
        """Return image and truths; an image without annotation file has no key `glands`."""
        image = read_rgb(entry.files["image"])
        truth: dict[str, Truth] = {}
        if "glands" in entry.files:
            path = entry.files["glands"]
            truth["glands"] = Instances(instances_of(read_labels(path, image.shape[1:], entry.files["image"]), path))
        if "label" in entry.extra:
            truth["grade"] = Label(entry.extra["label"])
        return self.sample(entry, image, truth)
