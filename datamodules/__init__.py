"""The data of the two experiments (LightningDataModules)."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.curve import CurveDataModule

__all__ = ["CIFAR10DataModule", "CurveDataModule"]
