"""The house as docs/architecture.md says: who may import whom, how long a module is, what may stand nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.registry import TABLES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zoo"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
HEAVY = ("torch", "lightning", "timm", "monai", "albumentations", "kornia", "segmentation_models_pytorch", "stardist")
LIGHT = (
    *("zoo", "zoo.errors", "zoo.schema", "zoo.paths", "zoo.registry", "zoo.cards", "zoo.recipe", "zoo.types"),
    *("zoo.weights.store", "zoo.encoders", "zoo.encoders.listing", "zoo.metrics", "zoo.data", "zoo.cli.main"),
    *("zoo.cli.catalogue", "zoo.cli.text"),
)


def floors() -> dict[str, int]:
    """Return room -> floor, read from the table in the documentation."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\d) \| (.+) \|$", text)
    found: dict[str, int] = {}
    for number, rooms in rows:
        for room in re.findall(r"`(\w+)`", rooms.partition("(")[0]):
            found[room] = int(number)
    return found


def beside() -> dict[str, set[str]]:
    """Return room -> rooms of its own floor that it may import, read from the brackets of the table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for bracket in re.findall(r"(?m)^\| \d \|.*?\((.+)\) \|$", text):
        for part in bracket.split(";"):
            room, _, allowed = part.partition("may use")
            for name in re.findall(r"`(\w+)`", room):
                found[name] = set(re.findall(r"`(\w+)`", allowed))
    return found


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, module) of everything of the zoo that a module imports, inside functions too.

    What stands under `if TYPE_CHECKING:` is a name for readers and type checkers: it is left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it out"
            names = [f"zoo.{alias.name}" for alias in node.names] if node.module == "zoo" else [node.module or ""]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return [(line, name) for line, name in found if name == "zoo" or name.startswith("zoo.")]


def room_of(module: str) -> str:
    """Return the room of "zoo.room.module", "" for the package itself."""
    return [*module.split("."), ""][1]


def test_the_table_names_every_room() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert rooms == set(floors()), "docs/architecture.md's table and the folders differ"


def test_imports_go_down_only() -> None:
    floor, same = floors(), beside()
    wrong = []
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for line, module in imports(path):
            other = room_of(module)
            if other in ("", "__version__", room):
                continue
            below = floor[other] < floor[room]
            ground = floor[other] == floor[room] == 0
            if not (below or ground or other in same.get(room, set())):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_family_imports_another() -> None:
    wrong = []
    for path in (PACKAGE / "families").rglob("*.py"):
        parts = path.relative_to(PACKAGE / "families").parts
        own = parts[0] if len(parts) > 1 else ""
        for line, module in imports(path):
            names = module.split(".")
            other = names[2] if len(names) > 2 and names[1] == "families" else ""
            if (PACKAGE / "families" / other).is_dir() and other not in ("", own):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {module}")
    assert not wrong, "\n".join(wrong)


def test_modules_stay_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text("utf-8").splitlines())) >= 500}
    assert not long


def test_the_tables_of_the_registry_resolve_downward() -> None:
    """The registry names modules by strings, which no import shows: each must exist, in a room that fits its kind."""
    for kind, entries in TABLES.items():
        for name, target in entries.items():
            module, _, attribute = target.partition(":")
            base = ROOT.joinpath(*module.split("."))
            assert base.with_suffix(".py").is_file() or (base / "__init__.py").is_file(), f"{kind} {name}: {target}"
            assert attribute


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Return light module -> the heavy libraries that importing it alone pulls in; one process, forked for each."""
    program = f"""
import os, sys, json
found = {{}}
for name in {LIGHT!r}:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        __import__(name)
        os.write(write, json.dumps([h for h in {HEAVY!r} if h in sys.modules]).encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0, name
    found[name] = json.loads(os.read(read, 10000))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    import json

    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str, loaded: dict[str, list[str]]) -> None:
    assert loaded[module] == []


def tracked() -> list[Path]:
    """Return the files under version control, or skip where this is no checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_machine_is_named() -> None:
    """No path of one machine stands in a file that is given to others."""
    pattern = re.compile(r"(?<![\w./*])/(?:work|home/\w+|Users/\w+|root|tmp/team)(?:/|\b)(?!\*)")
    wrong = []
    for path in tracked():
        if (
            path.suffix not in (".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ".sh", "")
            or not path.is_file()
        ):
            continue
        if path == Path(__file__):
            continue
        lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
        wrong += [
            f"{path.relative_to(ROOT)}:{i}: {m}" for i, line in enumerate(lines, 1) if (m := pattern.search(line))
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("folder", "kinds"), [("recipes", {".yaml"}), ("datasets", {".yaml", ".json"})])
def test_recipes_and_cards_stand_with_nothing_else(folder: str, kinds: set[str]) -> None:
    """Splits of datasets are JSON."""
    assert {path.suffix for path in (ROOT / folder).iterdir()} == kinds


def test_the_data_folder_is_no_package() -> None:
    """A package named `datasets` would shadow another that transformers looks for."""
    assert not list((ROOT / "datasets").rglob("*.py"))
    assert not list((ROOT / "recipes").rglob("*.py"))
