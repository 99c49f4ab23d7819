"""Both experiments by plain Lightning: the modules, the data modules and Lightning's own parts, without the scripts."""

import copy
import csv
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning_fabric.utilities.spike import TrainingSpikeException
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from callbacks import LRStep, OneCycle
from callbacks.classifier_record import ClassifierRecord
from callbacks.epoch_averages import EpochAverages
from callbacks.finite_loss import StopOnNonFiniteLoss
from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.augmentation import MEAN, STD, mean_and_scale, normalize
from lit_models import FunctionRegressor, ResNet20, ResNet20Classifier

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
FEW = {f"limit_{stage}_batches": n for stage, n in (("train", 4), ("val", 2), ("test", 2), ("predict", 2))}
MEASURED = (1, 10, 30, 50)
BOTH = pytest.mark.parametrize("name", ["images", "curve"])


def images(**arguments: Any) -> CIFAR10DataModule:
    return CIFAR10DataModule(dataset="synthetic", batch_size=16, **arguments)


def experiment(name: str, **arguments: Any) -> tuple[LightningModule, LightningDataModule]:
    """The model and the data of an experiment, always from the same seed."""
    seed_everything(1)
    if name == "images":
        return ResNet20Classifier(**arguments), images()
    data = CurveDataModule(num_samples=30)
    return FunctionRegressor(measure_at=MEASURED, **data.scale, **arguments), data


