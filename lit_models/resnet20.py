"""ResNet-20 for CIFAR-10 and its deeper relatives, exactly as in He et al. 2015 (arXiv 1512.03385, section 4.2)."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


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
        self.in_place = False  # is faster, see onednn.py, but overwrites what hooks may have kept

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=self.in_place)
        out = self.bn2(self.conv2(out))
        other = self.shortcut(x) if self.new_channels else x
        return F.relu(out.add_(other) if self.in_place else out + other, inplace=self.in_place)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every second pixel, and zeros for the channels that x lacks, half before and half after."""
        before = self.new_channels // 2
        # Not by slices, whose gradient would not be channels_last and would slow down all that follows.
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, before, self.new_channels - before))


class ResNet20(nn.Module):
    """(N, 3, H, W) float images, H and W usually 32 -> (N, num_classes) logits; 269,722 parameters with ten classes.

    ``he_init`` draws the convolutions and the linear layer as He et al. 2015 (arXiv 1502.01852) instead of PyTorch do.
    ``depth`` is 6n + 2 with n blocks a stage, in the paper 20, 32, 44, 56, 110; ValueError where it is not.
    """

    def __init__(self, num_classes: int = 10, he_init: bool = False, depth: int = 20) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth is {depth}; it is 6n + 2, such as 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), *(BasicBlock(32, 32, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), *(BasicBlock(64, 64, 1) for _ in range(n - 1)))
        self.linear = nn.Linear(64, num_classes)
        if he_init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # The mean over the pixels; the gradient of mean() would not be channels_last.
        return self.linear(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def resnet20_of(weights: Mapping[str, Tensor], num_classes: int = 10) -> ResNet20:
    """The ResNet20 of any depth with these weights, also a LightningModule's. RuntimeError, ValueError for others."""
    weights = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    blocks = {name.split(".")[1] for name in weights if name.startswith("layer1.")}
    net = ResNet20(num_classes, depth=2 + 6 * len(blocks))
    net.load_state_dict(weights)
    return net
