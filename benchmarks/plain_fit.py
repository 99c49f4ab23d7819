"""The baseline of exercise 1: a loop in PyTorch as people write it by hand, one run for one learning rate.

    python benchmarks/plain_fit.py [--epochs 1000] [--lr 0.01]

Prints one JSON line; its "seconds" are those of training. Imports nothing of this project.
"""

import argparse
import json
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def f(x: Tensor) -> Tensor:
    return x**2 + 2 * torch.sin(x) + torch.cos(x - 1) - 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.empty(200, 1).uniform_(-5, 5)
    y = f(x) + 3 * torch.randn_like(x)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x), shuffle=True)
    model = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    start = time.perf_counter()
    for _ in range(args.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start

    grid = torch.linspace(-5, 5, 1001)[:, None]
    with torch.no_grad():
        true_mse = criterion(model(grid), f(grid)).item()
    print(json.dumps({"epochs": args.epochs, "seconds": seconds, "true_mse": true_mse}))


if __name__ == "__main__":
    main()