def make_trainer(folder: Path, *callbacks: Callback, name: str = "images", **flags: Any) -> Trainer:
    """Two epochs of four batches, or four measurements of a curve; by default nothing is logged or saved."""
    own = {"max_epochs": 2, **FEW} if name == "images" else {"max_epochs": -1}
    quiet = QUIET | {"logger": False, "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks)}
    return Trainer(**quiet | own | {"default_root_dir": folder, "callbacks": list(callbacks)} | flags)


def trained(folder: Path, *callbacks: Callback, name: str = "images", **flags: Any) -> LightningModule:
    model, data = experiment(name)
    make_trainer(folder, *callbacks, name=name, **flags).fit(model, data)
    return model


def logged_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the newest metrics.csv, without empty cells."""
    path = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_weights(one: LightningModule, other: LightningModule) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


# The whole of each experiment


def test_the_images_in_three_lines(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=2, callbacks=[LRStep({1: 0.01})], logger=CSVLogger(tmp_path), **QUIET, **FEW)
    trained = ResNet20Classifier()
    trainer.fit(trained, images())
    model = ResNet20Classifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert_same_weights(model, trained)
    assert trainer.global_step == 8
    assert [float(row["lr"]) for row in logged_rows(tmp_path) if "lr" in row] == pytest.approx([0.1, 0.01])


def test_the_curve_in_five_lines(tmp_path: Path) -> None:
    data = CurveDataModule(num_samples=30)
    model = FunctionRegressor(**data.scale, measure_at=[100, 300])
    trainer = Trainer(max_epochs=-1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, data)
    (prediction,) = trainer.predict(model, data)
    assert model.epochs_done == 300
    assert prediction.shape == (1, 1001)
    assert (prediction - data.truth).square().mean() < 0.1 * data.truth.var()


@BOTH
def test_models_and_data_load_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    arguments = {"lr": 0.05, "momentum": 0.5} if name == "images" else {"lrs": [0.1, 0.01]}
    model, data = experiment(name, **arguments)
    save = ModelCheckpoint(tmp_path)
    make_trainer(tmp_path, save, name=name).fit(model, data)
    again = type(model).load_from_checkpoint(save.best_model_path)
    assert_same_weights(again, model)
    assert again.hparams == model.hparams and arguments.items() <= dict(again.hparams).items()
    same = type(data).load_from_checkpoint(save.best_model_path)
    assert same.hparams == data.hparams
    if isinstance(data, CurveDataModule):
        assert torch.equal(same.y, data.y)
        assert again.epochs_done == MEASURED[-1]


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path: Path) -> None:
    data = CurveDataModule(x_min=-np.float64(3), noise_std=np.sqrt(2), seeds=np.arange(2))
    scale = data.scale | {"x_scale": np.float64(2), "y_mean": np.zeros(2)}
    model = FunctionRegressor(np.logspace(-3, -1, 3), np.arange(2), np.array([1, 5]), hidden=np.array([8]), **scale)
    trainer = make_trainer(tmp_path, name="curve")
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert_same_weights(FunctionRegressor.load_from_checkpoint(tmp_path / "a.ckpt"), model)
    assert torch.equal(CurveDataModule.load_from_checkpoint(tmp_path / "a.ckpt").y, data.y)


def test_setup_needs_no_stage() -> None:
    data = images()
    data.prepare_data()
    data.setup()
    pixels, labels, shift, flip = next(iter(data.train_dataloader()))
    assert (pixels.shape, labels.shape, shift.shape, flip.shape) == ((16, 32, 32, 3), (16,), (16, 2), (16,))
    curve = CurveDataModule(seeds=[0, 1])
    curve.setup()
    assert [t.shape for t in next(iter(curve.train_dataloader()))] == [(2, 200), (2, 200)]


def test_validation_test_and_prediction_of_images_agree(tmp_path: Path) -> None:
    model, data = experiment("images")
    trainer = make_trainer(tmp_path)
    (validated,), (tested,) = (measure(model, data, verbose=False) for measure in (trainer.validate, trainer.test))
    probabilities = torch.cat(trainer.predict(model, data))
    labels = data.test[1][: len(probabilities)]
    assert probabilities.shape == (32, 10) and torch.allclose(probabilities.sum(1), torch.ones(32))
    assert tested["test/acc"] == pytest.approx((probabilities.argmax(1) == labels).double().mean().item())
    loss = torch.nn.functional.nll_loss(probabilities.log(), labels)
    assert tested["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert [validated["val/acc"], validated["val/loss"]] == [tested["test/acc"], tested["test/loss"]]


def test_validation_test_and_prediction_of_a_curve_agree(tmp_path: Path) -> None:
    model, data = experiment("curve")
    trainer = make_trainer(tmp_path, name="curve")
    trainer.fit(model, data)
    (validated,), (tested,) = (measure(model, data, verbose=False) for measure in (trainer.validate, trainer.test))
    error = (trainer.predict(model, data)[0] - data.truth).square().mean().item()
    assert validated["val/loss"] == tested["test/loss"] == pytest.approx(error)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_model_that_was_measured_can_be_trained_and_measured_again(inference_mode: bool, tmp_path: Path) -> None:
    """Metrics that were reset in inference mode take no sums outside of it."""
    model, data = experiment("images")
    before = make_trainer(tmp_path)
    before.validate(model, data, verbose=False), before.test(model, data, verbose=False)
    after = make_trainer(tmp_path, inference_mode=inference_mode, num_sanity_val_steps=2)
    after.fit(model, data)
    (tested,) = after.test(model, data, verbose=False)
    assert_same_weights(model, trained(tmp_path))
    assert after.callback_metrics["test/acc"] == tested["test/acc"]


@pytest.mark.parametrize(("flags", "saved"), [({"every_n_train_steps": 3}, [3, 6]), ({"every_n_epochs": 1}, [4, 8])])
def test_a_resumed_run_of_images_is_the_same_run(flags: dict[str, int], saved: list[int], tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **flags)
    whole = trained(tmp_path, save)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert [path.stem for path in files] == [f"step={step}" for step in saved]
    for path in files:
        model, data = experiment("images")
        seed_everything(99)  # nothing of what follows depends on it
        make_trainer(tmp_path).fit(model, data, ckpt_path=path, weights_only=True)
        assert_same_weights(model, whole)


def test_a_resumed_run_of_a_curve_is_the_same_run(tmp_path: Path) -> None:
    whole = trained(tmp_path, ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}"), name="curve")
    for measured in MEASURED[:-1]:
        model, data = experiment("curve")
        path = tmp_path / f"step={measured}.ckpt"
        make_trainer(tmp_path, name="curve").fit(model, data, ckpt_path=path, weights_only=True)
        assert_same_weights(model, whole)


# Loggers


@BOTH
def test_every_logger_gets_the_hyperparameters_of_model_and_data(name: str, tmp_path: Path) -> None:
    model, data = experiment(name)
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    make_trainer(tmp_path, name=name, logger=loggers).fit(model, data)
    for logger in loggers:
        told = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
        assert told == {**model.hparams, **data.hparams}


def test_steps_are_logged_beside_epochs(tmp_path: Path) -> None:
    trained(tmp_path, LRStep({1: 0.01}), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    rows = logged_rows(tmp_path)
    steps = [row for row in rows if "train/loss_step" in row]
    assert [int(row["step"]) for row in steps] == list(range(8))
    assert [float(row["lr_step"]) for row in steps] == pytest.approx([0.1] * 4 + [0.01] * 4)
    epochs = [row for row in rows if "train/loss" in row]
    assert [(int(row["epoch"]), int(row["step"])) for row in epochs] == [(0, 3), (1, 7)]
    assert [float(row["lr"]) for row in epochs] == pytest.approx([0.1, 0.01])
    for row, of_epoch in zip(epochs, (steps[:4], steps[4:]), strict=True):
        mean = sum(float(step["train/loss_step"]) for step in of_epoch) / 4
        assert float(row["train/loss"]) == pytest.approx(mean, rel=1e-5)


def test_steps_are_logged_every_so_many_steps(tmp_path: Path) -> None:
    trained(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    assert [int(row["step"]) for row in logged_rows(tmp_path) if "lr_step" in row] == [1, 3, 5, 7]


def test_a_curve_is_logged_over_its_epochs(tmp_path: Path) -> None:
    trained(tmp_path, name="curve", logger=CSVLogger(tmp_path))
    for metric in ("train/loss", "val/loss"):
        assert [int(row["step"]) for row in logged_rows(tmp_path) if metric in row] == list(MEASURED)


# Lightning's callbacks


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, monitor="val/acc", mode="max")
    trained(tmp_path, save, logger=CSVLogger(tmp_path))
    assert save.best_model_score == max(float(row["val/acc"]) for row in logged_rows(tmp_path) if "val/acc" in row)


@BOTH
@pytest.mark.parametrize("metric", ["val/loss", "train/loss"])
def test_training_stops_early(name: str, metric: str, tmp_path: Path) -> None:
    stop = EarlyStopping(metric, min_delta=1e9, patience=1)
    model, data = experiment(name)
    trainer = make_trainer(tmp_path, stop, name=name, **({"max_epochs": 5} if name == "images" else {}))
    trainer.fit(model, data)
    assert trainer.current_epoch == 2 and stop.stopped_epoch == 1
    assert getattr(model, "epochs_done", MEASURED[1]) == MEASURED[1]


@BOTH
def test_learning_rates_are_monitored(name: str, tmp_path: Path) -> None:
    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    trained(tmp_path, monitor, name=name, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    optimizer = "SGD" if name == "images" else "ElementwiseAdam"
    rows = [row for row in logged_rows(tmp_path) if f"lr-{optimizer}" in row]
    assert len(rows) == (8 if name == "images" else 4)
    expected = {"": 0.1, "-momentum": 0.0, "-weight_decay": 5e-4} if name == "images" else {"": 0.01}
    for part, value in expected.items():
        assert float(rows[-1][f"lr-{optimizer}{part}"]) == pytest.approx(value)


def as_vector(model: LightningModule) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Weights(Callback):
    """Keeps the parameters, in one vector, after each batch."""

    def __init__(self) -> None:
        self.of_step: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.of_step.append(as_vector(pl_module))


@BOTH
def test_weights_are_averaged_exponentially(name: str, tmp_path: Path) -> None:
    weights = Weights()
    model = trained(tmp_path, weights, EMAWeightAveraging(decay=0.5), name=name)
    average = weights.of_step[0]
    for step in weights.of_step[1:]:
        average = 0.5 * average + 0.5 * step
    mine = as_vector(model)
    torch.testing.assert_close(mine, average, rtol=1e-4, atol=1e-6)


@BOTH
def test_weights_are_averaged_over_the_last_epochs(name: str, tmp_path: Path) -> None:
    weights, average = Weights(), StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)
    model, data = experiment(name)
    trainer = make_trainer(tmp_path, weights, average, name=name, max_epochs=3)
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
    first, second = (weights.of_step[n] for n in ((3, 7) if name == "images" else (0, 1)))  # as epochs 1 and 2 began
    torch.testing.assert_close(as_vector(model), (first + second) / 2)


def test_averaging_is_resumed_beside_lr_steps(tmp_path: Path) -> None:
    def rates(epochs: int, resume: Path | None = None) -> list[float]:
        used = Rates()
        averaging = StochasticWeightAveraging(0.01, swa_epoch_start=1)
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(tmp_path, averaging, LRStep({}), used, saving, max_epochs=epochs)
        trainer.fit(ResNet20Classifier(), images(), ckpt_path=resume, weights_only=True)
        return used.of_step

    whole = rates(4)
    resumed = rates(4, tmp_path / "epoch=1.ckpt")
    assert resumed == whole[8:] and len({*resumed}) > 1


def test_the_learning_rate_that_is_found_is_trained_with(tmp_path: Path) -> None:
    model, data = experiment("images")
    Tuner(make_trainer(tmp_path, limit_train_batches=1.0)).lr_find(
        model, datamodule=data, min_lr=1e-4, num_training=30, early_stop_threshold=None
    )
    found = model.hparams["lr"]
    assert found != 0.1
    trainer = make_trainer(tmp_path)
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == found


def test_the_learning_rate_is_found_in_a_run(tmp_path: Path) -> None:
    model, data = experiment("images")
    finder = LearningRateFinder(min_lr=1e-4, num_training_steps=30, early_stop_threshold=None)
    trainer = make_trainer(tmp_path, finder, limit_train_batches=1.0, max_steps=2)
    trainer.fit(model, data)
    assert trainer.global_step == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == model.hparams["lr"] != 0.1


class Rates(Callback):
    """Keeps the optimizer's learning rate in each step."""

    def __init__(self) -> None:
        self.of_step: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.of_step.append(optimizer.param_groups[0]["lr"])


class Decaying(ResNet20Classifier):
    def __init__(self, interval: str) -> None:
        super().__init__()
        self.interval = interval

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval}]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    ("schedule", "winner"),
    [(LRStep({1: 0.01}), "LRStep's from epoch 1 on"), (OneCycle(0.2, 0.5), "OneCycle's"), (LRStep({}), None)],
)
def test_the_rate_in_the_record_is_the_one_used_and_two_setters_are_said(
    schedule: Callback, winner: str | None, interval: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates, record = Rates(), ClassifierRecord({})
    trainer = make_trainer(tmp_path, schedule, record, rates, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(Decaying(interval), images())
    rows, used = logged_rows(tmp_path), rates.of_step
    assert [float(row["lr_step"]) for row in rows if "lr_step" in row] == pytest.approx(used)
    assert [float(row["lr"]) for row in rows if "lr" in row] == pytest.approx([used[3], used[7]])
    assert [row["lr"] for row in record.epochs] == [used[3], used[7]]
    err = capsys.readouterr().err
    assert (f"{winner}, whatever ExponentialLR sets" in err) if winner else ("whatever" not in err)
    if isinstance(schedule, OneCycle):
        assert used == pytest.approx([0.05 * (i + 0.5) for i in range(4)] + [0.05 * (3.5 - i) for i in range(4)])
    else:
        decayed = [0.1 * 0.5 ** (i if interval == "step" else i // 4) for i in range(8)]
        assert used == pytest.approx(decayed[:4] + [0.01] * 4 if winner else decayed)


def test_several_learning_rates_take_the_place_of_the_finder(tmp_path: Path) -> None:
    model, data = experiment("curve")
    with pytest.raises(AttributeError, match="lr"):
        Tuner(make_trainer(tmp_path, name="curve")).lr_find(model, datamodule=data)


def test_the_batch_size_that_fits_is_trained_with(tmp_path: Path) -> None:
    model, data = experiment("images")
    sizes: list[int] = []
    note = LambdaCallback(on_train_batch_end=lambda trainer, model, outputs, batch, i: sizes.append(len(batch[1])))
    trainer = make_trainer(tmp_path, note)
    assert Tuner(trainer).scale_batch_size(model, datamodule=data, init_val=8, max_trials=2, steps_per_trial=1) == 16
    data.batch_size = 8
    Tuner(trainer).scale_batch_size(model, datamodule=data, init_val=2, max_trials=2, steps_per_trial=1)
    trainer.fit(model, data)
    assert data.batch_size == 4 and set(sizes) == {4}


def test_a_curve_has_no_batch_size(tmp_path: Path) -> None:
    model, data = experiment("curve")
    with pytest.raises(MisconfigurationException, match="batch_size"):
        Tuner(make_trainer(tmp_path, name="curve")).scale_batch_size(model, datamodule=data)


class WithoutDecayOfBiases(ResNet20Classifier):
    """An optimizer of its own, and one more metric."""

    def __init__(self) -> None:
        super().__init__()
        for stage in ("train", "val"):
            getattr(self, f"{stage}_metrics").add_metrics({"top5": MulticlassAccuracy(10, average="micro", top_k=5)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        one_d, rest = ([p for p in self.parameters() if (p.ndim == 1) == is_1d] for is_1d in (True, False))
        return torch.optim.AdamW([{"params": one_d, "weight_decay": 0.0}, {"params": rest}], weight_decay=0.05)


def test_a_subclass_keeps_its_own_optimizer_and_logs_its_own_metric(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(WithoutDecayOfBiases(), images())
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.0, 0.05]
    values = trainer.callback_metrics
    for stage in ("train", "val"):
        assert 0 <= values[f"{stage}/acc"] <= values[f"{stage}/top5"] <= 1


class Handed(ResNet20Classifier):
    """Hands on another rate than its own argument of that name; then another network."""

    def __init__(self, width: int = 16, lr: float = 1.0) -> None:
        super().__init__(lr=lr * width / 160, compile=True)
        self.net = ResNet20(he_init=True).to(memory_format=torch.channels_last)


def test_a_subclass_trains_what_it_hands_on_and_its_own_network(tmp_path: Path) -> None:
    model = Handed()
    assert model.configure_optimizers().param_groups[0]["lr"] == pytest.approx(0.1)
    model.compiles = False
    for network in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = network.net.conv1.weight.clone()
        make_trainer(tmp_path).fit(network, images())
        assert not torch.equal(network.net.conv1.weight, before)


def test_an_optimizer_put_on_the_module_is_used_as_it_is(tmp_path: Path) -> None:
    model = ResNet20Classifier()

    def configure_optimizers(self: ResNet20Classifier) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)

    model.configure_optimizers = MethodType(configure_optimizers, model)  # as LightningCLI does for its --optimizer
    trainer = make_trainer(tmp_path)
    trainer.fit(model, images())
    (group,) = trainer.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-3)


def test_a_fit_that_ended_inside_an_epoch_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError

    model = ResNet20Classifier()
    with pytest.raises(RuntimeError):
        make_trainer(tmp_path, Stop()).fit(model, images())
    counted: list[int] = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            counts = model.train_metrics["acc"].metric_state
            counted.append(int(counts["tp"]) + int(counts["fn"]))

    make_trainer(tmp_path, Count(), max_epochs=1, limit_train_batches=3).fit(model, images())
    assert counted == [3 * 16]


def test_one_cycle_is_used_again_but_not_for_two_optimizers(tmp_path: Path) -> None:
    cycle = OneCycle(0.2, 0.5)
    for epochs in (1, 2):
        make_trainer(tmp_path, cycle, max_epochs=epochs).fit(ResNet20Classifier(), images())
        assert cycle.num_steps == 4 * epochs

    class Two(ResNet20Classifier):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.net.layer1, self.net.layer2)]

    with pytest.raises(MisconfigurationException, match="one optimizer"):
        make_trainer(tmp_path, cycle).fit(Two(), images())
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        make_trainer(tmp_path, cycle, name="curve").fit(*experiment("curve"))
    with pytest.raises(MisconfigurationException, match="GradientAccumulationScheduler"):
        make_trainer(tmp_path, cycle, GradientAccumulationScheduler({1: 2})).fit(ResNet20Classifier(), images())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_metrics_are_sums_in_float32_whatever_the_weights_are(precision: str, tmp_path: Path) -> None:
    """Sums of 0.9 to 1,000 images would end at 256 in bfloat16, where adding one more changes nothing."""

    class Linear(ResNet20Classifier):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            self.net = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(3, 10))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    losses: list[Tensor] = []
    flags = {f"limit_{stage}_batches": 60 for stage in ("train", "val", "test")}
    trainer = make_trainer(tmp_path, max_epochs=1, precision=precision, **flags)
    model = Linear()
    trainer.fit(model, images())
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(torch.stack(losses).float().mean()))
    validated = float(trainer.callback_metrics["val/loss"])
    assert trainer.test(model, images(), verbose=False)[0]["test/loss"] == pytest.approx(validated)  # the same images
    assert 2 < validated < 3  # log(10) is 2.3


