"""ElementwiseAdam: Adam (Kingma and Ba 2015, arXiv 1412.6980) with its own learning rate for every element.

``torch.optim.Adam`` takes one learning rate per parameter group; here many networks with different learning rates lie
in one tensor, so that a step is a few operations on it, however many networks there are.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class ElementwiseAdam(torch.optim.Optimizer):
    """``torch.optim.Adam`` with its defaults, but for ``element_lr``, a tensor of the parameters' shape.

    A group's ``lr`` is the first element's. Whatever sets it (a scheduler, a callback) scales all elements alike.

    Args:
        params: parameters of one shape, each with its ``grad`` set before a step.
        element_lr: the learning rate of each element, on the parameters' device.
    """

    def __init__(self, params: Iterable[Tensor], element_lr: Tensor) -> None:
        lr = element_lr.flatten()[0].item()
        self.element_lr = element_lr  # no part of the state: a checkpoint does not replace it
        super().__init__(params, {"lr": lr, "reference_lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter; ``closure``, if given, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), eps, factor = group["betas"], group["eps"], group["lr"] / group["reference_lr"]
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
                p.addcmul_(update, self.element_lr, value=-factor / (1 - beta1**t))
        return loss
