"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for convolutions: every direction of a step is as long.

``torch.optim.Muon`` takes matrices only, one at a time; here those of equal shape are orthogonalized in one batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.SGD):
    """SGD, but for the convolutions in ``filters`` the step is orthogonalized.

    Such a layer's weights are scaled to a norm of sqrt(out_channels), which batch normalization behind it undoes, and
    which is about the norm of an orthogonalized step: ``lr_ratio * lr`` is a step's length relative to the weights.

    Args:
        filters: weights of convolutions, (out, in, H, W) with out <= in * H * W, each before a batch normalization.
        others: parameters that SGD trains.
        lr_ratio: the filters' learning rate, as a fraction of SGD's.
        filter_momentum: the filters' momentum.
        sgd: settings of ``torch.optim.SGD``, which raises ValueError for what it refuses, as for negative ones here.
    """

    def __init__(
        self, filters: Iterable[Tensor], others: Iterable[Tensor], lr_ratio: float, filter_momentum: float, **sgd: Any
    ) -> None:
        if not (lr_ratio >= 0 and filter_momentum >= 0):
            raise ValueError(f"lr_ratio is {lr_ratio}, filter_momentum {filter_momentum}; they must be at least 0")
        first: dict[str, Any] = {"params": filters, "lr_ratio": lr_ratio, "momentum": filter_momentum}
        super().__init__([first, {"params": others}], **sgd)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; ``closure``, if given, computes the gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        group = self.param_groups[0]  # the filters
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # weights, and gradients with their momentum
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
                by_shape.setdefault(p.shape, []).append((p, update))
                p.grad = None
        for pairs in by_shape.values():
            weights, updates = (torch.stack(tensors).flatten(2) for tensors in zip(*pairs, strict=True))
            weights.mul_(weights.shape[1] ** 0.5 / weights.norm(dim=(1, 2), keepdim=True))
            weights.sub_(orthogonalized(updates), alpha=group["lr_ratio"] * group["lr"])
            for (p, _), new in zip(pairs, weights, strict=True):
                p.copy_(new.view_as(p))
        super().step()  # on the others: the filters' gradients are gone
        return loss


def orthogonalized(matrices: Tensor) -> Tensor:
    """(B, m, n) with m <= n: each with its singular values brought near 1, by three Newton-Schulz iterations.

    The polynomial of Jordan et al. leaves most of them between 0.7 and 1.2. All iterations are on m x m matrices.
    """
    X = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    A = X @ X.mT
    product = B = _polynomial(A)
    for _ in range(2):
        A = B @ A @ B
        B = _polynomial(A)
        product = B @ product
    return product @ X


def _polynomial(A: Tensor) -> Tensor:
    B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)
    B.diagonal(dim1=1, dim2=2).add_(3.4445)
    return B
