"""Show one thing whole: a recipe, a family, an encoder, a dataset, weights, a component; or `recipe`: every key that a
recipe may have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.text import WIDTH, as_json, paragraph, table, wrapped
from zoo.errors import UserError, counted, suggest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from zoo.cards import WeightsCard

Page = tuple[dict[str, Any], str]
"""Values for JSON, and text for a person."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo show`."""
    parser.add_argument(
        "name", metavar="NAME", help="a name from `zoo list`, or `recipe`, `dataset-card`, `weights-card`"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--markdown", action="store_true", help="a page for documentation (weights)")


def run(args: argparse.Namespace) -> int:
    """Print everything of that name; a name may stand for several things (the family and the decoder unet)."""
    pages = {kind: show for kind in PAGES if (show := PAGES[kind](args.name)) is not None}
    if len(pages) > 1:
        pages.pop("reader", None)  # of a dataset's own name: its card says more
    if not pages:
        raise UserError(f'zoo show: nothing is named "{args.name}". {suggest(args.name, _all_names(), "zoo list")}')
    if args.markdown:
        print(_markdown(args.name))
    elif args.json:
        values = {kind: page[0] for kind, page in pages.items()}
        print(as_json(values if len(values) > 1 else next(iter(values.values()))))
    else:
        print("\n\n".join(page[1] for page in pages.values()))
    return 0


def _markdown(name: str) -> str:
    from zoo.weights import page, store

    try:
        return page.markdown(store.card(store.resolve(name)))
    except UserError as error:
        raise UserError(f"zoo show --markdown: {error}") from None


def _all_names() -> list[str]:
    from zoo.cards import dataset_files
    from zoo.encoders import listing
    from zoo.recipe import recipe_files
    from zoo.registry import names
    from zoo.weights.store import card_files

    kinds = ("family", "decoder", "loss", "metric", "optimizer", "schedule", "augmentation", "reader")
    plain = [n for kind in kinds for n in names(kind)]
    return [
        *recipe_files(),
        *dataset_files(),
        *card_files(),
        *plain,
        "recipe",
        "dataset-card",
        "weights-card",
        *listing.names(),
    ]


def _fields(rows: list[tuple[str, str, str, str]]) -> str:
    """Return a paragraph a field: key, type, default, meaning."""
    found = []
    for key, kind, default, meaning in rows:
        head = f"  {key}  ({kind}; {default})"
        found.append(paragraph(head.strip(), "      ", "  ") + "\n" + paragraph(meaning, "      "))
    return "\n".join(found)


def _as_values(rows: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    return [dict(zip(("key", "type", "default", "meaning"), row, strict=True)) for row in rows]


def _schema(name: str) -> Page | None:
    from zoo.cards import DatasetCard, WeightsCard
    from zoo.recipe import Recipe
    from zoo.schema import describe

    known: dict[str, type[BaseModel]] = {"recipe": Recipe, "dataset-card": DatasetCard, "weights-card": WeightsCard}
    if name not in known:
        return None
    rows = describe(known[name])
    head = f"{name}: every key, with its type and default\n"
    return {"kind": "schema", "fields": _as_values(rows)}, head + _fields(rows)


def _recipe(name: str) -> Page | None:
    from pathlib import Path

    from zoo.recipe import dump_yaml, load_recipe, recipe_file, recipe_files

    folder = Path(name).expanduser()
    run = (folder / "recipe.yaml").is_file() and not _pushed(folder)  # what was given away is shown by its card
    if name not in recipe_files() and Path(name).suffix != ".yaml" and not run:
        return None
    file = recipe_file(name)
    recipe = load_recipe(file)
    header = [_comment(line) for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    values = {k: v for k, v in recipe.values().items() if v not in (None, {}, [], ())}
    text = paragraph(f"recipe {recipe.name}: {recipe.summary}") + f"\n{file}\n\n"
    return {"kind": "recipe", **recipe.values()}, text + "\n".join([*header, dump_yaml(values, width=60).rstrip()])


def _comment(line: str) -> str:
    """Return a line of a recipe's header in 80 columns; what goes on stands below the first word."""
    if len(line) <= WIDTH:
        return line
    words = line.removeprefix("#").lstrip().partition(": ")[2].lstrip()
    start = line.index(words) if words else len(line) - len(line.removeprefix("#").lstrip())
    return paragraph(line[start:], "#".ljust(start), line[:start])


def _reader(name: str) -> Page | None:
    from zoo import registry
    from zoo.schema import describe

    if name not in registry.table("reader"):
        return None
    found = registry.get("reader", name)
    rows = describe(found.Arguments)
    head = f"reader {name}\n\n{wrapped(found.__doc__ or '')}\n\nWhat a card may say under `reader.arguments:`\n"
    return {"kind": "reader", "name": name, "fields": _as_values(rows)}, head + _fields(rows)


def _family(name: str) -> Page | None:
    from zoo import registry
    from zoo.schema import describe

    if name not in registry.table("family"):
        return None
    family = registry.get("family", name)
    rows = describe(family.Options)
    head = paragraph(f"family {name}: {family.summary}") + f"\n{registry.table('family')[name]}\n"
    head += "\nWhat a recipe may say under `model:`\n"
    return {"kind": "family", "name": name, "summary": family.summary, "fields": _as_values(rows)}, head + _fields(rows)


def _encoder(name: str) -> Page | None:
    from zoo.encoders import foundation, listing

    if name in foundation.UNAVAILABLE:
        reason = foundation.UNAVAILABLE[name]
        said = {"kind": "encoder", "name": name, "available": False, "reason": reason}
        return said, paragraph(f"encoder {name}: not available: {reason}")
    try:
        info = listing.info(name)
    except UserError:
        return None
    rows = [
        ("source", info.source + (f" ({info.model})" if info.model != info.name else "")),
        ("architecture", info.architecture),
        ("parameters", f"{info.parameters / 1e6:.2f} million"),
        ("channels", ", ".join(map(str, info.channels))),
        ("strides", ", ".join(map(str, info.strides))),
        ("mean, std", f"{', '.join(map(str, info.mean))}; {', '.join(map(str, info.std))}"),
        ("imagenet", info.imagenet or "none"),
    ]
    if info.card:
        known = foundation.TABLE[info.name]
        rows[-1:] = [
            ("um per pixel", f"{known.mpp:g}; tiles of {known.size} pixels"),
            ("patch", f"{known.patch} pixels" if known.patch else "none"),
            ("tokens before", f"{known.prefix} (class and registers)" if known.patch else "none"),
            ("embedding", known.pool if known.pool != "none" else "not known here: say --pool"),
            ("entries", str(known.entries)),
            ("weights", f"published ({info.card})"),
        ]
    lines = [f"encoder {info.name}", table([(f"  {key}", value) for key, value in rows], 10_000)]
    weights: dict[str, Any] = {}
    for tag, one in info.weights.items():
        weights[tag] = {"licence": one.licence, "page": one.page}
        lines.append(f"  weights {tag}\n      licence {one.licence or 'not stated'}\n      {one.page}")
    values = {"kind": "encoder", "name": info.name, **dict(rows), "weights": weights}
    return values, "\n".join(lines)


def _card(kind: str, values: Mapping[str, Any], file: object) -> Page:
    from zoo.recipe import dump_yaml

    kept = _said(values)
    if isinstance(kept.get("splits"), dict):
        kept["splits"] = {k: counted(len(v), "image") for k, v in kept["splits"].items()}
    head = paragraph(f"{kind} {values['name']}: {kept.pop('summary')}")
    text = f"{head}\n{file}\n\n{dump_yaml(kept, width=60).rstrip()}"  # a word begun before 60 ends before 80
    return {"kind": kind, **values}, text


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without those that say nothing, however deep."""
    kept = {k: _said(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {k: v for k, v in kept.items() if v not in (None, {}, [], (), "")}


def _dataset(name: str) -> Page | None:
    from zoo.cards import dataset_card, dataset_card_file, dataset_files

    folder = Path(name).expanduser()
    if name not in dataset_files() and (not folder.is_dir() or _pushed(folder) or (folder / "recipe.yaml").is_file()):
        return None
    return _card("dataset", dataset_card(name).model_dump(mode="json"), dataset_card_file(name))


def _pushed(folder: Path) -> bool:
    """Return whether a folder is one that `zoo weights push` wrote."""
    from zoo.weights import store

    return (folder / store.CARD).is_file()


def _weights(name: str) -> Page | None:
    from zoo.cards import read_weights_card
    from zoo.cli.catalogue import STATES, state_of
    from zoo.weights import store

    folder = Path(name).expanduser()
    if folder.is_dir() and _pushed(folder):
        card = read_weights_card(folder / store.CARD)
        path = folder / str(card.source.file)
        head = [f"weights {card.name}", paragraph(card.summary), f"{folder / store.CARD}", ""]
        values = {"kind": "weights", "state": "here", "path": path, **card.model_dump(mode="json")}
        return values, "\n".join([*head, *_parts(card)])
    index = store.card_index()
    if not any(name in (n, n.split(".")[0]) for n in index):
        return None
    card = store.card(store.resolve(name))
    state = state_of(card)
    found = store.local(card) if state == "here" else None
    head = [f"weights {card.name}", paragraph(card.summary), f"{index[card.name][0]}", ""]
    head.append(paragraph(f"{state}: {found or STATES[state].replace('NAME', card.name)}", "  ", ""))
    values = {"kind": "weights", "state": state, "path": found, **card.model_dump(mode="json")}
    return values, "\n".join([*head, *_parts(card)])


def _parts(card: WeightsCard) -> list[str]:
    """Return the lines of a weights card, in 80 columns."""
    from zoo.weights import page

    lines = []
    for part in page.parts(card):
        lines += ["", part.title] if part.title else [""]
        width = max((len(what) for what, _ in part.rows), default=0)
        for what, value in part.rows:
            lines.append(
                paragraph(value, " " * (width + 4 if width else 2), f"  {what.ljust(width)}  " if width else "  ")
            )
        if part.table:
            rows = [tuple(part.head), *part.table]
            widths = [max(len(row[i]) for row in rows) for i in range(len(part.head))]
            lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return lines


def _pooled(name: str, shows: str) -> str:
    """Return what a metric of a set of images is, how it is written, and what it can show."""
    from zoo.metrics import METRICS

    about = METRICS[name]
    written = f" Written {name}@{about.argument.upper()}." if about.argument else ""
    return f"{about.summary}; a number of the whole set of images.{written}" + (f"\n\n{shows}" if shows else "")


def _component(kind: str) -> Callable[[str], Page | None]:
    def page(name: str) -> Page | None:
        import inspect

        from zoo import registry

        if name not in registry.table(kind):
            return None
        found = registry.get(kind, name)
        signature = str(inspect.signature(found)).replace("'", "")  # annotations that are not evaluated have quotes
        text = inspect.cleandoc(found.__doc__ or "")
        if kind == "metric" and not inspect.isroutine(found):  # one of a kind, whose documentation is the kind's
            text = _pooled(name, getattr(found, "shows", ""))
        values = {"kind": kind, "name": name, "arguments": signature, "text": text}
        return values, paragraph(f"{kind} {name}{signature}", "    ", "") + f"\n\n{wrapped(text)}"

    return page


PAGES: dict[str, Callable[[str], Page | None]] = {
    "schema": _schema,
    "recipe": _recipe,
    "family": _family,
    "encoder": _encoder,
    "dataset": _dataset,
    "reader": _reader,
    "weights": _weights,
    **{k: _component(k) for k in ("decoder", "loss", "metric", "optimizer", "schedule", "augmentation")},
}
