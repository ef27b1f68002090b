"""Strict YAML: files with line numbers, schemas without unknown keys, every mistake at once.

`read_yaml` gives plain values and where each stands; `validate` checks them against a `Schema` and turns each of
pydantic's errors into a `Problem` with file, line, dotted key and the nearest valid words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from zoo.errors import Problem, Problems, suggest

Key = tuple[str | int, ...]
S = TypeVar("S", bound="Schema")


class Schema(BaseModel):
    """Base of everything that is read from YAML: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Component(Schema):
    """A part chosen by registry name, with its arguments; `name` alone may be written as a string."""

    name: str
    """Registry name (`zoo list`)."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the part."""
    weight: float = 1.0
    """Factor where several parts are summed."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


@dataclass
class Document:
    """Values read from YAML, and where each stands: dotted key -> (file, line from 1)."""

    values: dict[str, Any]
    places: dict[Key, tuple[str, int]] = field(default_factory=dict)
    file: str = ""

    def place(self, key: Sequence[str | int]) -> tuple[str, int]:
        """Return the place of a key, or of its nearest parent that is written down."""
        for end in range(len(key), -1, -1):
            found = self.places.get(tuple(key[:end]))
            if found:
                return found
        return self.file, 0

    def problem(self, key: Sequence[str | int], what: str) -> Problem:
        """Return a `Problem` at a key."""
        file, line = self.place(key)
        return Problem(file, line, ".".join(map(str, key)), what)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: `no`, `on` and dates stay strings, and 1e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":float", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _implicit(tag: str, pattern: str, first: str) -> None:
    import re

    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_implicit("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_implicit("int", r"^[-+]?[0-9]+$", "-+0123456789")
_implicit(
    "float",
    r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
    "-+0123456789.",
)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node), 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def parse_value(text: str) -> Any:
    """Return the value of one override's right-hand side, read as YAML. Raises `ValueError` where it is not valid."""
    document = Document({})
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else _walk(node, (), loader, document, problems)
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "problem", None) or "nested too deeply"
        raise ValueError(f"{text!r} is not valid YAML: {reason}") from None
    if problems:
        raise ValueError(f"{text!r}: {problems[0].what}")
    return value


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}
_MOST = 200_000
"""Values in one file that are still believed: a few aliases of aliases make billions."""


def _walk(
    node: yaml.Node,
    key: Key,
    loader: _Loader,
    document: Document,
    problems: list[Problem],
    above: frozenset[int] = frozenset(),
) -> Any:
    """Return the value of a node and note where it and its children stand; `above` are the nodes that hold it."""
    line = node.start_mark.line + 1
    document.places[key] = (document.file, line)
    if id(node) in above or len(document.places) > _MOST or node.tag not in _TAGS:
        problems.append(Problem(document.file, line, ".".join(map(str, key)), _strange(node, id(node) in above)))
        return None
    inside = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            line = key_node.start_mark.line + 1
            if name in found:
                where = ".".join(map(str, (*key, name)))
                problems.append(Problem(document.file, line, where, "the key stands twice. Keep one of the two."))
                continue
            found[name] = _walk(value_node, (*key, name), loader, document, problems, inside)
            document.places[(*key, name)] = (document.file, line)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_walk(child, (*key, i), loader, document, problems, inside) for i, child in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:  # as `!!int abc`
        problems.append(Problem(document.file, line, ".".join(map(str, key)), f"{error}. Write a plain value."))
        return None


def _strange(node: yaml.Node, cyclic: bool) -> str:
    if cyclic:
        return "the alias holds itself. Write the value out."
    if node.tag not in _TAGS:
        return f'the tag "{node.tag}" is not read here. Write a plain value.'
    return "aliases make the file too large. Write the values out."


