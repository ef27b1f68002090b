"""Strict YAML: where each value stands, no traps, no unknown keys, everything that is wrong at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from zoo.errors import Problems
from zoo.recipe import dump_yaml
from zoo.schema import Component, Schema, describe, parse_value, read_yaml, validate


class Inner(Schema):
    count: int = 1
    """How many."""
    kind: Literal["red", "green"] = "red"
    """Which."""


class Outer(Schema):
    name: str
    """Its name."""
    inner: Inner = Inner()
    """What is inside."""
    parts: tuple[Inner, ...] = ()
    """Several."""
    one: Component = Component(name="x")
    """A part."""
    share: float = Field(default=0.5, ge=0, le=1)
    """A share."""


def read(text: str) -> Outer:
    return validate(Outer, read_yaml("a.yaml", text))


def lines(text: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        read(text)
    return str(caught.value).splitlines()


# --- YAML without its traps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("3", 3),
        ("-3", -3),
        ("010", 10),  # not octal
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),  # not sexagesimal
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-31", "2024-01-31"),  # not a date
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("-", [None]),
        ("1.2.3", "1.2.3"),
        ("[1, 2e0, no]", [1, 2.0, "no"]),
        ("{a: 1e-4}", {"a": 0.0001}),
        ("'1'", "1"),
    ],
)
def test_values_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan() -> None:
    assert parse_value(".inf") == float("inf")
    assert parse_value("-.inf") == float("-inf")
    assert parse_value(".nan") != parse_value(".nan")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcnoyes10._", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdefnoyes", min_size=1, max_size=6), plain, max_size=4))
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    again = read_yaml("x.yaml", dump_yaml(values)).values if values else {}
    assert again == values
    assert repr(again) == repr(values)  # types too: 1 is not 1.0, "no" is not False


def test_a_key_twice_is_a_mistake() -> None:
    assert lines("name: a\ninner:\n  count: 1\n  count: 2\nname: b\n") == [
        "a.yaml:4: inner.count: the key stands twice. Keep one of the two.",
        "a.yaml:5: name: the key stands twice. Keep one of the two.",
    ]


@pytest.mark.parametrize("text", ["[1", "{a: ", "!!python/name:os.system", "a: b: c", "&x [*x]", "[" * 5000])
def test_a_value_that_cannot_be_read_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"valid YAML|plain value|written out|Write the value out"):
        parse_value(text)


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(Problems, match="too large"):
        read_yaml("a.yaml", text)


def test_merge_keys_and_tags_run_nothing() -> None:
    for text in ("name: !!python/object/apply:os.system ['true']\n", "name: !custom 3\n"):
        with pytest.raises(Problems, match=r"a\.yaml:1"):
            read_yaml("a.yaml", text)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("name: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("- 1\n- 2\n", 1, "no mapping"),
        ("", 1, "no mapping"),
        ("just words\n", 1, "no mapping"),
        ("a:\n\t- 1\n", 2, "not valid YAML"),
    ],
)
def test_what_is_no_mapping_says_its_line(text: str, line: int, word: str) -> None:
    (found,) = lines(text)
    assert found.startswith(f"a.yaml:{line}: ")
    assert word in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Problems, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"summary: Gr\xf6\xdfe")
    with pytest.raises(Problems, match="not written in UTF-8"):
        read_yaml(binary)
    binary.write_bytes(b"name: \x00")
    with pytest.raises(Problems, match="not valid YAML"):
        read_yaml(binary)


def test_an_alias_is_read_where_it_is_used() -> None:
    document = read_yaml("a.yaml", "name: x\ninner: &i\n  count: 4\nparts: [*i]\n")
    assert validate(Outer, document).parts == (Inner(count=4),)


def test_an_alias_of_itself_is_a_mistake_and_not_a_crash() -> None:
    with pytest.raises(Problems, match="itself"):
        read_yaml("a.yaml", "name: &n [*n]\n")


# --- schemas ----------------------------------------------------------------------------------------------------------


def test_every_mistake_at_once_with_its_line() -> None:
    text = "nam: x\ninner:\n  count: many\n  kind: blue\nparts:\n  - {count: 1}\n  - {cuont: 2}\nshare: 3\n"
    assert lines(text) == [
        "a.yaml:1: name: the key is missing. It has no default: write it down.",
        'a.yaml:1: nam: unknown key "nam". Did you mean name?',
        "a.yaml:3: inner.count: 'many' will not do. Expected: a valid integer, unable to parse string as an integer.",
        'a.yaml:4: inner.kind: "blue" is not one of red or green.',
        'a.yaml:7: parts.1.cuont: unknown key "cuont". Did you mean count?',
        "a.yaml:8: share: 3 will not do. Expected: less than or equal to 1.",
    ]


def test_a_component_may_be_a_string() -> None:
    assert read("name: a\none: adam\n").one == Component(name="adam")
    assert read("name: a\none: {name: adam, arguments: {lr: 1e-3}}\n").one.arguments == {"lr": 0.001}


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read("name: a\n").inner.count = 3  # type: ignore[misc]


def test_every_field_is_described() -> None:
    rows = {key: (kind, default, text) for key, kind, default, text in describe(Outer)}
    assert rows["name"] == ("str", "required", "Its name.")
    assert rows["inner.count"] == ("int", "1", "How many.")
    assert rows["parts[].kind"][1:] == ("red", "Which.")
    assert rows["share"] == ("float", "0.5", "A share.")
