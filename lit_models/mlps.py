"""Many small MLPs with ReLU trained side by side as one batched network; their gradient and their Adam.

A full-batch step of one such MLP is some 30 microseconds of arithmetic, and autograd's bookkeeping several times that.
So the backward pass is written by hand, into buffers that every step uses again.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class MLPs(nn.Module):
    """M networks from R to R, one for each of ``seeds``, with layers as wide as ``hidden`` (ValueError if empty).

    All parameters lie in one flat tensor ``theta``, layer by layer, the M members of a layer side by side. They start
    as in ``torch.nn.Linear`` (uniform in plus or minus 1 / sqrt(fan_in)), each member by a generator of its own.
    """

    def __init__(self, hidden: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden is empty: give the width of at least one hidden layer")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shapes, blocks = list[tuple[int, int, int]](), list[Tensor]()
        for fan_in, fan_out in pairwise([1, *hidden, 1]):
            bound = 1 / math.sqrt(fan_in)
            for columns in (fan_in, 1):  # a layer is a weight (M, fan_out, fan_in) and a bias (M, fan_out, 1)
                members = [torch.rand(fan_out, columns, generator=g) * 2 * bound - bound for g in generators]
                self.shapes.append((len(seeds), fan_out, columns))
                blocks.append(torch.stack(members).flatten())
        self.theta = nn.Parameter(torch.cat(blocks))

    def per_parameter(self, values: Tensor) -> Tensor:
        """(M,) values, one a member -> the same values laid out as ``theta``."""
        return torch.cat([values[:, None, None].expand(shape).flatten() for shape in self.shapes])

    def layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The (weight, bias) of each layer as views of a tensor laid out as ``theta``."""
        blocks = flat.split([math.prod(shape) for shape in self.shapes])
        views = [block.view(shape) for block, shape in zip(blocks, self.shapes, strict=True)]
        return list(zip(views[::2], views[1::2], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(M, 1, N) inputs -> (M, 1, N) outputs, member m's in row m."""
        *hidden, (weight, bias) = self.layers(self.theta)
        for w, b in hidden:
            x = torch.baddbmm(b, w, x).relu()
        return torch.baddbmm(bias, weight, x)

    def gradient_of_mse(self, x: Tensor, y: Tensor) -> Callable[[], None]:
        """A function that sets ``theta.grad`` to the gradient of each member's mean squared error; x, y: (M, 1, N)."""
        M, _, N = x.shape
        self.theta.grad = torch.empty_like(self.theta)
        layers, grads = self.layers(self.theta.detach()), self.layers(self.theta.grad)
        hs = [x.new_empty(M, w.shape[1], N) for w, _ in layers]  # what each layer puts out
        ds = [torch.empty_like(h) for h in hs]  # d loss / d (what each layer puts out, before its ReLU)
        zero_where_relu_was_flat = torch.ops.aten.threshold_backward.grad_input

        (first_w, first_b), (last_w, last_b), error = layers[0], layers[-1], ds[-1]
        forward = [(*layers[i], hs[i - 1], hs[i]) for i in range(1, len(layers) - 1)]
        inputs, before = [x, *hs[:-1]], [None, *ds[:-1]]  # of each layer; of x no gradient is needed
        each = zip(ds, inputs, layers, grads, before, strict=True)
        backward = [(d, h, h.mT, w.mT, *grad, d_before) for d, h, (w, _), grad, d_before in each][::-1]

        def gradient() -> None:
            # The first layer has one input and the last one output: outer products, for which bmm is slow.
            torch.mul(first_w, x, out=hs[0]).add_(first_b).relu_()  # addcmul takes twice the time
            for w, b, before, after in forward:
                torch.baddbmm(b, w, before, out=after).relu_()
            # d loss / d output = 2 / N * (weight @ h + bias - y), in two calls
            torch.baddbmm(torch.sub(last_b, y, out=error), last_w, hs[-2], beta=2 / N, alpha=2 / N, out=error)
            for d, h, h_T, w_T, grad_w, grad_b, d_before in backward:
                torch.bmm(d, h_T, out=grad_w)
                torch.sum(d, 2, keepdim=True, out=grad_b)
                if d_before is not None:
                    (torch.mul if d is error else torch.bmm)(w_T, d, out=d_before)
                    zero_where_relu_was_flat(d_before, h, 0, grad_input=d_before)

        return gradient


class ElementwiseAdam(torch.optim.Optimizer):
    """``torch.optim.Adam`` with its defaults, for one tensor, with a learning rate for every element (arXiv 1412.6980).

    ``element_lr`` has the shape and device of the tensor. The group's ``lr`` is the first element's; whatever sets it
    (a scheduler, a callback) scales all elements alike.
    """

    def __init__(self, parameter: Tensor, element_lr: Tensor) -> None:
        lr = element_lr.flatten()[0].item()
        self.element_lr = element_lr  # no part of the state: a checkpoint does not replace it
        # By "fused" a checkpoint's count of steps comes to the tensor's device.
        defaults = {"lr": lr, "reference_lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
        super().__init__([parameter], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure``, if given, computes the gradient first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self.prepare()()
        return loss

    def prepare(self) -> Callable[[], None]:
        """A step as a function without the hooks of ``step``, which take as long; for this gradient tensor and rate."""
        (group,) = self.param_groups
        (p,) = group["params"]
        state, update, element_lr = self.state[p], torch.zeros_like(p), self.element_lr
        mean, square = (state.setdefault(name, torch.zeros_like(p)) for name in ("exp_avg", "exp_avg_sq"))
        # The kernel reads no count but a float32.
        count = state.setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))
        lr, (beta1, beta2), eps = group["lr"] / group["reference_lr"], group["betas"], group["eps"]
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0.0}
        adam: Any = torch._fused_adam_  # the one call of torch.optim.Adam(fused=True)

        def step() -> None:
            count.add_(1)
            # It has one learning rate, so it is given zeros, from which it makes the update itself.
            adam([update], [p.grad], [mean], [square], [], [count], **numbers, amsgrad=False, maximize=False)
            p.addcmul_(update, element_lr)
            update.zero_()

        return step