def read_yaml(path: Path | str, text: str | None = None) -> Document:
    """Read one YAML mapping with its line numbers. Raises `Problems` (unreadable, not a mapping, a key twice)."""
    document = Document({}, file=str(path))
    problems: list[Problem] = []
    try:
        content = Path(path).read_text(encoding="utf-8") if text is None else text
        loader = _Loader(content)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            document.values = _walk(node, (), loader, document, problems)
    except OSError as error:
        raise Problems([Problem(str(path), 0, "", f"the file cannot be read ({error.strerror}).")]) from None
    except UnicodeDecodeError:
        what = "the file is not written in UTF-8. Save it with that encoding (editors offer it beside the file's name)."
        raise Problems([Problem(str(path), 0, "", what)]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark else 0
        raise Problems([Problem(str(path), line, "", f"not valid YAML: {reason}. Mend the syntax here.")]) from None
    except RecursionError:
        raise Problems([Problem(str(path), 0, "", "not valid YAML: nested too deeply. Write it flatter.")]) from None
    if problems:
        raise Problems(problems[:100])
    if not isinstance(node, yaml.MappingNode):
        raise Problems([Problem(str(path), 1, "", "the file holds no mapping. Expected `key: value` lines.")])
    return document


def _fields_at(schema: type[BaseModel], key: Sequence[str | int]) -> list[str]:
    """Return the field names that are valid beside the last part of `key`."""
    current: Any = schema
    for part in key[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel):
            info = {f.alias or name: f for name, f in current.model_fields.items()}.get(str(part))
            if info is None:
                continue  # a tag of a union, which pydantic writes into the path
            current = info.annotation
        models = _models(current)
        current = models[0] if models else current
    models = _models(current)
    return [f.alias or name for name, f in models[0].model_fields.items()] if models else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _sentence(error: Mapping[str, Any], schema: type[BaseModel], key: Key) -> str:
    kind, received = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f'unknown key "{key[-1]}". {suggest(str(key[-1]), _fields_at(schema, key))}'.strip()
    if kind == "missing":
        return "the key is missing. It has no default: write it down."
    message = str(error["msg"])
    for prefix in ("Value error, ", "Assertion failed, ", "Input ", "should ", "be "):
        message = message.removeprefix(prefix)
    message = message.replace("String should match pattern", "text that matches")
    message = message.replace("a valid tuple", "a list, as [a, b]")
    message = message.replace("a valid dictionary or instance of Component", "a name, or {name, arguments}")
    message = message.replace("a valid dictionary or instance of", "a mapping, as for")
    if kind == "literal_error":
        expected = str(error["ctx"]["expected"]).replace("'", "")
        close = suggest(str(received), expected.replace(" or ", ", ").split(", "))
        if tuple(key) == ("zoo",):
            return f'format "{received}" is not known here. Expected {expected}: update histozoo, or write that.'
        close = "" if close.startswith("Expected") else f" {close}"
        return f'"{received}" is not one of {expected}.{close}'.rstrip()
    if kind in ("value_error", "assertion_error"):
        return message if message.endswith((".", "?")) else f"{message}."
    shown = repr(received)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} will not do. Expected: {message}."


def _real_key(values: Any, location: Sequence[str | int]) -> Key:
    """Drop from pydantic's path what stands for a branch of a union and not for a key of the file."""
    key: list[str | int] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(values, Mapping) and (part in values or (last and isinstance(part, str))):
            if part not in values and not _looks_like_key(part):
                continue
            key.append(part)
            values = values.get(part)
        elif isinstance(values, Sequence) and not isinstance(values, str) and isinstance(part, int):
            key.append(part)
            values = values[part] if part < len(values) else None
    return tuple(key)


def _looks_like_key(part: Any) -> bool:
    return isinstance(part, str) and part.isidentifier() and part.lower() == part


def problems_of(
    schema: type[BaseModel], error: ValidationError, document: Document, prefix: Sequence[str | int] = ()
) -> list[Problem]:
    """Turn pydantic's errors into problems of the file; `prefix` is the key under which `schema` stands."""
    values: Any = document.values
    for part in prefix:
        values = values.get(part, {}) if isinstance(values, Mapping) else values[int(part)]
    found: dict[tuple[Key, str], Problem] = {}
    items = error.errors(include_url=False)
    wrong = [item["loc"] for item in items]
    for item in items:
        within = len(item["loc"])
        if item["type"] == "too_short" and any(len(w) > within and w[:within] == item["loc"] for w in wrong):
            continue  # a list that is too short because what stands in it is wrong
        key = _real_key(values, item["loc"])
        sentence = _sentence(item, schema, tuple(item["loc"]) if item["type"] == "extra_forbidden" else key)
        full = (*prefix, *key)
        found.setdefault((full, sentence), document.problem(full, sentence))
    return list(found.values())


