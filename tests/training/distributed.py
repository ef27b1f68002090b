"""Trains RECIPE.json into OUT on N devices, as the command line would: the processes are copies of this command.

distributed.py RECIPE.json OUT N
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from zoo.errors import ZooError
from zoo.recipe import Recipe
from zoo.training import run


def main() -> None:
    values, out, devices = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], int(sys.argv[3])
    recipe = Recipe.model_validate({**values, "output": out})
    run.train(recipe, devices=devices, strategy="ddp", accelerator="cpu", progress=False)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.status)
