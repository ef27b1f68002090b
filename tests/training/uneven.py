"""Two forked processes whose losses depend on different parts of a module that is spread over them; prints one JSON
line a process: gradients of the parts (None = none), and how each refusal ended.

uneven.py RENDEZVOUS-FILE
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError
from zoo.training import shard


class Net(nn.Module):
    """Two repeated blocks and three heads; everything is one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
        self.heads = nn.ModuleDict({name: nn.Linear(2, 3) for name in ("first", "second", "neither")})
        self.still = nn.Parameter(torch.ones(2))
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, head: str, blocks: int = 2) -> torch.Tensor:
        x = self.still[None]
        for block in list(self.blocks)[:blocks]:
            x = block(x)
        found: torch.Tensor = self.heads[head](x).sum()
        return found


def work(rank: int, file: str) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    shard.LARGE = 6
    net: Any = Net()
    shards = shard.Shards(net, [name for name, _ in net.named_parameters() if name != "still"], torch.device("cpu"))
    own = list(shards.parameters.values())
    with shards.whole():
        loss = net(("first", "second")[rank])
        shards.backward(loss, own, (0, 1), retain=False)
    whole = [None if p.grad is None else shard.collect([p.grad], keep=True)[0].flatten().tolist() for p in own]
    found: dict[str, Any] = {"gradients": dict(zip(shards.parameters, whole, strict=True))}
    found["cut"] = [name for name, p in net.named_parameters() if shard.is_cut(p)]
    for what, blocks, turn in (("blocks", 1 + rank, 0), ("players", 2, rank)):
        try:
            with shards.whole():
                shards.backward(net("first", blocks), own, (turn, 2), retain=False)
        except (ZooError, SystemExit) as error:
            found[what] = str(error)
    return found


def main() -> None:
    second = os.fork()
    rank = 1 if second == 0 else 0
    said = json.dumps(work(rank, sys.argv[1]))
    if rank == 0:
        os.waitpid(second, 0)
    sys.stdout.write(said + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
