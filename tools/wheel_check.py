"""Build a wheel, lay it out away from the checkout, and run the smoke test with it: `make wheel-check`.

The dependencies are those of the running environment; only histozoo itself comes from the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(out: Path) -> Path:
    """Return the wheel of this checkout, built into `out` with the running environment's build backend."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(ROOT)], check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> list[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def missing(names: list[str]) -> list[str]:
    """Return what a wheel should hold and does not: every recipe, card, split file, list and style of the checkout."""
    wanted = [f"zoo/{p.relative_to(ROOT)}" for folder in ("recipes", "datasets") for p in (ROOT / folder).glob("*.*")]
    tracked = [p for p in (ROOT / "zoo").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    wanted += [str(p.relative_to(ROOT)) for p in tracked]
    return sorted(set(wanted) - set(names))


def smoke(wheel: Path, folder: Path) -> str:
    """Return what the smoke test prints with the wheel unpacked in `folder`, run from there."""
    target = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    script = folder / "smoke.py"
    script.write_bytes((ROOT / "tools" / "smoke.py").read_bytes())
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the smoke test failed:\n{done.stdout}{done.stderr}")
    if str(target.resolve()) not in done.stdout:
        raise SystemExit(f"the smoke test did not run from the wheel:\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Return 0 where the wheel is whole and works."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        absent = missing(contents(wheel))
        if absent:
            print("not in the wheel:", *absent, sep="\n  ")
            return 1
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        print(smoke(wheel, Path(folder)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
