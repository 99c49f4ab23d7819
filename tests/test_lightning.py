"""Both experiments by plain Lightning: the modules, the data modules and Lightning's own parts, without the scripts."""

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import (
    Checkpoint,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.tuner import Tuner
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR
from torchmetrics.classification import MulticlassAUROC

from callbacks import LRStep
from callbacks.classifier_record import ClassifierRecord
from callbacks.epoch_averages import EpochAverages
from callbacks.finite_loss import StopOnNonFiniteLoss
from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.synthetic import synthetic_images
from lit_models import FunctionRegressor, ResNet20Classifier

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
MEASURED = (1, 10, 30, 50)
BOTH = pytest.mark.parametrize("name", ["images", "curve"])
drawn = functools.cache(synthetic_images)


class Images(CIFAR10DataModule):
    def setup(self, stage: str | None = None) -> None:
        self.train, self.test = drawn(60, 0), drawn(30, 1)  # an epoch's last batch is smaller


def images(**arguments: Any) -> CIFAR10DataModule:
    """Four training batches and two test batches."""
    return Images(dataset="synthetic", **{"batch_size": 16, **arguments})


def experiment(name: str, **arguments: Any) -> tuple[LightningModule, LightningDataModule]:
    """The model and the data of an experiment, always from the same seed."""
    seed_everything(1)
    if name == "images":
        return ResNet20Classifier(**arguments), images()
    data = CurveDataModule(num_samples=30)
    return FunctionRegressor(measure_at=MEASURED, **data.scale, **arguments), data


def make_trainer(folder: Path, *callbacks: Callback, name: str = "images", **flags: Any) -> Trainer:
    """Two epochs of images, or the four measurements of a curve; by default nothing is logged or saved."""
    quiet = QUIET | {"logger": False, "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks)}
    own = {"max_epochs": 2 if name == "images" else -1, "default_root_dir": folder, "callbacks": list(callbacks)}
    return Trainer(**quiet | own | flags)


def trained(folder: Path, *callbacks: Callback, name: str = "images", **flags: Any) -> LightningModule:
    model, data = experiment(name)
    make_trainer(folder, *callbacks, name=name, **flags).fit(model, data)
    return model


def logged(folder: Path, *names: str) -> list[tuple[float, ...]]:
    """The values of each column of metrics.csv, in the rows that have all these columns."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if all(row.get(name) for name in names)]
    return [tuple(float(row[name]) for row in rows) for name in names]


def csv_in(folder: Path) -> CSVLogger:
    return CSVLogger(folder, name="", version="")


def weights_of(model: LightningModule) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# A whole run of each experiment

ARGUMENTS: dict[str, Any] = {"images": {"lr": 0.05, "momentum": 0.5, "grow_at": 0.5}, "curve": {"lrs": [0.1, 0.01]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trainer]:
    """Each experiment, all its steps logged; the images' have an LR step. Checkpoints: of each step or measurement."""
    runs = {}
    for name, arguments in ARGUMENTS.items():
        folder = tmp_path_factory.mktemp(name)
        every = {"every_n_train_steps": 1} if name == "images" else {}
        callbacks = [ModelCheckpoint(folder, "{step}", save_top_k=-1, **every), LearningRateMonitor("step")]
        if name == "images":
            best = ModelCheckpoint(folder, "best", monitor="val/acc", mode="max")
            callbacks = [best, LRStep({1: 0.01}), EpochAverages(), *callbacks]
        loggers = [csv_in(folder), TensorBoardLogger(folder, name="board", version="")]
        runs[name] = make_trainer(folder, *callbacks, name=name, logger=loggers, log_every_n_steps=1)
        runs[name].fit(*experiment(name, **arguments))
    return runs


def parts(run: Trainer) -> tuple[Path, LightningModule, Any]:
    """The folder, the model, and the data."""
    return Path(run.default_root_dir), run.lightning_module, run.datamodule  # type: ignore[attr-defined]


def test_steps_and_epochs_are_logged(runs: dict[str, Trainer]) -> None:
    folder, *_ = parts(runs["images"])
    number, rate, loss = logged(folder, "step", "lr_step", "train/loss_step")
    assert number == tuple(range(8)) and rate == pytest.approx([0.05] * 4 + [0.01] * 4)
    assert logged(folder, "lr-SGD") == [pytest.approx(rate)]
    # Means over the images of an epoch's batches: 16, 16, 16 and 12.
    means = [np.average(loss[i : i + 4], weights=[16, 16, 16, 12]) for i in (0, 4)]
    epochs = logged(folder, "epoch", "step", "lr", "train/loss")
    assert epochs == [pytest.approx(values, rel=1e-5) for values in ((0, 1), (3, 7), (0.05, 0.01), means)]
    assert runs["images"].checkpoint_callback.best_model_score == max(*logged(folder, "val/acc"))
    for metric in ("train/loss", "val/loss"):
        assert logged(parts(runs["curve"])[0], "step", metric)[0] == MEASURED
    assert logged(parts(runs["curve"])[0], "lr-ElementwiseAdam") == [pytest.approx([0.1] * 4)]


@BOTH
def test_models_and_data_load_from_a_checkpoint(name: str, runs: dict[str, Trainer]) -> None:
    folder, model, data = parts(runs[name])
    last = folder / f"step={8 if name == 'images' else MEASURED[-1]}.ckpt"
    again = type(model).load_from_checkpoint(last)
    assert torch.equal(weights_of(again), weights_of(model)) and again.hparams == model.hparams
    same = type(data).load_from_checkpoint(last)
    assert same.hparams == data.hparams
    assert name == "images" or torch.equal(same.y, data.y)
    for written in (folder / "hparams.yaml", folder / "board" / "hparams.yaml"):  # every logger's
        assert yaml.safe_load(written.read_text()) == {**model.hparams, **data.hparams}


@pytest.mark.parametrize(("name", "step"), [("images", 3), ("images", 4), ("images", 6), ("curve", 1), ("curve", 30)])
def test_a_resumed_run_is_the_same_run(name: str, step: int, runs: dict[str, Trainer], tmp_path: Path) -> None:
    folder, expected, _ = parts(runs[name])
    model, data = experiment(name, **ARGUMENTS[name])
    seed_everything(99)  # nothing of what follows depends on it
    callbacks = [EpochAverages(), LRStep({1: 0.01})] if name == "images" else []
    trainer = make_trainer(tmp_path, *callbacks, name=name, logger=csv_in(tmp_path))
    trainer.fit(model, data, ckpt_path=folder / f"step={step}.ckpt", weights_only=True)
    assert torch.equal(weights_of(model), weights_of(expected))
    (losses,) = logged(tmp_path, "train/loss")  # of a resumed epoch, the whole epoch's
    assert losses and losses == logged(folder, "train/loss")[0][-len(losses) :]


def test_validation_test_and_prediction_agree(runs: dict[str, Trainer], tmp_path: Path) -> None:
    _, model, data = parts(runs["images"])
    trainer = make_trainer(tmp_path)
    (validated,), (tested,) = (measure(model, data, verbose=False) for measure in (trainer.validate, trainer.test))
    probabilities = torch.cat(trainer.predict(model, data))
    assert probabilities.shape == (30, 10) and torch.allclose(probabilities.sum(1), torch.ones(30))
    loss = torch.nn.functional.nll_loss(probabilities.log(), data.test[1]).item()
    assert tested["test/acc"] == pytest.approx((probabilities.argmax(1) == data.test[1]).double().mean().item())
    assert tested["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert [validated["val/acc"], validated["val/loss"]] == [tested["test/acc"], tested["test/loss"]]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_model_that_was_measured_can_be_trained_and_measured_again(inference_mode: bool, tmp_path: Path) -> None:
    """Metrics that were reset in inference mode take no sums outside of it."""
    model, data = experiment("images")
    before = make_trainer(tmp_path)
    before.validate(model, data, verbose=False), before.test(model, data, verbose=False)
    after = make_trainer(tmp_path, inference_mode=inference_mode, num_sanity_val_steps=2)
    after.fit(model, data)
    (tested,) = after.test(model, data, verbose=False)
    assert torch.equal(weights_of(model), weights_of(trained(tmp_path)))
    assert after.callback_metrics["test/acc"] == tested["test/acc"]


# Lightning's callbacks, tuner and flags


@BOTH
@pytest.mark.parametrize("metric", ["val/loss", "train/loss"])
def test_training_stops_early(name: str, metric: str, tmp_path: Path) -> None:
    stop = EarlyStopping(metric, min_delta=1e9, patience=1)
    model, data = experiment(name)
    trainer = make_trainer(tmp_path, stop, name=name, **({"max_epochs": 5} if name == "images" else {}))
    trainer.fit(model, data)
    assert trainer.current_epoch == 2 and stop.stopped_epoch == 1
    assert getattr(model, "epochs_done", MEASURED[1]) == MEASURED[1]


class Steps(Callback):
    """Keeps each step's learning rate, and the weights after it."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.weights.append(weights_of(pl_module))


@BOTH
def test_weights_are_averaged(name: str, tmp_path: Path) -> None:
    steps = Steps()
    model = trained(tmp_path, steps, EMAWeightAveraging(decay=0.5), name=name)
    average = steps.weights[0]
    for weights in steps.weights[1:]:
        average = 0.5 * average + 0.5 * weights
    torch.testing.assert_close(weights_of(model), average, rtol=1e-4, atol=1e-6)

    steps, averaging = Steps(), StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)
    model = trained(tmp_path, steps, averaging, name=name, max_epochs=3)
    first, second = (steps.weights[n] for n in ((3, 7) if name == "images" else (0, 1)))  # as epochs 1 and 2 began
    torch.testing.assert_close(weights_of(model), (first + second) / 2)


def test_the_tuner_finds_a_learning_rate_and_a_batch_size(tmp_path: Path) -> None:
    model, data = experiment("images")
    tuner = Tuner(make_trainer(tmp_path, max_epochs=9))
    tuner.lr_find(model, datamodule=data, min_lr=1e-4, num_training=20, early_stop_threshold=None)
    assert tuner.scale_batch_size(model, datamodule=data, init_val=4, max_trials=2, steps_per_trial=1) == 8
    steps = Steps()
    make_trainer(tmp_path, steps).fit(model, data)
    assert set(steps.rates) == {model.hparams["lr"]} != {0.1}
    assert len(steps.rates) == 2 * 8  # 60 images, 8 a batch


DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_precisions_clipping_and_accumulation(precision: Any, tmp_path: Path) -> None:
    optimizer = "muon" if precision in ("16-mixed", "bf16-true") else "sgd"
    model, data = experiment("images", optimizer=optimizer, weight_decay=0.0)
    before = weights_of(model)
    flags = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": 2, "max_epochs": 1}
    trainer = make_trainer(tmp_path, precision=precision, **flags)
    trainer.fit(model, data)
    assert trainer.global_step == 2 and trainer.callback_metrics["val/loss"].isfinite()
    assert weights_of(model).dtype == DTYPES.get(precision, torch.float32)
    assert trainer.callback_metrics["train/loss"].dtype == torch.float32  # of bfloat16's the sums would saturate
    way = (weights_of(model) - before).norm()
    assert 0 < way and (way < 2.001 * 0.1 * 1e-3 or optimizer == "muon")  # two clipped steps


# Parts of one's own


class Linear(ResNet20Classifier):
    """Another network, another metric, another optimizer, and a scheduler."""

    def __init__(self, width: int = 3, lr: float = 1.0) -> None:
        super().__init__(lr=lr * width / 30)
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(width, 10))
        self.train_metrics.add_metrics({"auroc": MulticlassAUROC(10)})  # keeps all that it sees in a list

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step"}]


def test_a_subclass_brings_its_own_network_metrics_optimizer_and_scheduler(tmp_path: Path) -> None:
    steps, record = Steps(), ClassifierRecord(0.0)
    callbacks = (StopOnNonFiniteLoss(), EpochAverages(), LRStep({}), steps, record)
    model, trainer = Linear(), make_trainer(tmp_path, *callbacks, max_epochs=1, logger=csv_in(tmp_path))
    trainer.fit(model, images())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert steps.rates == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert logged(tmp_path, "lr") == [pytest.approx([0.0125])] and record.epochs[0]["lr"] == pytest.approx(0.0125)
    assert 0 <= trainer.callback_metrics["train/auroc"] <= 1
    again = Linear.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(weights_of(again), weights_of(model)) and again.hparams["width"] == 3


# Arguments


@pytest.mark.parametrize(
    "wrong", [{"lrs": [0.0, 0.1]}, {"measure_at": [30, 10]}, {"seeds": [1, 2, 3], "y_mean": [0, 1]}, {"hidden": []}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FunctionRegressor(**wrong)


@pytest.mark.parametrize(
    "module",
    [
        ResNet20Classifier(lr=np.float64(0.1), weight_decay=np.float32(0)),
        CIFAR10DataModule(dataset="synthetic", batch_size=np.int64(16), image_sizes={np.float64(0.5): np.int64(24)}),
        FunctionRegressor(np.logspace(-3, -1, 3), np.arange(2), np.array([1, 5]), y_mean=np.zeros(2)),
        CurveDataModule(x_min=-np.float64(3), noise_std=np.sqrt(2), seeds=np.arange(2)),
    ],
)
def test_numpys_numbers_are_saved_as_plain_ones(module: Any, tmp_path: Path) -> None:
    torch.save(dict(module.hparams), tmp_path / "hparams.pt")
    assert torch.load(tmp_path / "hparams.pt", weights_only=True) == dict(module.hparams)
