"""Forward passes that train ResNet-20 faster: in place, and in bfloat16 on a CPU all layers by oneDNN.

PyTorch calls oneDNN's batch normalization and ReLU for mkldnn tensors only: a step takes 0.8 to 0.9 of its time. In
float32 nothing is gained by that; to add and to apply ReLU in place takes 3 to 6 % off.
"""

import copy
from collections.abc import Callable, Iterable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.resnet20 import BasicBlock, ResNet20

Forward = Callable[[Tensor], Tensor]  # from images to logits
LAYERS = (ResNet20, nn.Sequential, BasicBlock, nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, and may; emulated, as on AVX2, it is slower than float32."""
    # ATEN_CPU_CAPABILITY limits what PyTorch uses of the processor, ONEDNN_MAX_CPU_ISA what oneDNN does.
    has, uses = torch.cpu.get_capabilities(), torch.backends.cpu.get_cpu_capability()
    is_native = uses == "AVX512" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return is_native and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def is_plain(net: nn.Module) -> TypeGuard[ResNet20]:
    """Whether the passes below compute what ``net`` does: it has no layers of a user's, hooks, or frozen layers."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    has_hooks = any(getattr(layer, name) for layer in net.modules() for name in hooks)
    has_own_layers = all(type(layer) in LAYERS and layer.training for layer in net.modules())
    return type(net) is ResNet20 and has_own_layers and not has_hooks


def can_train_in_mkldnn(net: nn.Module) -> TypeGuard[ResNet20]:
    """Whether ``in_mkldnn`` trains ``net`` as bfloat16 autocast does."""
    is_disabled = torch.is_anomaly_enabled() or not torch.backends.mkldnn.enabled
    return cpu_has_bfloat16() and is_plain(net) and not is_disabled


def faster(net: nn.Module, precision: str, device: str) -> Forward:
    """What computes the logits of ``net`` in train mode in the least time, on this kind of device."""
    if precision == "bf16-mixed" and device == "cpu" and can_train_in_mkldnn(net):
        return in_mkldnn(net)
    # A function: a LightningModule would register a module.
    return with_blocks(net, lambda stage: map(InPlace, stage)).forward if is_plain(net) else net.__call__


class InPlace(BasicBlock):
    """The same block, by the same layers, with less memory traffic."""

    def __init__(self, block: nn.Module) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)
        self.in_place = True


def with_blocks(net: ResNet20, change: Callable[[nn.Sequential], Iterable[nn.Module]]) -> ResNet20:
    """``net``, by its own layers, with each stage of blocks changed."""
    twin = copy.copy(net)
    twin._modules = dict(net._modules)
    for name in ("layer1", "layer2", "layer3"):
        twin._modules[name] = nn.Sequential(*change(getattr(net, name)))
    return twin


def in_mkldnn(net: ResNet20) -> Forward:
    """(N, 3, H, W) float32 images -> (N, num_classes) float32 logits of ``net`` in train mode, by its own layers."""
    twin = with_blocks(net, lambda stage: map(PaddedByConvolution, stage))
    twin.layer3.append(Dense())

    def logits(images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # it would cast the weights, which oneDNN does by itself
            return twin(images.bfloat16().to_mkldnn())

    return logits


class PaddedByConvolution(InPlace):
    """The shortcut is a convolution by ones and zeros, which is as exact: mkldnn tensors cannot be padded."""

    def shortcut(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        ones = F.pad(torch.eye(x.shape[1]), (0, 0, before, self.new_channels - before))
        return F.conv2d(x, ones[:, :, None, None], stride=self.stride)


class Dense(nn.Module):
    """From an mkldnn tensor to an ordinary one in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to_dense().float()
