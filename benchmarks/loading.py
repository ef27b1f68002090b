"""Memory and time of loading a file of weights of about 1 GB: python benchmarks/loading.py [--half]

A process of its own imports everything, notes its memory, loads, and says what the load added: at most 1.2 times the
size of the file (twice that for a file in half precision, which becomes float32).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import sys, time
from pathlib import Path
import torch, zoo
from zoo.families import build
import zoo.families.unet, zoo.encoders
zoo.create("unet", encoder="resnet10t", classes=["background", "gland"])
def memory(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
start = time.perf_counter()
model = zoo.load(sys.argv[1])
seconds = time.perf_counter() - start
size = Path(sys.argv[1]).stat().st_size
print(f"file {size / 1e9:.3f} GB, peak +{(memory('VmHWM') - before) / size:.3f} of it, "
      f"after +{(memory('VmRSS') - before) / size:.3f} of it, {seconds:.1f} s")
"""


def main() -> None:
    """Write the file, load it elsewhere, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--encoder", default="vit_large_patch16_224")
    options = parser.parse_args()
    import zoo
    from zoo.families import build

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        model = zoo.create("unet", encoder=options.encoder, classes=["background", "gland"])
        build.save(model, path, half=options.half)
        del model
        subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True)


if __name__ == "__main__":
    main()
