"""`zoo weights push`: a folder from which weights can be used elsewhere, and that says all there is to say of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zoo
from zoo.cards import read_weights_card
from zoo.errors import UserError
from zoo.families import build, without
from zoo.families.base import Family
from zoo.fetch import checksum
from zoo.publish import card as cards
from zoo.publish import example, monai, plain
from zoo.recipe import Recipe, dump_yaml, load_recipe
from zoo.weights import page, store

FILE = "model.safetensors"
FREE = ("research", "commercial", "redistribution", "derivatives")
LICENCES: Mapping[str, tuple[str, ...]] = {
    "Apache-2.0": FREE,
    "MIT": FREE,
    "BSD-3-Clause": FREE,
    "CC0-1.0": FREE,
    "CC-BY-4.0": FREE,
    "CC-BY-SA-4.0": FREE,
    "CC-BY-NC-4.0": ("research", "redistribution", "derivatives"),
    "CC-BY-NC-SA-4.0": ("research", "redistribution", "derivatives"),
    "CC-BY-ND-4.0": ("research", "commercial", "redistribution"),
    "CC-BY-NC-ND-4.0": ("research", "redistribution"),
}
"""Licences whose permissions are known; of another one, `allows` has to be said."""
PAGES = {"CC": "https://creativecommons.org/licenses/", "": "https://spdx.org/licenses/"}


@dataclass(frozen=True)
class Wish:
    """What is wanted: `licence` of the weights (its SPDX name), `allows` where it is not a known one, `text`, a file
    with it; `results`, a results.json of `zoo bench`; `half`, store in 16 bits; `permission`: the owners of the data
    have agreed, where their licence does not; `judge`: measure now where no results are given; `form`: "hub", "monai"
    (a bundle of MONAI) or "plain" (needs torch alone)."""

    name: str | None = None
    licence: str | None = None
    allows: tuple[str, ...] = ()
    text: Path | None = None
    results: Path | None = None
    half: bool = False
    permission: bool = False
    judge: bool = True
    form: str = "hub"


Say = Callable[[str], None]
USE = """**Use**

```python
import zoo
model = zoo.load(FOLDER)                      # this folder, or hf://OWNER/NAME@COMMIT once it is pulled
prediction = model.predict(image, mpp=0.5)    # image: (H, W, 3) uint8
```

    zoo predict FOLDER IMAGE... --out results
    zoo train recipe.yaml                     # the same training
"""


def push(run: Path, out: Path, wish: Wish, say: Say) -> Path:
    """Write the folder and return it: model.safetensors, recipe.yaml, card.yaml, README.md, LICENSE, example.png,
    SHA256SUMS. `zoo.load(folder)` gives the run's model bit for bit (in 16 bits, what the stored numbers give).

    Raises `UserError` before anything is written: no run, no licence, data whose licence does not allow it, a recipe
    that is not the one that made the weights, a folder that is not empty.
    """
    found = store.find(run)
    if found.card is not None and not run.exists():
        where = "come with histozoo" if found.card.source.kind == "bundled" else "have a card of their own already"
        raise UserError(f"{run}: these weights {where}. Expected a run folder, as zoo train makes it.")
    recipe = _recipe(run)
    family = build.load(found.path)
    _check_hash(run, recipe, family)
    name = _name(wish, recipe)
    allows = _allows(wish)
    text = licence_text(wish)
    bound = cards.bound_by(json.loads(family.weights_metadata.get("trained_on", "[]")))
    bound += cards.bound_by_start(json.loads(family.weights_metadata.get("started_from", "[]")))
    if bound and not wish.permission:
        raise UserError(
            f"{run}: {bound[0]}. Expected data and weights whose licence does. Where its owner has agreed, add "
            "--with-permission"
        )
    left = None if wish.permission else without.plan(family, family.weights_metadata)
    if left is not None and wish.form != "hub":
        raise UserError(
            f"{run}: --format {wish.form} is whole, and the licence of the encoder {left.encoders[0]} lets nobody "
            "give it away. Expected --format hub, which leaves it out. Where its owner agreed, add --with-permission"
        )
    _empty(out)
    results = _results(found.path, recipe, wish, say)
    file = out / FILE
    kept: dict[str, Any] = {
        k: v for k, v in family.weights_metadata.items() if k not in ("format", "family", "options")
    }
    if left is None:
        build.save(family, file, half=wish.half, **kept)
    else:
        without.save(left, family, file, family.weights_metadata, half=wish.half, **kept)
    source = {"kind": "folder", "file": FILE, "sha256": checksum(file), "size": file.stat().st_size}
    licence = {"code": "Apache-2.0", "weights": {"name": wish.licence, "allows": list(allows), "url": _page(wish)}}
    notes = ["Stored in half precision."] if wish.half else []
    notes += [f"{without.how(left)}."] if left else []
    notes += [f"{line}; given away with its owner's permission." for line in bound]
    shown = _example(family, recipe, out, say)
    notes += [f"example.png: image, then what the model says; the image is of {shown}."] if shown else []
    values = cards.describe(
        family, recipe, name=name, source=source, licence=licence,
        found=results, commit=cards.commit_of(run), notes=" ".join(notes),
    )  # fmt: skip
    (out / "recipe.yaml").write_text(dump_yaml(recipe.values()), encoding="utf-8")
    (out / store.CARD).write_text(dump_yaml(values), encoding="utf-8")
    (out / "LICENSE").write_text(text, encoding="utf-8")
    (out / "README.md").write_text(readme(out), encoding="utf-8")
    if wish.form == "monai":
        monai.write(family, read_weights_card(out / store.CARD), out)
    elif wish.form == "plain":
        plain.write(family, out)
    sums(out)
    return out


def _recipe(run: Path) -> Recipe:
    file = run / "recipe.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no recipe.yaml. Expected a run folder, as zoo train makes it.")
    return load_recipe(file)


def _check_hash(run: Path, recipe: Recipe, family: Family) -> None:
    made = family.weights_metadata.get("recipe_hash")
    if made and made != recipe.content_hash():
        raise UserError(
            f"{run / 'recipe.yaml'}: its hash is {recipe.content_hash()[:12]}..., the weights were made by "
            f"{made[:12]}.... Expected the recipe that made them: put the run's own back."
        )


def _name(wish: Wish, recipe: Recipe) -> str:
    name = wish.name or f"{recipe.name}.v1"
    if "." not in name:
        raise UserError(f'zoo weights push: --name: "{name}" has no tag. Expected RECIPE.TAG, as in {recipe.name}.v1')
    return name


def _allows(wish: Wish) -> tuple[str, ...]:
    if not wish.licence:
        raise UserError(
            "zoo weights push: --licence is missing: a card without a licence lets nobody use the weights. Expected an "
            f"SPDX name, as {', '.join(list(LICENCES)[:4])}"
        )
    if wish.allows:
        return wish.allows
    if wish.licence not in LICENCES:
        from zoo.errors import suggest

        close = suggest(wish.licence, LICENCES)
        raise UserError(
            f'zoo weights push: what the licence "{wish.licence}" allows is not known. {close} Say it with --allows '
            f"{' '.join(FREE)} (those that hold), and its text with --licence-file FILE"
        )
    return LICENCES[wish.licence]


def licence_text(wish: Wish) -> str:
    """Return the text that goes into LICENSE: the user's file, the one that comes along, or where it is read."""
    if wish.text is not None:
        try:
            return wish.text.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{wish.text}: cannot be read ({error.strerror}). Expected the licence's text.") from None
    own = _own_licence() if wish.licence == "Apache-2.0" else None
    return own or f"The weights are under {wish.licence}. Its text: {_page(wish)}\n"


