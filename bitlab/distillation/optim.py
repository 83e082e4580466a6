"""What the optimizer does with each parameter, and the released program's optimizer for comparison."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitlab.layers import ElasticBinarizer


def parameter_groups(model: nn.Module, lr: float, weight_decay: float = 0.01, alpha_lr: float = 1e-4) -> list[dict]:
    """Optimizer groups: weights with decay; biases, thresholds and LayerNorm without; alphas without, at `alpha_lr`.

    Returns:
        a list of dicts for a torch optimizer, named "decay", "no_decay" and "alpha"; empty groups are left out.
    """
    model = getattr(model, "module", model)  # DistributedDataParallel
    alphas, vectors, weights = [], [], []
    binarizers = {name for name, module in model.named_modules() if isinstance(module, ElasticBinarizer)}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        if not parameter.requires_grad:
            continue
        if owner in binarizers and kind == "alpha":
            alphas.append(parameter)
        elif owner in binarizers or owner in norms or kind == "bias":
            vectors.append(parameter)
        else:
            weights.append(parameter)
    groups = [
        {"name": "decay", "params": weights, "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": vectors, "lr": lr, "weight_decay": 0.0},
        {"name": "alpha", "params": alphas, "lr": alpha_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class ClippingAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which also clips the gradient: in the pass in which it reads it, not in two of its own.

    A sparse gradient (of an embedding, see `sparse_rows`) is laid into a dense one that is kept and holds zeros
    elsewhere, so that every number moves as with a dense gradient.
    """

    def __init__(self, params, **options):
        super().__init__(params, fused=True, **options)
        self._tables = {}  # parameter -> its dense gradient, and the rows in which that is not zero

    def __setstate__(self, state):
        super().__setstate__(state)
        self._tables = {}  # which no copy takes along

    def _learning(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _grads(self) -> list[Tensor]:
        """All gradients; in the place of a sparse one its values, while it becomes dense."""
        return [self._opened(p) if p.grad.is_sparse else p.grad for p in self._learning()]

    def _opened(self, p: Tensor) -> Tensor:
        grad = p.grad.coalesce()
        rows = grad.indices()[0]
        table, before = self._tables[p] if p in self._tables else (torch.zeros_like(p), rows)
        p.grad = table.index_fill_(0, before, 0.0).index_copy_(0, rows, grad.values())
        self._tables[p] = table, rows
        return grad.values()

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Let the next step divide the gradient by `max(1, (norm + 1e-6) / max_norm)`; returns the norm of it all."""
        norm = nn.utils.get_total_norm(self._grads())
        scale = ((norm + 1e-6) / max_norm).clamp_min(1.0)  # as torch clips
        if scale.dtype == torch.float64:  # which the fused step would round to float32
            for p in self._learning():
                p.grad /= scale
        else:
            self.grad_scale = scale.float()
        return norm

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._grads()
        super().step()
        self.grad_scale = None
        for p, (table, _) in self._tables.items():
            if p.grad is table:
                p.grad = None  # or the next backward would add to it
        return loss


@contextmanager
def sparse_rows(embedding: nn.Embedding):
    """While the block runs, the gradient of an embedding is that of the rows that were looked up, and nothing else.

    A dense one is a table of zeros, which to write takes longer than the rest of the embedding's backward.
    """
    before, embedding.sparse = embedding.sparse, True
    try:
        yield
    finally:
        embedding.sparse = before


class AdamWithoutCorrection(torch.optim.Optimizer):
    """Adam as the released BiT program uses it (it goes back to the original BERT's).

    Each tensor's gradient is first clipped to norm `max_norm`; then `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`,
    `p -= lr (m / (sqrt(v) + eps) + weight_decay p)`: no bias correction, decoupled weight decay.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, max_norm=1.0):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p, group):
        state = self.state[p]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        grad = p.grad * (group["max_norm"] / (p.grad.norm() + 1e-6)).clamp(max=1.0)
        b1, b2 = group["betas"]
        state["mean"].lerp_(grad, 1 - b1)
        state["square"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        update = state["mean"] / (state["square"].sqrt() + group["eps"]) + group["weight_decay"] * p
        p.sub_(update, alpha=group["lr"])