def test_a_batch_is_left_out_and_a_metric_keeps_a_list(tmp_path: Path) -> None:
    """Neither StopOnNonFiniteLoss nor EpochAverages stands in the way."""

    class Skips(ResNet20Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.train_metrics.add_metrics({"auroc": MulticlassAUROC(10)})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    callbacks = (StopOnNonFiniteLoss(), EpochAverages(), ModelCheckpoint(tmp_path / "last"))
    trainer = make_trainer(tmp_path, *callbacks)
    trainer.fit(Skips(), images())
    assert 0 <= float(trainer.callback_metrics["train/auroc"]) <= 1
    assert list((tmp_path / "last").glob("*.ckpt"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet20Classifier(optimizer="SGD"),
        lambda: ResNet20Classifier(optimizer="muon", muon_lr_ratio=-1),
        lambda: LRStep({1: 0.01}, unit="epochs"),
        lambda: LRStep({1.5: 0.01}),
        lambda: CIFAR10DataModule(dataset="CIFAR10"),
        lambda: CIFAR10DataModule(padding_mode="reflection"),
        lambda: FunctionRegressor(lrs=[0.0, 0.1]),
        lambda: FunctionRegressor(lrs=[]),
        lambda: FunctionRegressor(measure_at=[30, 10]),
        lambda: FunctionRegressor(seeds=[1, 2, 3], y_mean=[0.0, 1.0]),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_numpys_numbers_make_checkpoints_that_load(tmp_path: Path) -> None:
    model = ResNet20Classifier(lr=np.float64(0.1), weight_decay=np.float32(0))
    data = CIFAR10DataModule(dataset="synthetic", batch_size=np.int64(16), image_sizes={np.float64(0.5): np.int64(24)})
    saved = ModelCheckpoint(tmp_path / "best")
    callbacks = (saved, LRStep({np.int64(1): np.float64(0.01)}), OneCycle(np.float64(0.2), np.float32(0.5)))
    make_trainer(tmp_path, *callbacks).fit(model, data)
    assert ResNet20Classifier.load_from_checkpoint(saved.best_model_path, weights_only=True).lr == 0.1
    assert CIFAR10DataModule.load_from_checkpoint(saved.best_model_path, weights_only=True).image_sizes == {0.5: 24}


class AddFirstStage(BaseFinetuning):
    """Gives the optimizer the first stage's weights in the second epoch; when a run is resumed, as training starts."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.net.layer1)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.layer1, optimizer)


class OfTrainable(ResNet20Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


@pytest.mark.parametrize("order", [1, -1])
def test_a_finetuned_run_is_resumed_whatever_the_order_of_its_callbacks(order: int, tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path / "last")
    make_trainer(tmp_path, saved, *[LRStep({}), AddFirstStage()][::order]).fit(OfTrainable(), images())
    resumed = make_trainer(tmp_path, *[LRStep({}), AddFirstStage()][::order], max_epochs=3)
    resumed.fit(OfTrainable(), images(), ckpt_path=saved.best_model_path, weights_only=True)
    assert resumed.global_step == 12 and len(resumed.optimizers[0].param_groups) == 2


def test_a_curve_resumes_with_its_own_learning_rates_on_one_device(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path / "last", save_top_k=-1, every_n_epochs=1)
    trained(tmp_path, saved, name="curve")
    earlier = str(next((tmp_path / "last").glob("*step=1.ckpt")))
    model, data = experiment("curve", lrs=[0.5])
    with pytest.raises(MisconfigurationException, match="other learning rates than"):
        make_trainer(tmp_path, name="curve").fit(model, data, ckpt_path=earlier, weights_only=True)
    with pytest.raises(ProcessRaisedException, match="one device"):
        make_trainer(tmp_path, name="curve", devices=2, strategy="ddp_spawn").fit(*experiment("curve"))


def test_every_scheduler_of_a_curve_acts_on_its_measurements(tmp_path: Path) -> None:
    class Scheduled(FunctionRegressor):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            half = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            tenth = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
            best = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [half, {"scheduler": tenth, "frequency": 2}, {"scheduler": best, "monitor": "val/loss"}]

    data = CurveDataModule(num_samples=30)
    model, rates = Scheduled(measure_at=MEASURED, **data.scale), Rates()
    trainer = make_trainer(tmp_path, rates, name="curve")
    trainer.fit(model, data)
    assert rates.of_step == pytest.approx([0.01, 0.005, 0.00025, 0.000125])
    assert trainer.lr_scheduler_configs[2].scheduler.last_epoch == 4


def test_an_export_leaves_normalization_as_it_was() -> None:
    class WithNormalization(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return normalize(images)

    mean_and_scale.cache_clear()
    pixels = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    exported = torch.export.export(WithNormalization(), (pixels,))
    assert torch.equal(exported.module()(pixels), normalize(pixels))
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(normalize(pixels)[0, :, 0, 0], white)


def test_changed_labels_are_one_modules_own() -> None:
    noisy, clean = images(), images()
    noisy.setup()
    noisy.train[1].fill_(3)
    clean.setup()
    assert len(clean.train[1].unique()) == 10


def test_after_an_epoch_that_ended_early_the_next_one_is_whole(tmp_path: Path) -> None:
    """Resumed from a checkpoint of a validation inside an epoch, taken at its last batch."""
    seen: list[tuple[int, int]] = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            seen.append((trainer.current_epoch, int(batch[1].sum())))

    best = ModelCheckpoint(tmp_path / "best", save_top_k=-1, every_n_epochs=1)
    flags: dict[str, Any] = {"val_check_interval": 2, "limit_train_batches": 4}
    make_trainer(tmp_path, best, Seen(), max_epochs=2, **flags).fit(ResNet20Classifier(), images())
    whole, seen[:] = list(seen), []
    (saved,) = (tmp_path / "best").glob("*step=4*.ckpt")
    make_trainer(tmp_path, Seen(), max_epochs=2, **flags).fit(
        ResNet20Classifier(), images(), ckpt_path=saved, weights_only=True
    )
    assert seen == whole[-len(seen) :] and len(seen) == 4


def test_gradients_are_accumulated_as_scheduled(tmp_path: Path) -> None:
    model, data = experiment("images")
    trainer = make_trainer(tmp_path, GradientAccumulationScheduler({0: 1, 1: 2}))
    trainer.fit(model, data)
    assert trainer.global_step == 4 + 2


class FreezeFirstStage(BaseFinetuning):
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.net.layer1)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.make_trainable(pl_module.net.layer1)


@pytest.mark.parametrize(("epochs", "changes"), [(1, False), (2, True)])
def test_layers_are_frozen_until_they_are_trained(epochs: int, changes: bool, tmp_path: Path) -> None:
    first = {name: p.clone() for name, p in experiment("images")[0].named_parameters()}
    weights = dict(trained(tmp_path, FreezeFirstStage(), max_epochs=epochs).named_parameters())
    changed = {name: not torch.equal(weights[name], first[name]) for name in first}
    assert all(changed[name] == (changes or not name.startswith("net.layer1")) for name in first if "conv" in name)


@BOTH
def test_throughput_is_monitored(name: str, tmp_path: Path) -> None:
    monitor = ThroughputMonitor(batch_size_fn=lambda batch: batch[1].numel(), window_size=2)
    trained(tmp_path, monitor, name=name, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    samples = [float(row["train/samples"]) for row in logged_rows(tmp_path) if "train/samples" in row]
    assert max(samples) == (8 * 16 if name == "images" else 4 * 30)


@BOTH
def test_a_timer_ends_the_training(name: str, tmp_path: Path) -> None:
    model, data = experiment(name)
    timer = Timer(duration={"seconds": 0})
    trainer = make_trainer(tmp_path, timer, name=name)
    trainer.fit(model, data)
    assert trainer.global_step == 0 and trainer.should_stop and timer.time_remaining() <= 0


@BOTH
def test_a_spike_of_the_loss_ends_the_training(name: str, tmp_path: Path) -> None:
    def spike(trainer: Trainer, model: LightningModule, outputs: dict[str, Tensor], *rest: object) -> None:
        if trainer.global_step == 2:
            outputs["loss"].mul_(1000)

    detection = SpikeDetection(exclude_batches_path=tmp_path / "spikes.json", warmup=0)
    with pytest.raises(TrainingSpikeException):
        trained(tmp_path, LambdaCallback(on_train_batch_end=spike), detection, name=name)
    assert (tmp_path / "spikes.json").is_file()


@BOTH
def test_an_exception_leaves_a_checkpoint(name: str, tmp_path: Path) -> None:
    def fail(trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("on purpose")

    model, data = experiment(name)
    save = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(tmp_path, save, LambdaCallback(on_train_batch_end=fail), name=name).fit(model, data)
    assert_same_weights(type(model).load_from_checkpoint(save.ckpt_path), model)


@pytest.mark.parametrize("profiler", [SimpleProfiler, AdvancedProfiler])
@BOTH
def test_a_run_is_profiled(name: str, profiler: type, tmp_path: Path) -> None:
    trained(tmp_path, name=name, profiler=profiler(dirpath=tmp_path, filename="profile"))
    assert "training_step" in (tmp_path / "fit-profile.txt").read_text()


def test_a_rich_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("rich") is None:
        with pytest.raises(ModuleNotFoundError, match="pip install -U rich"):
            RichProgressBar()
    else:
        trained(tmp_path, RichProgressBar(refresh_rate=1, leave=True), enable_progress_bar=True)
        assert "Epoch 1" in capsys.readouterr().out


@BOTH
def test_the_device_is_monitored(name: str, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    if importlib.util.find_spec("psutil") is None:
        with pytest.raises(ModuleNotFoundError, match="psutil"):
            trained(tmp_path, DeviceStatsMonitor(), name=name, logger=logger)
    else:
        trained(tmp_path, DeviceStatsMonitor(), name=name, logger=logger, log_every_n_steps=1)
        assert any("cpu_percent" in column for row in logged_rows(tmp_path) for column in row)


def test_a_program_that_imports_a_script_keeps_its_garbage_collector() -> None:
    code = "import gc; import scripts.fit; assert gc.isenabled() and not gc.get_freeze_count()"
    subprocess.run([sys.executable, "-c", code], check=True)