def _own_licence() -> str | None:
    beside = Path(zoo.__file__).resolve().parent.parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    from importlib import metadata

    try:
        files = metadata.files("histozoo") or []
    except metadata.PackageNotFoundError:
        return None
    return next((file.read_text(encoding="utf-8") for file in files if file.name == "LICENSE"), None)


def _page(wish: Wish) -> str:
    licence = str(wish.licence)
    if licence.startswith("CC-BY"):
        kind, version = licence.removeprefix("CC-").rsplit("-", 1)
        return f"{PAGES['CC']}{kind.lower()}/{version}/"
    return f"{PAGES['']}{licence}.html"


def _empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder. Choose another --out, or remove it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from None


def _results(file: Path, recipe: Recipe, wish: Wish, say: Say) -> list[dict[str, Any]]:
    """Return the card's numbers: from the user's benchmark, else from one that is made now on the recipe's own data."""
    labels = [str(wish.name), file.parent.name, file.stem, str(file.parent), str(file)]
    if wish.results is not None:
        try:
            return cards.numbers(json.loads(wish.results.read_text(encoding="utf-8")), labels)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{wish.results}: no results of zoo bench ({error}). Expected its results.json.") from None
    sources = [s for s in (recipe.evaluate.datasets if recipe.evaluate else ()) if not s.arguments and not s.fold]
    if not wish.judge or not sources:
        say("no numbers: bench the run and give --results FILE" if not sources else "no numbers, as you asked")
        return []
    found = []
    for source in sources:
        found += _measured(file, f"{source.name}:{source.split}", labels, say) or []
    return found


def _measured(file: Path, dataset: str, labels: list[str], say: Say) -> list[dict[str, Any]] | None:
    """Return the numbers on one dataset; None, and why, where it is not here or the weights have seen it."""
    from zoo.bench.run import bench

    say(f"measuring on {dataset}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench([str(file)], [dataset], folder, save_pictures=False)
        except UserError as error:
            say(f"no numbers on {dataset}: {str(error).splitlines()[0]}")
            return None
        return cards.numbers(json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")), labels)


def _example(family: Family, recipe: Recipe, out: Path, say: Say) -> str | None:
    try:
        return example.draw(family, recipe, out / "example.png")
    except UserError as error:
        say(f"no example: {error}")
        return None


def readme(folder: Path) -> str:
    """Return the page that a hub shows: metadata, the card, how to use it."""
    card = read_weights_card(folder / store.CARD)
    licence = card.licence.weights.name
    known = licence.lower() if licence in LICENCES else "other"
    head = {"license": known, "library_name": "histozoo", "tags": ["pathology", "histozoo", card.of]}
    if known == "other":
        head["license_name"] = licence
    if seen := list(dict.fromkeys(t.dataset for t in card.trained_on)):
        head["datasets"] = seen
    body = page.markdown(card, 1)
    picture = "![image and prediction](example.png)\n\n" if (folder / "example.png").is_file() else ""
    return f"---\n{dump_yaml(head)}---\n\n{body}\n{picture}{USE}"


def sums(folder: Path) -> None:
    """Write SHA256SUMS of every file of a folder, as `sha256sum --check` reads it."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "SHA256SUMS")
    lines = [f"{checksum(file)}  {file.relative_to(folder).as_posix()}" for file in files]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
