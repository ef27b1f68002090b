"""Trains RECIPE.json into OUT on N devices, as the command line would: the processes are copies of this command.

distributed.py RECIPE.json OUT N [resume]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from zoo.recipe import Recipe
from zoo.training import run

if __name__ == "__main__":
    values, out, devices = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], int(sys.argv[3])
    if sys.argv[4:] == ["resume"]:
        run.resume(out, progress=False)
    else:
        recipe = Recipe.model_validate({**values, "output": out})
        run.train(recipe, devices=devices, strategy="ddp" if devices > 1 else "auto", accelerator="cpu", progress=False)
