"""ResNet-20's training step in bfloat16 on a CPU, 1.1 to 1.2 times as fast: all layers by oneDNN.

PyTorch calls oneDNN's batch normalization and ReLU for mkldnn tensors only. In float32 nothing is gained.
"""

import copy
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.resnet20 import BasicBlock, ResNet20

LAYERS = (ResNet20, nn.Sequential, BasicBlock, nn.Conv2d, nn.BatchNorm2d, nn.Linear)


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, as on AVX2, it is slower than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and torch.backends.mkldnn.is_available()


def can_train_in_mkldnn(net: nn.Module) -> bool:
    """Whether ``in_mkldnn`` trains ``net`` as bfloat16 autocast does: not a user's layers, hooks, or frozen layers."""
    if torch.is_anomaly_enabled() or not torch.backends.mkldnn.enabled or not cpu_has_bfloat16():
        return False
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    has_hooks = any(getattr(layer, name) for layer in net.modules() for name in hooks)
    return not has_hooks and all(type(layer) in LAYERS and layer.training for layer in net.modules())


def in_mkldnn(net: ResNet20) -> Callable[[Tensor], Tensor]:
    """(N, 3, H, W) float32 images -> (N, num_classes) float32 logits of ``net`` in train mode, by its own layers."""
    twin = copy.copy(net)
    twin._modules = dict(net._modules)
    for name in ("layer1", "layer2", "layer3"):
        twin._modules[name] = nn.Sequential(*map(PaddedByConvolution, getattr(net, name)))
    twin.layer3.append(Dense())

    def logits(images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # it would cast the weights, which oneDNN does by itself
            return twin(images.bfloat16().to_mkldnn())

    return logits


class PaddedByConvolution(BasicBlock):
    """The same block, with the same layers, whose shortcut is a convolution: mkldnn tensors cannot be padded."""

    def __init__(self, block: BasicBlock) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A by ones and zeros, which is as exact."""
        before = self.new_channels // 2
        ones = F.pad(torch.eye(x.shape[1]), (0, 0, before, self.new_channels - before))
        return F.conv2d(x, ones[:, :, None, None], stride=self.stride)


class Dense(nn.Module):
    """From an mkldnn tensor to an ordinary one in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to_dense().float()
