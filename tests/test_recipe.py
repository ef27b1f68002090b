"""Recipes: extends, overrides, stages, the content hash, the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import Problems, UserError
from zoo.recipe import (
    Recipe,
    apply_overrides,
    dump_yaml,
    json_schema,
    load_document,
    load_recipe,
    read_recipe,
    recipe_file,
    recipe_files,
)
from zoo.schema import Document, parse_value, read_yaml

BASE = """zoo: 1
name: base
summary: A base.
family: unet
model:
  encoder: {name: resnet18, arguments: {drop_path_rate: 0.1}}
  classes: [background, gland]
data:
  train:
    datasets: phantom-glands
    batch: 4
train:
  epochs: 3
  optimizer: {name: adamw, arguments: {lr: 1e-3}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    return file


def child(base: Path, text: str) -> Path:
    file = base.with_name("child.yaml")
    file.write_text(text)
    return file


def test_a_recipe_is_read_with_its_defaults(base: Path) -> None:
    recipe = load_recipe(base)
    assert recipe.data.train.datasets[0].split == "train"
    assert recipe.train is not None
    assert recipe.train.optimizer.arguments == {"lr": 0.001}
    assert recipe.run_folder == Path("runs/base")
    assert [stage.name for stage in recipe.all_stages] == ["train"]


def test_a_dataset_may_be_a_string_with_a_split(base: Path) -> None:
    found = load_recipe(base, ["data.train.datasets=[a:val, {name: b, weight: 2}]"]).data.train.datasets
    assert [(d.name, d.split, d.weight) for d in found] == [("a", "val", 1.0), ("b", "train", 2.0)]


def test_the_run_folder_fills_in_name_and_seed(base: Path) -> None:
    assert load_recipe(base, ["seed=4", "output=out/{name}-{seed}"]).run_folder == Path("out/base-4")


# --- extends ----------------------------------------------------------------------------------------------------------


def test_extends_lays_one_over_the_other(base: Path) -> None:
    file = child(base, "zoo: 1\nextends: base\nname: child\nsummary: Less.\ndata:\n  train: {batch: 2}\n")
    recipe, document = load_document(file)
    assert recipe.name == "child"
    assert recipe.data.train.batch == 2
    assert recipe.data.train.datasets[0].name == "phantom-glands"
    assert document.place(("data", "train", "batch")) == (str(file), 6)
    assert document.place(("data", "train", "datasets")) == (str(base), 10)


def test_extends_replaces_a_component_whole(base: Path) -> None:
    """The arguments of one encoder say nothing about another."""
    recipe = load_recipe(child(base, "zoo: 1\nextends: base\nname: c\nsummary: S.\nmodel: {encoder: {name: mit_b0}}\n"))
    assert recipe.model["encoder"] == {"name": "mit_b0"}
    assert recipe.model["classes"] == ["background", "gland"]


def test_a_list_is_replaced_and_not_joined(base: Path) -> None:
    recipe = load_recipe(
        child(base, "zoo: 1\nextends: base\nname: c\nsummary: S.\nmodel: {classes: [background, a]}\n")
    )
    assert recipe.model["classes"] == ["background", "a"]


def test_a_mistake_in_the_base_is_said_at_the_base(base: Path) -> None:
    base.write_text(BASE.replace("epochs: 3", "epochs: none at all"))
    with pytest.raises(Problems) as caught:
        load_recipe(child(base, "zoo: 1\nextends: base\nname: c\nsummary: S.\n"))
    assert str(caught.value).startswith(f"{base}:13: train.epochs: ")


def test_extends_a_path_beside_it(base: Path) -> None:
    inside = base.parent / "inside"
    inside.mkdir()
    text = "zoo: 1\nextends: {}\nname: c\nsummary: S.\n"
    for parent in ("../base", "../base.yaml", str(base)):
        (inside / "c.yaml").write_text(text.format(parent))
        assert load_recipe(inside / "c.yaml").family == load_recipe(base).family
    (inside / "c.yaml").write_text(text.format("[a, b]"))
    with pytest.raises(Problems, match="Expected one name, or one path"):
        load_recipe(inside / "c.yaml")


@pytest.mark.parametrize("written", ["glas", "glas:train", "[glas]", "{name: glas}", "['glas:train', wbc-1]"])
def test_a_key_of_a_dataset_is_set_however_it_is_written(base: Path, written: str) -> None:
    file = child(base, f"zoo: 1\nextends: base\nname: c\nsummary: S.\ndata: {{train: {{datasets: {written}}}}}\n")
    found = load_recipe(file, ["data.train.datasets.0.fold=1", "data.train.datasets.0.folds=3"]).data.train.datasets[0]
    assert (found.name, found.split, found.fold, found.folds) == ("glas", "train", 1, 3)
    assert load_recipe(file, ["data.train.datasets.0=wbc-1:val"]).data.train.datasets[0].split == "val"


def test_only_one_step_of_extends(base: Path) -> None:
    child(base, "zoo: 1\nextends: base\nname: child\nsummary: S.\n")
    third = base.with_name("third.yaml")
    third.write_text("zoo: 1\nextends: child\nname: third\nsummary: S.\n")
    with pytest.raises(Problems, match=r"third\.yaml:2: extends: .*itself extends"):
        load_recipe(third)


def test_extends_of_nothing_names_the_nearest(base: Path) -> None:
    with pytest.raises(Problems, match=r"child\.yaml:2: extends: no recipe \"quikstart\"\. Did you mean quickstart"):
        load_recipe(child(base, "zoo: 1\nextends: quikstart\nname: c\nsummary: S.\n"))


def test_extends_that_is_no_name(base: Path) -> None:
    with pytest.raises(Problems, match=r"child\.yaml:2: extends: "):
        load_recipe(child(base, "zoo: 1\nextends: [base]\nname: c\nsummary: S.\n"))


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "reach"),
    [
        ("train.epochs=7", lambda r: r.train.epochs == 7),
        ("train.optimizer.arguments.lr=1e-4", lambda r: r.train.optimizer.arguments["lr"] == 1e-4),
        ("model.classes.1=nucleus", lambda r: r.model["classes"] == ["background", "nucleus"]),
        ("data.validate.datasets=phantom-glands:val", lambda r: r.data.validate_.datasets[0].split == "val"),
        ("train.monitor=a=b", lambda r: r.train.monitor == "a=b"),
        ("train.clip=null", lambda r: r.train.clip is None),
        ("data.train.size=[64, 64]", lambda r: r.data.train.size == (64, 64)),
        ("summary=no", lambda r: r.summary == "no"),
    ],
)
def test_overrides(base: Path, override: str, reach: Any) -> None:
    assert reach(load_recipe(base, [override]))


