"""The networks (plain ``nn.Module``) and how each is trained (LightningModules)."""

from lit_models.function_regressor import FunctionRegressor
from lit_models.resnet20 import ResNet20
from lit_models.resnet20_classifier import ResNet20Classifier

__all__ = ["FunctionRegressor", "ResNet20", "ResNet20Classifier"]
