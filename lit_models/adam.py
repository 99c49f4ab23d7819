"""ElementwiseAdam: Adam (Kingma and Ba 2015, arXiv 1412.6980) with its own learning rate for every element.

``torch.optim.Adam`` takes one learning rate per parameter group; here many networks with different learning rates lie
in one tensor, so that a step is a few operations on it, however many networks there are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class ElementwiseAdam(torch.optim.Optimizer):
    """``torch.optim.Adam`` with its defaults, but for ``element_lr``, a tensor of the parameter's shape.

    A group's ``lr`` is the first element's. Whatever sets it (a scheduler, a callback) scales all elements alike.

    Args:
        params: parameters of one shape, each with its ``grad`` set before a step.
        element_lr: the learning rate of each element.
    """

    def __init__(self, params: Iterable[Tensor], element_lr: Tensor) -> None:
        lr = element_lr.flatten()[0].item()
        rates = {"lr": lr, "reference_lr": lr, "element_lr": element_lr}
        super().__init__(params, {**rates, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer`` does, which moves the state to its parameter's device but no learning rate."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["element_lr"] = group["element_lr"].to(group["params"][0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter; ``closure``, if given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), lr, eps = group["betas"], group["element_lr"], group["eps"]
            factor = group["lr"] / group["reference_lr"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                mean, square, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
                mean.lerp_(p.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = square.sqrt().div_((1 - beta2**t) ** 0.5).add_(eps)
                torch.div(mean, update, out=update)
                p.addcmul_(update, lr, value=-factor / (1 - beta1**t))
        return loss
