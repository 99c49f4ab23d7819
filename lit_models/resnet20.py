"""ResNet-20 for CIFAR-10, exactly as in He et al. 2015 (arXiv 1512.03385, section 4.2)."""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WRAPPERS = {"net", "module", "_orig_mod"}  # of a LightningModule, of DDP and averaged weights, of torch.compile


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        # In place where batch normalization's backward does not need its own output: less memory to go through.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x) if self.new_channels else x
        return F.relu(out, inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every second pixel, and zeros for the channels that x lacks, half before and half after."""
        before = self.new_channels // 2
        after = self.new_channels - before
        if x.is_mkldnn:  # a layout that cannot be padded: a convolution by ones and zeros, which is as exact
            ones = F.pad(torch.eye(x.shape[1]), (0, 0, before, after))
            return F.conv2d(x, ones[:, :, None, None], stride=self.stride)
        # Not by slices, whose gradient would not be channels_last and slow down all that follows.
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, before, after))


class ResNet20(nn.Module):
    """(N, 3, H, W) float images, H and W usually 32 -> (N, 10) logits; 269,722 parameters.

    The layers are registered in the order in which the paper's network applies them. ``he_init`` draws the
    convolutions and the linear layer as He et al. 2015 (arXiv 1502.01852) do; without it they keep PyTorch's default.

    In training under bfloat16 autocast on a CPU that computes in bfloat16 the layers see mkldnn tensors, where oneDNN
    does batch normalization and ReLU too. A step is 1.1 to 1.2 times as fast so (measured with AVX512-BF16, not with
    AMX); in float32 nothing is gained.
    """

    def __init__(self, num_classes: int = 10, he_init: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)
        if he_init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self._gains_by_mkldnn(x):
            return self._logits(x)
        with torch.autocast("cpu", enabled=False):  # it would cast the weights, which oneDNN does by itself
            return self._logits(x.bfloat16().to_mkldnn())

    def _gains_by_mkldnn(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_anomaly_enabled() or not torch.backends.mkldnn.enabled:
            return False
        if not (self.training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return False
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not cpu_has_bfloat16():
            return False
        if self.linear.weight.dtype != torch.float32:  # float64, say, which autocast leaves alone
            return False
        return all(fits_mkldnn(module) for module in self.modules() if module is not self)

    def _logits(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        if x.is_mkldnn:
            x = x.to_dense().to(self.linear.weight)
        # The mean; the gradient of mean() would not be channels_last.
        return self.linear(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights by name: its own, a ResNet20Classifier's, or public ones; compiled, averaged or of DDP.

        Public are those of github.com/akamaster/pytorch_resnet_cifar10, whose layers have the same names; they expect
        ImageNet's normalization.

        Raises:
            RuntimeError: a layer is missing, unknown, or of another shape.
        """
        # What wraps a network adds a name of its own; n_averaged is a count beside the averaged weights.
        parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in weights}
        self.load_state_dict({".".join(parts[name]): value for name, value in weights.items() if name != "n_averaged"})


def fits_mkldnn(layer: nn.Module) -> bool:
    """Frozen batch normalization has no backward pass there; hooks, and other layers, compute with what they get."""
    hooks = layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks
    own = (nn.Sequential, BasicBlock, nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return type(layer) in own and layer.training and not hooks


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, as on AVX2, it is slower than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and torch.backends.mkldnn.is_available()
