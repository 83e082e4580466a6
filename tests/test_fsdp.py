"""FSDP trains a binary model as DDP does: its scales alpha have a shape that can be taken apart."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_processes import start
from tiny_models import batch, tiny
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bitlab import BitlabError, binarize
from bitlab.encoders import layers

STEPS = 5
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo is not everywhere there")


def taken_apart(model):
    for parts in layers(model):
        fully_shard(parts.layer)
    return fully_shard(model)


def trained(wrap):
    """Parameters after a few steps of two processes, each on data of its own."""
    rank = dist.get_rank()
    model = binarize(tiny(), "W1A2").double().train()
    with torch.no_grad():
        model(**batch(seed=rank))  # alphas start here, from both processes' batches
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    for step in range(STEPS):
        loss = wrapped(**batch(seed=10 * step + rank), labels=torch.arange(3) % 2).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for name, p in model.named_parameters()}


def in_each_process(folder):
    """Writes the largest difference between the two ways, how far alphas went, and what a late start says."""
    dist.init_process_group("gloo")
    ddp, fsdp = trained(DistributedDataParallel), trained(taken_apart)
    assert ddp.keys() == fsdp.keys()
    apart = max((ddp[name] - fsdp[name]).abs().max().item() for name in ddp)
    first = binarize(tiny(), "W1A2").double().train()
    with torch.no_grad():
        first(**batch(seed=dist.get_rank()))
    start = dict(first.named_parameters())
    moved = min((ddp[name] - start[name]).abs().max().item() for name in ddp if "layer.0" in name and "alpha" in name)
    late = taken_apart(binarize(tiny()).train())
    try:
        late(**batch())
    except BitlabError as error:
        said = str(error)
    if dist.get_rank() == 0:
        torch.save((apart, moved, said), Path(folder) / "found.pt")
    dist.destroy_process_group()


def test_fsdp_trains_as_ddp_does(tmp_path):
    start([__file__, tmp_path])
    apart, moved, said = torch.load(tmp_path / "found.pt")
    assert apart < 1e-5 < moved
    assert "run one batch through it in training mode before you wrap it" in said and "\n" not in said


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    in_each_process(sys.argv[1])
