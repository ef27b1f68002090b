"""Install the oldest dependencies that pyproject.toml allows into a fresh environment, and run the smoke
test there: `make lower-bounds`. Takes minutes and some gigabytes, which are removed again."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def bounds() -> list[str]:
    """Return `name==lowest` of every dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9a-z.]*)", requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: {requirement}: a dependency needs a lower bound and nothing else")
        found.append(f"{match[1]}=={match[2]}")
    return found


def main() -> int:
    """Return 0 where the smoke test passes on the oldest versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="only print the versions")
    parser.add_argument(
        "--resolve", action="store_true", help="only ask pip whether they fit together; installs nothing"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the environment there, and use one that is")
    args = parser.parse_args()
    pins = bounds()
    if args.list:
        print("\n".join(pins))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        environment = args.keep or Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        python = str(environment / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet"]
        if args.resolve:
            return subprocess.run([*install, "--dry-run", *pins]).returncode
        subprocess.run([*install, *pins], check=True)
        subprocess.run([*install, "--no-deps", str(ROOT)], check=True)
        return subprocess.run([python, str(ROOT / "tools" / "smoke.py")], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
