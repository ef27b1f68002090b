"""A weights card as a page: the same rows for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zoo.cards import Number, WeightsCard

HOW = {
    "bundled": "comes with histozoo",
    "folder": "a folder of your own",
    "http": "pull",
    "hub": "pull",
    "manual": "by hand",
    "unavailable": "never",
}
"""Kind of a source -> how one has it, in a word or two."""


@dataclass(frozen=True)
class Part:
    """A part of the page: rows of (what, value), or a table with a head."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = field(default=())


def parts(card: WeightsCard) -> list[Part]:
    """Return the parts of a card's page that have anything to say."""
    found = [
        Part("", _rows(_about(card))),
        Part("Licence", _rows(_licence(card))),
        Part("Source", _rows(_source(card))),
        Part("Trained on", _rows(_seen(card))),
        Part("Numbers", (), *_numbers(card.numbers)),
        Part("Notes", _rows([("", card.notes)])),
    ]
    return [part for part in found if part.rows or part.table]


def _rows(pairs: Iterable[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    return tuple((what, str(value)) for what, value in pairs if value not in (None, "", ()))


def _about(card: WeightsCard) -> list[tuple[str, object]]:
    return [
        ("family", card.family),
        ("encoder", card.encoder),
        ("part", card.part),
        ("recipe", card.recipe),
        ("input", card.input),
        ("output", card.output),
        ("paper", card.paper),
        ("seed", card.seed),
        ("commit", card.commit),
        ("recipe hash", card.recipe_hash),
    ]


def _licence(card: WeightsCard) -> list[tuple[str, object]]:
    weights = card.licence.weights
    gates = {"none": None, "consent": "asks for consent once", "token": "wants a token of an account that has agreed"}
    allows = ", ".join(weights.allows) or "nothing without asking its owner"
    return [
        ("code", card.licence.code),
        ("weights", weights.name),
        ("allows", None if card.source.kind == "unavailable" else allows),
        ("terms", weights.url),
        ("mind", weights.note),
        ("gate", gates[card.gate]),
    ]


def _source(card: WeightsCard) -> list[tuple[str, object]]:
    source = card.source
    rows: list[tuple[str, object]] = [("how", HOW[source.kind]), ("why not", source.reason), ("page", source.page)]
    if source.kind == "unavailable":
        return rows
    if source.kind == "hub":
        revision = source.revision or "not stated: that of the first pull is recorded and kept to"
        rows += [("repository", source.repository), ("revision", revision)]
    for file in source.files:
        unknown = "SHA-256 not published: recorded on the first pull, compared afterwards"
        size = f", {file.size / 1e6:.1f} MB" if file.size else ""
        rows.append(("file", f"{file.file}{size}"))
        rows.append(("", file.url))
        rows.append(("", f"SHA-256 {file.sha256}" if file.sha256 else unknown))
    if card.convert:
        rows.append(("converted by", card.convert.name))
    return rows


def _seen(card: WeightsCard) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for seen in card.trained_on:
        counts = [
            f"{len(seen.images)} images" if seen.images else "",
            f"{len(seen.groups)} groups" if seen.groups else "",
        ]
        said = ", ".join(filter(None, counts)) or "which images is not stated: all of it counts as seen"
        found.append((f"{seen.dataset}:{seen.split}", said))
    return found


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _numbers(numbers: Sequence[Number]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = []
    for n in numbers:
        interval = "-".join(map(_figure, n.interval)) if n.interval else "-"
        count = f"{n.n or '?'}" + (f" in {n.groups}" if n.groups else "")
        rows.append(
            (f"{n.dataset}:{n.split}", n.metric, _figure(n.value), interval, count + (f" ({n.note})" if n.note else ""))
        )
    return (("data", "metric", "value", "95 %", "images"), tuple(rows)) if rows else ((), ())


def markdown(card: WeightsCard, level: int = 2) -> str:
    """Return the page of a card as Markdown, its title at a level of headings."""
    lines = [f"{'#' * level} {card.name}", "", card.summary, ""]
    for part in parts(card):
        if part.title:
            lines += [f"**{part.title}**", ""]
        lines += [f"- {what}: {_link(value)}" if what else f"- {_link(value)}" for what, value in part.rows]
        if part.table:
            lines += [f"| {' | '.join(part.head)} |", "|" + " --- |" * len(part.head)]
            lines += [f"| {' | '.join(row)} |" for row in part.table]
        lines.append("")
    return "\n".join(lines)


def _link(value: str) -> str:
    return f"<{value}>" if value.startswith(("https://", "http://")) and " " not in value else value


def overview(cards: Sequence[WeightsCard]) -> str:
    """Return the page of all cards as Markdown: a table, then each card."""
    lines = [
        "# Weights",
        "",
        "<!-- made by tools/weights_page.py from the cards: do not edit -->",
        "",
        "What can be used with `zoo predict`, `zoo bench` and `zoo.load` (weights of a family), or named in a recipe",
        "as the weights of an encoder. `pull`: `zoo weights pull NAME` fetches, checks and converts them; `by hand`:",
        "a person fetches the file and gives it with `--from FILE`; `never`: they cannot be had; the card says why.",
        "How: [how-to-weights.md](how-to-weights.md). The same in a terminal: `zoo list weights`, `zoo show NAME`.",
        "",
        "| name | family, encoder or part | how | code licence | weights licence | allows |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        anchor = card.name.replace(".", "")
        allows = ", ".join(card.licence.weights.allows) or "-"
        how = HOW[card.source.kind] + (" (token)" if card.gate == "token" else "")
        cells = (f"[{card.name}](#{anchor})", card.of, how, card.licence.code, card.licence.weights.name, allows)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n".join(markdown(card) for card in cards)