def test_an_override_of_an_argument_keeps_a_component_written_as_a_string(base: Path) -> None:
    base.write_text(BASE.replace("optimizer: {name: adamw, arguments: {lr: 1e-3}}", "optimizer: sgd"))
    recipe = load_recipe(base, ["train.optimizer.arguments.lr=0.5"])
    assert recipe.train is not None
    assert (recipe.train.optimizer.name, recipe.train.optimizer.arguments) == ("sgd", {"lr": 0.5})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", '"epochs" is no override'),
        ("=3", "is no override"),
        ("name.x=3", "name.x: cannot be set"),
        ("model.classes.7=x", "model.classes.7: cannot be set"),
        ("train.epochs=[1", "train.epochs: cannot be set"),
        ("train.epochs=soon", "command line (train.epochs): train.epochs: 'soon' will not do"),
        ("trian.epochs=3", 'trian: unknown key "trian". Did you mean train?'),
    ],
)
def test_wrong_overrides_say_so(base: Path, override: str, message: str) -> None:
    with pytest.raises(Problems) as caught:
        load_recipe(base, [override])
    assert message in str(caught.value)


def test_all_wrong_overrides_at_once(base: Path) -> None:
    with pytest.raises(Problems) as caught:
        load_recipe(base, ["one", "two", "model.classes.9=x"])
    assert len(caught.value.problems) == 3


keys = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
leaves = st.integers(-5, 5) | st.booleans() | st.sampled_from(["x", "no", "1e", "a b"])


@given(st.lists(st.tuples(keys, leaves), max_size=6))
def test_overrides_equal_plain_assignment(changes: list[tuple[list[str], Any]]) -> None:
    """Against a slow twin that walks the dictionary itself."""
    expected: dict[str, Any] = {}
    texts = []
    for path, value in changes:
        current: Any = expected
        for part in path[:-1]:
            if not isinstance(current.get(part, {}), dict):
                break
            current = current.setdefault(part, {})
        else:
            current[path[-1]] = value
            texts.append(f"{'.'.join(path)}={json.dumps(value) if isinstance(value, bool) else value}")
    document = Document({})
    apply_overrides(document, texts)
    assert document.values == expected