def first_of(error: ValidationError) -> str:
    """Return the first of pydantic's errors about values that no file holds, as one sentence."""
    item = error.errors(include_url=False)[0]
    return _sentence(item, BaseModel, tuple(item["loc"]))


def validate(schema: type[S], document: Document) -> S:
    """Return the checked values. Raises `Problems` with every mistake, in the order of the file."""
    try:
        return schema.model_validate(document.values)
    except ValidationError as error:
        found = problems_of(schema, error, document)
        raise Problems(sorted(found, key=lambda p: (p.file, p.line))) from None


def hints_of(made: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a part's arguments, limits of their values included; none where they cannot be told."""
    try:
        return get_type_hints(vars(made).get("__init__", made) if isinstance(made, type) else made, include_extras=True)
    except (NameError, TypeError):
        return {}


def wrong_arguments(made: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return argument -> sentence for each value whose type, or size, is not what a part's signature says."""
    hints, known = hints_of(made), inspect.signature(made).parameters
    wrong = {name: wrong_type(value, hints.get(name, Any)) for name, value in arguments.items() if name in known}
    return {name: f"{arguments[name]!r} will not do. Expected: {what}" for name, what in wrong.items() if what}


def wrong_type(value: Any, hint: Any) -> str:
    """Return what was expected where a value read from YAML does not have a type, else "".

    Lists stand for tuples and whole numbers for floats; text never stands for a number, nor a truth value. Infinity and
    not-a-number are no numbers: a run folder could not hold them.
    """
    if hint is Any:
        return ""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(
            hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        )
        taken = adapter.validate_python(value)
    except ValidationError as error:
        return _expected([e for e in error.errors(include_url=False) if e["type"] != "is_instance_of"])
    except Exception:
        return ""  # a type that says nothing about plain values
    coerced = isinstance(value, str | bool) and type(taken) is not type(value)
    return f"a value of type {getattr(hint, '__name__', hint)}" if coerced else ""


def _expected(errors: Sequence[Any]) -> str:
    """Return what the first of pydantic's errors expected."""
    kind = errors[0]["type"] if errors else "is_instance_of"
    if kind in ("sequence_str", "is_instance_of", "tuple_type"):
        return "a list"
    if kind in ("missing", "too_long"):  # of a tuple, which stands for a list of so many values
        return "another number of values"
    message = str(errors[0]["msg"]).partition(", unable")[0]
    return message.removeprefix("Input should be ").removeprefix("a ").removeprefix("an ")


def describe(schema: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Return a row a field: dotted key, type, default ("required" where there is none), what it means."""
    rows: list[tuple[str, str, str, str]] = []
    for field_name, info in schema.model_fields.items():
        name = info.alias or field_name
        nested = _models(info.annotation)
        default = "required" if info.is_required() else _default(info.get_default(call_default_factory=True))
        rows.append((prefix + name, _type_name(info.annotation), default, (info.description or "").replace("\n", " ")))
        for model in nested[:1]:
            if model is not Component and model is not schema:
                inside = "[]." if "list" in str(info.annotation) or "tuple" in str(info.annotation) else "."
                rows += describe(model, prefix + name + inside)
    return rows


def _default(value: Any) -> str:
    if isinstance(value, Component):
        return value.name if value == Component(name=value.name) else _flow(value.model_dump(exclude_defaults=True))
    if isinstance(value, BaseModel):
        return "see below"
    return _flow(value)


def _flow(value: Any) -> str:
    """Return a value as YAML would have it on one line."""
    if isinstance(value, Component):
        return _default(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(annotation: Any) -> str:
    """Return what may be written, as a reader of YAML says it: "int", "a | b", "list of str"."""
    parts = get_args(annotation)
    kind = get_origin(annotation)
    if kind is Annotated:
        return _type_name(parts[0])
    if kind is Literal:
        return " | ".join(map(_flow, parts))
    if kind in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_type_name, parts)))
    if kind is tuple and Ellipsis not in parts:
        return "[" + ", ".join(map(_type_name, parts)) + "]"
    if kind in (tuple, list, set, frozenset, Sequence):
        return f"list of {_type_name(parts[0])}"
    if kind in (dict, Mapping):
        return "mapping" if parts[1] is Any else f"mapping to {_type_name(parts[1])}"
    if annotation in (None, type(None)):
        return "none"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


Check = Callable[[Any], list[Problem]]
