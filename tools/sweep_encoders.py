"""Run every listed encoder once, for real, and write down what came out: docs/encoders-sweep.csv.

    OMP_NUM_THREADS=1 python tools/sweep_encoders.py                      # goes on where it stopped
    OMP_NUM_THREADS=1 python tools/sweep_encoders.py --seconds 150        # stops after so many seconds
    OMP_NUM_THREADS=1 python tools/sweep_encoders.py --most 1e8           # leaves out models of more parameters

One thread, random weights, two pictures of 37 x 51 pixels: forward in evaluation mode, the declared channels and sizes
against the observed ones, one picture alone against the same in a batch, then a backward pass in training mode.
A row a name: `ok` or the reason, seconds, and how many tensors got no gradient. Small models come first. Names whose
row is there already are skipped; delete a row to have it run again. Exit status 1 where a row is not ok.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from pathlib import Path

import torch

from zoo.encoders import build_encoder, listing
from zoo.encoders.base import ceil_div

OUT = Path(__file__).resolve().parent.parent / "docs" / "encoders-sweep.csv"
FIELDS = ("name", "source", "architecture", "parameters", "result", "seconds", "without_gradient")
SIZE = (37, 51)


def run(name: str) -> tuple[str, int]:
    """Return "ok" or what is wrong, and the number of tensors that got no gradient."""
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    x = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        both, alone = encoder(x), encoder(x[:1])
    for found, one, channels, stride in zip(both.maps, alone.maps, encoder.channels, encoder.strides, strict=True):
        expected = (2, channels, ceil_div(SIZE[0], stride), ceil_div(SIZE[1], stride))
        if tuple(found.shape) != expected:
            return f"shape {tuple(found.shape)}, declared {expected}", 0
        if not bool(torch.isfinite(found).all()):
            return "not finite", 0
        scale = float(one.abs().max()) + 1e-12  # not the mean: features of random weights reach 1e7
        if float((found[:1] - one).abs().max()) / scale > 1e-2:
            return "a picture's features depend on the others in its batch", 0
    trained = encoder.train()(torch.randn(2, 3, 2 * SIZE[0], 2 * SIZE[1]))
    loss = torch.stack([m.float().square().mean() for m in trained.maps]).sum()
    if trained.tokens is not None:
        loss = loss + trained.tokens.float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return "ok", sum(p.grad is None for p in encoder.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--most", type=float, default=4e8, help="leave out models of more parameters")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    if options.out.is_file():
        with options.out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    done = {row["name"] for row in rows}
    every = [listing.info(n) for n in listing.names(forced=True)]
    wanted = sorted((i for i in every if i.parameters <= options.most), key=lambda i: (i.parameters, i.name))
    with options.out.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for info in wanted:
            if info.name in done:
                continue
            if time.monotonic() - began > options.seconds:
                break
            start = time.monotonic()
            try:
                result, without = run(info.name)
            except Exception as error:  # the reason is the result
                result, without = (str(error).splitlines() or [repr(error)])[0][:160], 0
            seconds = f"{time.monotonic() - start:.2f}"
            values = (info.name, info.source, info.architecture, info.parameters, result, seconds, without)
            rows.append(dict(zip(FIELDS, map(str, values), strict=True)))
            writer.writerow(rows[-1])
            file.flush()
    bad = [row for row in rows if row["result"] != "ok"]
    for row in bad:
        print(f"{row['name']}: {row['result']}")
    left = len(every) - len({r["name"] for r in rows})
    print(f"{len(rows)} run, {len(bad)} not ok, {left} of {len(every)} not run yet", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
