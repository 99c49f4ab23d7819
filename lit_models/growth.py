"""Growth: ResNet-20 trains without the last block of each stage first, which takes a third off a step's time.

Then that block begins as a copy of the one before it, and of both half is added: two half steps for one, which changes
the network's function little (Chang et al. 2018, arXiv 1710.10348).
"""

import copy
from typing import Any

import torch
from torch import nn

from lit_models.onednn import with_blocks
from lit_models.resnet20 import ResNet20


def close(net: ResNet20) -> None:
    """The last block of each stage then adds zeros, and passes on its input. ValueError where there are under three."""
    if len(net.layer1) < 3:
        raise ValueError("depth is too small for grow_at, which needs three blocks a stage: 20 or more, or grow_at 0")
    for _, last in ends(net):
        nn.init.zeros_(last.bn2.weight)


def to_train(net: nn.Module) -> nn.Module:
    """What computes the same as a ``net`` that is closed, as its weights say, by its own layers; another is itself."""
    if type(net) is ResNet20 and not any(last.bn2.weight.any() for _, last in ends(net)):
        return with_blocks(net, lambda stage: stage[:-1])
    return net


@torch.no_grad()
def grow(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Makes each last block and the one before it two halves of the latter, with its momentum."""
    for before, last in ends(net):
        before.bn2.weight.mul_(0.5)
        before.bn2.bias.mul_(0.5)
        last.load_state_dict(before.state_dict())
        for old, new in zip(before.parameters(), last.parameters(), strict=True):
            optimizer.state[new] = copy.deepcopy(optimizer.state[old])


def ends(net: Any) -> list[list[Any]]:
    """The last two blocks of each stage of a ResNet20."""
    return [list(stage)[-2:] for stage in (net.layer1, net.layer2, net.layer3)]
