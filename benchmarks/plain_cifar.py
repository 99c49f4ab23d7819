"""The baseline of exercise 2: ResNet-20 on CIFAR-10 as people write it by hand: PIL transforms, a DataLoader, a loop.

    python benchmarks/plain_cifar.py --data_root DIR [--steps 40]   one JSON line with "images_per_second"
    python benchmarks/plain_cifar.py --data_root DIR --epochs 10    the lab recipe, one JSON line an epoch

Imports nothing of this project.
"""

import argparse
import json
import statistics
import time
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10


class Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.pad = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:  # the shortcut of the paper's option A
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


def resnet20() -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    for before, after in zip(widths, widths[1:], strict=False):
        layers.append(Block(before, after, stride=1 if before == after else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def loader(args: argparse.Namespace, train: bool) -> DataLoader:
    augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    normalize = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalize])
    dataset = CIFAR10(args.data_root, train=train, transform=transform)
    return DataLoader(dataset, batch_size=128, shuffle=train, num_workers=args.workers)


def train(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer, limit: int | None) -> list[float]:
    """Trains for ``limit`` steps or an epoch; returns the seconds of each step, the wait for its batch included."""
    model.train()
    device = next(model.parameters()).device
    total_loss, correct, seconds = 0.0, 0.0, []
    start = time.perf_counter()
    for images, labels in islice(batches, limit):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item()  # each step, as most loops do to show them
        correct += (logits.argmax(1) == labels).sum().item()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    model.eval()
    device = next(model.parameters()).device
    correct = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in batches)
    return correct / 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", required=True, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--steps", type=int, default=40, help="training steps; the first five are not timed")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--epochs", type=int, help="whole epochs instead of steps, each with an evaluation")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = resnet20().to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    train_batches, test_batches = loader(args, train=True), loader(args, train=False)
    if args.epochs is None:
        step = statistics.median(train(model, train_batches, optimizer, args.steps)[5:])
        print(json.dumps({"steps": args.steps, "images_per_second": 128 / step}))
        return
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5], gamma=0.1)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        train(model, train_batches, optimizer, None)
        scheduler.step()
        result = {"epoch": epoch, "val_acc": accuracy(model, test_batches), "seconds": time.perf_counter() - start}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
