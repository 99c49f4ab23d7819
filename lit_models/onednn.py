"""ResNet-20's training step in bfloat16 on a CPU, 1.1 to 1.2 times as fast: all layers by oneDNN.

PyTorch calls oneDNN's batch normalization and ReLU for mkldnn tensors only. In float32 nothing is gained.
"""

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
    """Whether ``mkldnn_logits`` computes what ``net`` does under bfloat16 autocast, and has a gradient.

    Not with layers of a user's own, hooks, frozen batch normalization, or a look for anomalies in each operation.
    """
    if torch.is_anomaly_enabled() or not torch.backends.mkldnn.enabled or not cpu_has_bfloat16():
        return False
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    has_hooks = any(getattr(layer, name) for layer in net.modules() for name in hooks)
    return not has_hooks and all(type(layer) in LAYERS and layer.training for layer in net.modules())


def mkldnn_logits(net: ResNet20, images: Tensor) -> Tensor:
    """(N, 3, H, W) float32 images -> (N, num_classes) float32 logits of ``net``, in train mode."""
    with torch.autocast("cpu", enabled=False):  # it would cast the weights, which oneDNN does by itself
        x = F.relu(net.bn1(net.conv1(images.bfloat16().to_mkldnn())), inplace=True)
        for block in (*net.layer1, *net.layer2, *net.layer3):
            out = F.relu(block.bn1(block.conv1(x)), inplace=True)
            out = block.bn2(block.conv2(out))
            out += option_a(block, x) if block.new_channels else x
            x = F.relu(out, inplace=True)
        x = x.to_dense().float()
        return net.linear(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def option_a(block: BasicBlock, x: Tensor) -> Tensor:
    """The block's shortcut as a convolution by ones and zeros, which is as exact: mkldnn tensors cannot be padded."""
    before = block.new_channels // 2
    ones = F.pad(torch.eye(x.shape[1]), (0, 0, before, block.new_channels - before))
    return F.conv2d(x, ones[:, :, None, None], stride=block.stride)
