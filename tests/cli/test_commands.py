"""The words a user types: what is said, in 80 columns, with which exit status, and how fast."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zoo.cli import catalogue, main
from zoo.cli.text import shorten, table
from zoo.recipe import recipe_file

COMMANDS = sorted(main.COMMANDS)


def seconds(*words: str) -> float:
    """Return the processor seconds of a command, the best of three: time on the wall says more about the neighbours."""
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""}
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def test_help_is_quick() -> None:
    assert seconds("-m", "zoo.cli", "--help") < 0.4


def test_the_list_of_encoders_is_quick() -> None:
    assert seconds("-m", "zoo.cli", "list", "encoders") < 1.5


def test_importing_the_package_is_quick() -> None:
    """Beyond starting Python, whose own time is taken off."""
    assert seconds("-c", "import zoo") - seconds("-c", "pass") < 0.1


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list", "encoders"], ["list", "datasets"], ["list", "recipes"], ["show", "recipe"], ["schema"]],
)
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    program = (
        "import sys; from zoo.cli.main import main; status = main(sys.argv[1:]);"
        "heavy = [m for m in ('torch', 'timm', 'lightning', 'albumentations', 'monai', 'smp') if m in sys.modules];"
        "sys.exit(status or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- help and mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_80_columns(zoo: Any, command: str) -> None:
    done = zoo(command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"usage: zoo {command}")
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_overview_names_every_command_and_nothing_else(zoo: Any) -> None:
    done = zoo("--help")
    named = [line.split()[1] for line in done.out.splitlines() if line.startswith("  zoo ")]
    assert named == list(main.COMMANDS)
    assert max(map(len, done.out.splitlines())) <= 80
    assert zoo().status == 2
    assert zoo("--version").out.startswith("histozoo ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], 'zoo: no command "trian". Did you mean train, stain?'),
        (["--lsit"], 'zoo: no option "--lsit"'),
        (["list"], "zoo list: the following arguments are required: KIND. See: zoo list --help"),
        (["list", "recpies"], 'zoo list: KIND: "recpies" will not do.'),
        (["list", "datasets", "--jsn"], 'zoo list: no option "--jsn". Did you mean --json?'),
        (["list", "datasets", "--js"], 'zoo list: no option "--js". Did you mean --json?'),
        (["list", "datasets", "extra"], 'zoo list: one word too many: "extra"'),
        (["list", "recipes", "--family", "unett"], 'no family "unett". Did you mean unet?'),
        (["show", "quikstart"], 'nothing is named "quikstart". Did you mean quickstart,'),
        (["show", "resnet5O"], 'nothing is named "resnet5O". Did you mean resnet50'),
        (["train"], "RECIPE is missing"),
        (["train", "quikstart"], 'no recipe "quikstart". Did you mean quickstart?'),
        (["train", "quickstart", "trian.epochs=2"], 'trian: unknown key "trian". Did you mean train?'),
        (["train", "quickstart", "epochs"], '"epochs" is no override. Expected key=value'),
        (["train", "quickstart", "--devices", "two"], '--devices: "two" will not do'),
        (["train", "quickstart", "--resume", "x"], "--resume takes the run's own recipe"),
        (["train", "--resume", "no/such/run"], "no/such/run"),
        (["train", "quickstart", "--nodes", "x"], "argument --nodes: invalid int value: 'x'"),
        (["predict", "nothing-like-this", "a.png", "--out", "o"], 'no weights "nothing-like-this"'),
        (["predict", "w"], "the following arguments are required"),
        (["predict", "w", "a.png", "--out", "o", "--mpp", "fast"], '--mpp: "fast" will not do'),
        (["bench", "--weights", "no-such-w", "--datasets", "glas", "--out", "o"], 'no weights "no-such-w"'),
        (["data", "chek", "glas"], 'zoo data: ACTION: "chek" will not do. Did you mean check?'),
        (["data", "check", "galas"], 'no dataset "galas". Did you mean glas?'),
        (["data", "check", "phantom-smear", "dificulty=hard"], "difficulty"),
        (["data", "init", "no/such/folder"], "no/such/folder: there is no such folder"),
        (["data", "sample", "phantom-nuclei"], "--out DIR is missing"),
        (["weights", "verify", "no-such-w"], 'no weights "no-such-w"'),
        (["completion", "powershell"], 'SHELL: "powershell" will not do'),
        (["schema", "recpie"], "Did you mean recipe?"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_user_mistake_is_one_sentence_and_status_2(
    zoo: Any, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = zoo(*words)
    assert message in done.err
    assert done.status == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir()), "a mistake left something behind"


@pytest.mark.parametrize("word", sorted(main.COMMANDS))
def test_help_fits_and_keeps_its_examples(zoo: Any, word: str) -> None:
    done = zoo(word, "--help")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert not [line for line in done.out.splitlines() if line.startswith("zoo ")]
    assert done.out.count("\n  zoo data ") == (8 if word == "data" else 0)


def test_a_card_for_a_folder_is_told_in_80_columns(zoo: Any, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"p{i}_1.png")
    done = zoo("data", "init", tmp_path)
    assert done.status == 0
    assert max(len(line) for line in done.out.splitlines() if str(tmp_path) not in line) <= 80
    assert "--um NUMBER" in done.out


def test_sigterm_ends_a_command_as_ctrl_c_does(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tidied = []

    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(catalogue.KINDS, "recipes", stopped)
    done = zoo("list", "recipes")
    assert (done.status, done.err) == (130, "interrupted\n")
    assert tidied == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_debug_shows_where(zoo: Any) -> None:
    from zoo.errors import UserError

    with pytest.raises(UserError):
        zoo("show", "quikstart", "--debug")


def test_what_is_not_expected_is_one_line_and_status_1(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("the disk is on fire\nand more")

    monkeypatch.setitem(catalogue.KINDS, "recipes", broken)
    done = zoo("list", "recipes")
    assert done.status == 1
    assert done.err.splitlines()[0] == "zoo: unexpected RuntimeError: the disk is on fire"
    assert "--debug" in done.err
    assert "Traceback" not in done.err
    with pytest.raises(RuntimeError):
        zoo("--debug", "list", "recipes")


def test_a_full_disk_is_no_fault_of_the_program(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/table.md")

    monkeypatch.setitem(catalogue.KINDS, "recipes", broken)
    done = zoo("list", "recipes")
    assert done.status == 1
    assert done.err == "zoo list: nothing more can be written (No space left on device: out/table.md). " + (
        "Make room and run again.\n"
    )


def test_an_interrupt_is_130(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(catalogue.KINDS, "recipes", stopped)
    assert zoo("list", "recipes").status == 130


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m zoo.cli list encoders | head -n 1"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


# --- list and show ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(catalogue.KINDS))
def test_a_list_has_a_name_first_on_each_line(zoo: Any, kind: str) -> None:
    done = zoo("list", kind)
    assert done.status == 0
    lines = done.out.splitlines()
    values = json.loads(zoo("list", kind, "--json").out)
    assert [line.split()[0] for line in lines] == [v["name"] for v in values]
    assert all(len(line) <= 80 for line in lines if len(line.split()[0]) < 40)
    if kind not in ("weights",):
        assert lines


def test_filters(zoo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    everything = zoo("list", "datasets").out.splitlines()
    usable = zoo("list", "datasets", "--usable-now").out.splitlines()
    assert any(line.startswith("phantom-nuclei ") for line in usable)
    assert not any(line.startswith("glas ") for line in usable)
    (tmp_path / "glas").mkdir()
    assert any(line.startswith("glas ") for line in zoo("list", "datasets", "--usable-now").out.splitlines())
    free = zoo("list", "datasets", "--licence", "cc0").out.splitlines()
    assert free
    assert {line.split()[0] for line in free} < {line.split()[0] for line in everything}
    assert all("CC0" in line for line in free)
    assert "quickstart" in zoo("list", "recipes", "--family", "unet").out


def test_a_broken_recipe_does_not_hide_the_others(zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import paths

    folder = tmp_path / "recipes"
    shutil.copytree(paths.shipped("recipes"), folder)
    (folder / "broken.yaml").write_text("zoo: 1\nnam: x\n")
    original = paths.shipped
    monkeypatch.setattr(paths, "shipped", lambda name: folder if name == "recipes" else original(name))
    lines = zoo("list", "recipes").out.splitlines()
    assert any(line.startswith("broken ") and "not readable" in line for line in lines)
    assert any(line.startswith("quickstart ") for line in lines)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstart", ["recipe quickstart:", "family: unet", "# Command:"]),
        ("resnet18", ["encoder resnet18", "strides", "licence apache-2.0"]),
        ("glas", ["dataset glas:", "provenance: published", "patient"]),
        ("dice", ["loss dice", "metric dice"]),
        ("cosine", ["schedule cosine", "warmup"]),
        ("recipe", ["train.optimizer", "data.train.batch", "Samples a step"]),
        ("weights-card", ["trained_on", "source.sha256"]),
        ("folder", ["reader folder", "group_pattern", "masks"]),
        ("nuclei-unet-mobile", ["recipe nuclei-unet-mobile", "# Expected: Dice"]),
    ],
)
def test_show(zoo: Any, name: str, words: list[str]) -> None:
    done = zoo("show", name)
    assert done.status == 0
    for word in words:
        assert word in done.out
    if name in ("quickstart", "folder"):
        assert max(map(len, done.out.splitlines()[2:])) <= 80
    if name == "glas":
        assert max(len(line) for line in done.out.splitlines() if "/" not in line) <= 80
        assert not any(nothing in done.out for nothing in ("{}", "[]", "null"))
    assert json.loads(zoo("show", name, "--json").out)


@pytest.mark.parametrize(
    "name", ["picture_fid", "picture_kid", "positive_count_correlation", "psnr", "ssim", "phv", "dab_concordance"]
)
def test_a_metric_of_pictures_says_what_it_cannot_show(zoo: Any, name: str) -> None:
    said = " ".join(zoo("show", name).out.split())
    assert "shows" in said
    assert "cannot" in said
    assert "record(evidence)" not in said


def test_every_pooled_metric_has_a_page_of_its_own(zoo: Any) -> None:
    from zoo.metrics import METRICS

    for name, about in METRICS.items():
        if about.pooled:
            assert about.summary.split(",")[0] in " ".join(zoo("show", name).out.split()), name


def test_show_of_a_run_folder_is_its_recipe(zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_file("quickstart").read_text())
    assert zoo("show", tmp_path).out.startswith("recipe quickstart:")


def test_show_of_a_family_documents_every_option(zoo: Any) -> None:
    from zoo.families.unet import UNet

    values = json.loads(zoo("show", "unet", "--json").out)["family"]
    described = {row["key"]: row["meaning"] for row in values["fields"]}
    for name in UNet.Options.model_fields:
        assert described[name], f"{name} is not explained"
    assert max(map(len, zoo("show", "unet").out.split("\n\ndecoder")[0].splitlines())) <= 80


# --- small commands ---------------------------------------------------------------------------------------------------


def test_schema(zoo: Any, tmp_path: Path) -> None:
    values = json.loads(zoo("schema").out)
    assert "extends" in values["properties"]
    assert zoo("schema", "weights-card", "--out", tmp_path / "w.json").status == 0
    assert "licence" in json.loads((tmp_path / "w.json").read_text())["properties"]
    assert zoo("schema", "--out", tmp_path / "no" / "w.json").status == 2


def test_completion_in_bash(zoo: Any, tmp_path: Path) -> None:
    script = tmp_path / "zoo.bash"
    script.write_text(zoo("completion", "bash").out)
    ask = 'COMP_WORDS=(zoo {}); COMP_CWORD={}; _zoo; echo "${{COMPREPLY[@]}}"'
    for words, place, expected in (("tr", 1, "train"), ("train --dr", 2, "--dry-run"), ("list enc", 2, "encoders")):
        done = subprocess.run(
            ["bash", "-c", f"source {script}; " + ask.format(words, place)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
        assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_elsewhere(zoo: Any, shell: str) -> None:
    out = zoo("completion", shell).out
    assert all(command in out for command in main.COMMANDS)


def test_data_sample_and_init(zoo: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    done = zoo("data", "sample", "phantom-nuclei", "--out", out / "images", "--count", 2)
    assert done.status == 0
    files = done.out.split()
    assert len([f for f in files if f.endswith(".png")]) == 2
    (out / "masks").mkdir()
    for path in (out / "images").glob("*.nuclei.tif"):
        path.rename(out / "masks" / path.name.replace(".nuclei", ""))
    for path in (out / "images").glob("*.tif"):
        path.unlink()
    done = zoo("data", "init", out, "--um", 0.5)
    assert done.status == 0
    assert "2 images, 2 with masks" in " ".join(done.out.split())
    again = zoo("data", "init", out)
    assert again.status == 2
    assert "--force" in again.err
    checked = zoo("data", "check", out, "--json")
    assert json.loads(checked.out)["datasets"][0]["splits"]["all"]["images"] == 2
    several = zoo("data", "check", tmp_path / "absent", out, "--json", "--between")
    assert several.status == 1
    assert "absent" in several.err
    sound, absent = json.loads(several.out)["datasets"]  # one that cannot be read does not hide the others
    assert sound["ok"] is True
    assert absent == {"dataset": str(tmp_path / "absent"), "ok": False, "error": several.err.strip()}
    assert zoo("check", out).status == 0


def test_weights_verify(zoo: Any, tmp_path: Path) -> None:
    import zoo as histozoo
    from zoo.families import build

    path = tmp_path / "w.safetensors"
    build.save(histozoo.create("unet", encoder="resnet10t", classes=["background", "gland"]), path)
    assert zoo("weights", "verify", path).out.startswith("w ok: unet, sha256 ")
    path.write_bytes(path.read_bytes()[:-10])
    done = zoo("weights", "verify", path)
    assert done.status == 1
    assert "cannot be read" in done.err


# --- text -------------------------------------------------------------------------------------------------------------


def test_tables_fit_and_names_are_whole() -> None:
    rows = [("a" * 20, "b", "word " * 30), ("short", "c", "few words")]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("a" * 20 + "  b  word")
    assert table([("n" * 100, "text")]).split()[0] == "n" * 100
    assert table([]) == ""
    assert shorten("one two three", 9) == "one tw..."


def test_a_summary_is_read_without_importing() -> None:
    assert "decoders" in catalogue.summary_of("zoo.families.unet:UNet")
    assert catalogue.summary_of("zoo.training.optim:sgd").startswith("Return stochastic gradient descent")
    assert catalogue.summary_of("no_such_package.x:Y") == ""