# --- stages, values, hash ---------------------------------------------------------------------------------------------


def test_either_train_or_stages(base: Path) -> None:
    stages = "stages:\n  - {name: head, train: {epochs: 1}, freeze: [encoder]}\n  - {name: all, train: {epochs: 2}}\n"
    base.write_text(BASE + stages)
    with pytest.raises(Problems, match="either `train` or `stages`"):
        load_recipe(base)
    base.write_text(BASE[: BASE.index("train:\n  epochs")] + stages)
    recipe = load_recipe(base)
    assert [(s.name, s.train.epochs) for s in recipe.all_stages] == [("head", 1), ("all", 2)]
    base.write_text(BASE[: BASE.index("train:\n  epochs")])
    with pytest.raises(Problems, match="either `train` or `stages`"):
        load_recipe(base)


def test_written_values_give_the_same_recipe(base: Path) -> None:
    recipe = load_recipe(base, ["data.validate.datasets=phantom-glands:val", "train.precision=16"])
    again = Recipe.model_validate(read_yaml("r.yaml", dump_yaml(recipe.values())).values)
    assert again == recipe
    assert again.content_hash() == recipe.content_hash()


def test_the_hash_is_of_what_decides_the_result(base: Path) -> None:
    first = load_recipe(base).content_hash()
    assert load_recipe(base, ["name=other", "summary=Other.", "output=elsewhere"]).content_hash() == first
    changed = ["seed=1", "train.epochs=4", "model.classes=[background, x]", "data.train.batch=5", "family=other"]
    hashes = {load_recipe(base, [change]).content_hash() for change in changed}
    assert len(hashes | {first}) == len(changed) + 1
    # the order in which keys are written says nothing
    text = BASE.replace("zoo: 1\n", "") + "zoo: 1\n"
    assert load_recipe(base, []).content_hash() == Recipe.model_validate(read_yaml("x", text).values).content_hash()


def test_the_schema_for_editors_knows_every_key() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {"extends", *(f.alias or n for n, f in Recipe.model_fields.items())}
    assert schema["additionalProperties"] is False
    assert "validate" in schema["$defs"]["Data"]["properties"]
    for name, definition in schema["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            inside = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})  # a twin is left out
            assert value.get("description") or inside.get("description"), f"{name}.{key} has no description"


# --- files ------------------------------------------------------------------------------------------------------------


def test_recipes_are_found_by_name_file_and_run_folder(base: Path, tmp_path: Path) -> None:
    assert recipe_file(base) == base
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        recipe_file(run)
    (run / "recipe.yaml").write_text(BASE)
    assert recipe_file(run) == run / "recipe.yaml"
    with pytest.raises(UserError, match=r'no recipe "quickstrat"\. Did you mean quickstart'):
        recipe_file("quickstrat")


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_shipped_recipes_say_what_a_user_must_know(name: str) -> None:
    file = recipe_files()[name]
    recipe = load_recipe(file)
    assert recipe.name == name
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("Data:", "Command:", "Expected:", "Time:"):
        assert any(word in line for line in header), f"{file}: the header says no {word}"


def test_parse_value_reads_what_a_file_would() -> None:
    assert parse_value("{name: a, arguments: {lr: 1e-3}}") == {"name": "a", "arguments": {"lr": 0.001}}


def test_an_unreadable_recipe_is_a_problem_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("zoo: 1\nname: [\n")
    with pytest.raises(Problems, match=r"r\.yaml:\d: not valid YAML"):
        read_recipe(file)


def test_the_hash_of_a_recipe_stays_from_version_to_version(base: Path) -> None:
    pinned = "df3c84b81f602cf7fefd43c54111f6b6ecb8be113412fc24dab3b31c4e59b014"
    assert load_recipe(base).content_hash() == pinned  # weights that are out there bear it
    assert load_recipe(base, ["data.train.foreground=0.5"]).content_hash() == pinned
    assert load_recipe(base, ["data.train.patch_epochs=4"]).content_hash() != pinned
    assert load_recipe(base, ["data.train.foreground=0.6"]).content_hash() != pinned
