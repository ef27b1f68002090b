"""Devices and processes: Lightning Fabric, and nothing of it elsewhere but its collectives."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from zoo.errors import UserError, suggest

STRATEGIES = ("auto", "ddp", "fsdp")
SPLITTING = ("fsdp_", "deepspeed", "model_parallel")
"""Beginnings of Fabric's further strategies that spread a model over devices."""


def open_fabric(devices: int | str = 1, nodes: int = 1, strategy: str = "auto", accelerator: str = "auto") -> Any:
    """Return Fabric for these devices, not yet launched. Raises `UserError`.

    Fabric starts the processes and wraps no module: with `ddp` gradients are synchronised by us
    (`zoo.training.context.synchronise`), with `fsdp` the module is cut by us (`zoo.training.shard`).
    """
    if strategy not in STRATEGIES:
        near = suggest(strategy, STRATEGIES)
        if strategy.startswith(SPLITTING):
            near = "Expected auto, ddp, or fsdp, which spreads a model over devices."
        raise UserError(f'--strategy: "{strategy}" will not do. {near}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.fabric import Fabric

        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it sets INFO when it is imported
        try:
            return Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy="ddp" if strategy == "fsdp" else strategy,
                precision="32-true",
            )
        except Exception as error:
            first = str(error).splitlines()[0]
            raise UserError(f"--devices {devices} --accelerator {accelerator}: {first} See: zoo train --help") from None


def is_first() -> bool:
    """Return whether this is the process that was started by hand, or the first of all; known before launching."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"))
