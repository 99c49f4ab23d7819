"""analysis/: statistics, findings, figures and files, on numbers whose answers are known."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import figures
from analysis.charts import waterfall_chart
from analysis.curves import METRICS, Growth, early_stopping, fit_text, more_training, spread_over_seeds
from analysis.drop import drop_numbers, measure_lines, measure_renewed
from analysis.files import read_json, standard_json, write_atomically, write_json
from analysis.gap import measure_gap
from analysis.runs import FinishedRun, epoch_ticks, lr_changes
from analysis.statistics import mean_ci, median_ci, medians, number, over_runs, quartiles, spread
from cli.command import command_line
from datamodules import CIFAR10DataModule
from datamodules.augmentation import normalize
from lit_models import ResNet20


@pytest.mark.parametrize("old", [b"old", None])
def test_write_atomically_replaces_a_file_or_leaves_it(tmp_path: Path, old: bytes | None) -> None:
    def fails(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "new" / "file"
    if old:
        write_atomically(path, lambda file: file.write(old))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fails)
    assert [p.read_bytes() for p in path.parent.iterdir()] == ([old] if old else [])


def test_json_is_standard_json(tmp_path: Path) -> None:
    content = {"a": [1, 0.1, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": None, "e": "nan"}
    write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == standard_json(content) + "\n"
    expected = {"a": [1, 0.1, None], "b": {"c": [None, None]}, "d": None, "e": "nan"}
    assert read_json(tmp_path / "a.json") == expected and "NaN" not in standard_json(content)


def test_the_command_line_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "scripts" / "fit.py"), "--function", "2 * x"])
    assert command_line() == "python scripts/fit.py --function '2 * x'"
    # To resume, its own folder and checkpoint are replaced, however they were written.
    flags = ["--run_dir", "a", "--lr", "1", "--ckpt_path=b", "--seed", "2", "--run_dir=c"]
    monkeypatch.setattr("sys.argv", ["/elsewhere/fit.py", *flags])
    resume = "python /elsewhere/fit.py --lr 1 --seed 2 --run_dir 'my run' --ckpt_path last"
    assert command_line(resumes=Path("my run")) == resume


def test_confidence_interval_of_a_mean() -> None:
    # 1, 2, 3: mean 2, deviation 1, and Student's t of 2 degrees of freedom / sqrt(3) = 4.303 / 1.732 = 2.484
    shown = mean_ci([1, 2, 3])
    assert (shown.n, shown.mean, shown.sd) == (3, 2, 1)
    assert (shown.low, shown.high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert shown.text(" pp") == "+2.0 pp (3 seeds, 95 % CI -0.5 to +4.5)" and not shown.excludes_zero
    assert mean_ci([-1.0, -1.01]).excludes_zero
    assert mean_ci([5]).text(" %", 2) == "+5.00 % (one seed)" and not mean_ci([5]).excludes_zero
    # of 1 and of 120 degrees of freedom; the deviation of as many 0 as 1 is sqrt(n / (n - 1)) / 2
    assert mean_ci([0.0, 1.0]).high == pytest.approx(0.5 + 12.706 / 2, rel=1e-3)
    assert mean_ci([0.0, 1.0] * 60).high == pytest.approx(0.5 + 1.980 / 2 / 119**0.5, rel=1e-3)
    assert {name: ci.mean for name, ci in over_runs([{"a": 1.0, "b": 2.0}, {"a": 3.0}]).items()} == {"a": 2}


def test_confidence_interval_of_a_median() -> None:
    # Of 6 values, smallest to largest covers the median unless all fall on one side: 1 - 2 / 2**6.
    assert median_ci(np.array([3.0, 1, 2, 6, 5, 4])) == pytest.approx((1, 6, 1 - 2 / 64))
    # Of 9, the second from either end: 1 - 2 * (1 + 9) / 2**9 = 0.961; the third would cover 0.820.
    assert median_ci(np.arange(9.0)) == pytest.approx((1, 7, 1 - 20 / 512))
    assert median_ci(np.array([1.0])) == pytest.approx((1, 1, 0))


def test_what_diverged_counts_as_the_worst() -> None:
    # Positions 0.25 * 2 and 0.75 * 2 lie between two values; the nearest is taken, of two as near the even one.
    assert quartiles(np.array([1.0, 2, 3])) == {"median": 2, "q25": 1, "q75": 3}
    one_bad = np.array([math.nan, 1.0, 2, 3, 4])
    assert quartiles(one_bad) == {"median": 3, "q25": 2, "q75": 4}  # in order: 1 2 3 4 inf
    assert quartiles(one_bad, worst=-math.inf) == {"median": 2, "q25": 1, "q75": 3}  # in order: -inf 1 2 3 4
    assert medians(np.array([[1.0, math.nan, math.nan], [5.0, 6, 7]])).tolist() == [math.inf, 6]

    assert [number(value) for value in (1 / 3, 0.0, None, math.nan, -math.inf)] == ["0.333", "0", *["diverged"] * 3]
    assert spread([0.5, None, 0.7], 100, 2) == "60.00 ± 14.14" and spread([2.0]) == "2.000" and spread([None]) == "-"


def test_spread_over_seeds() -> None:
    values = {name: np.arange(12.0).reshape(2, 2, 3) for name in METRICS}  # 2 epoch counts, 2 rates, 3 seeds
    values["r2"][1, 1] = [math.nan, 1, 2]
    rows = spread_over_seeds([0.1, 0.01], np.array([5, 50]), values)
    assert [(row["lr"], row["epochs"]) for row in rows] == [(0.1, 5), (0.1, 50), (0.01, 5), (0.01, 50)]
    assert [row["true_mse"]["median"] for row in rows] == [1, 7, 4, 10]
    assert rows[3]["r2"] == {"median": 1, "q25": -math.inf, "q75": 2}  # in order: -inf 1 2
    assert '"q25": null' in standard_json(rows)  # plain numbers


def test_whether_more_training_hurts() -> None:
    epochs, seeds = np.array([1, 10, 100]), np.linspace(1, 1.5, 8)

    def answer(first: float, second: float, last: Any, seeds: np.ndarray = seeds) -> dict[str, Any]:
        return more_training(epochs, np.stack([first * seeds, second * seeds, last * seeds]))

    hurts = answer(9, 1, 3)  # every seed: lowest at 10, three times that at 100; from the smallest to the largest of 8
    assert (hurts["verdict"], hurts["best_epochs"], hurts["last_epochs"]) == ("hurts", 10, 100)
    assert [hurts[name] for name in ("ratio", "low", "high", "coverage")] == pytest.approx([3, 3, 3, 1 - 2 / 2**8])
    assert answer(9, 3, 1)["verdict"] == "helps" == answer(9, 3, 1, seeds[:1])["verdict"]
    noise = np.where(np.arange(8) % 2, 1.2, 0.9)  # at 100 half of the seeds are better, half worse
    assert answer(9, 1, noise, np.ones(8))["verdict"] == "no evidence"
    assert answer(9, 1, 3, seeds[:4])["verdict"] == "no evidence"  # 4 seeds cover only 87.5 %
    assert answer(9, 1, 3, seeds[:1])["verdict"] == "one seed"
    assert answer(1, 1, np.array([np.nan, *[1] * 7])).items() >= {"verdict": "diverged", "diverged": 1}.items()
    assert math.isfinite(answer(1, 0, 0)["ratio"])  # no division by 0
    # A column a seed. The medians of the others of seeds 0, 1, 2 are lowest at 1, 1 and 10: ratios 4/3, 4/3 and 4/4.
    judged = more_training(epochs, np.array([[3.0, 3.0, 1.0], [2.0, 2.0, 4.0], [4.0, 4.0, 4.0]]))
    assert [judged[name] for name in ("ratio", "low", "high")] == [4 / 3, 1, 4 / 3]


def test_early_stopping() -> None:
    # Each seed by its own held-out points: 1, 10 and 100 epochs, errors 4, 1 and 2.
    true, held_out = np.array([[4.0] * 3, [1] * 3, [2] * 3]), np.array([[1.0, 3, 3], [2, 1, 2], [3, 2, 1]])
    choice = early_stopping(np.array([1, 10, 100]), true, held_out, "true_mse")
    assert choice == {"best_epochs": 10, "best_true_mse": 1, "held_out_epochs": 10, "held_out_true_mse": 2}
    diverged = early_stopping(np.array([1, 10]), np.full((2, 1), np.nan), np.full((2, 1), np.nan), "val_mse")
    assert diverged["best_val_mse"] == diverged["held_out_val_mse"] == math.inf


def test_the_text_of_a_fit() -> None:
    quartile = {"median": 0.51234, "q25": 0.4, "q75": None}
    nothing = dict.fromkeys(quartile)  # null in JSON
    rows = [{"lr": 0.1, "epochs": 1000, **dict.fromkeys(METRICS, quartile), "r2": nothing}]  # of a constant function
    rows += [{"lr": 0.01, "epochs": 1000, **dict.fromkeys(METRICS, nothing)}]
    part = {"lr": 0.1, "best_epochs": 100, "last_epochs": 1000, "ratio": 3.0, "low": 2.5, "high": 4.0, "coverage": 0.99}
    parts = [part | {"verdict": verdict} for verdict in ("hurts", "helps", "one seed")]
    parts.append({"lr": 0.01, "verdict": "diverged", "diverged": 2})
    summary = {"settings": {"num_seeds": 8}, "not_measured": [2000], "seconds": {"train": 1.25}, "over_seeds": rows}
    summary |= {"function": "x", "results": [{"lr": lr, "seed": seed} for lr in (0.1, 0.01) for seed in range(8)]}
    header, first, second, *lines = fit_text(summary | {"more_training": parts}).splitlines()
    assert header.split() == "lr epochs train mse mse against f max error r2 quartiles of mse against f".split()
    assert first.split() == ["0.1", "1,000", "0.5123", "0.5123", "0.5123", "-", "0.4", "to", "diverged"]
    assert second.split() == ["0.01", "1,000", *["diverged"] * 5, "to", "diverged"]
    lowest = "Learning rate 0.1: the MSE against the noise-free f is lowest at 100 epochs"
    assert lines == [
        "Networks: 16, trained in 1.2 s",
        "Not measured: 2,000 epochs",
        f"{lowest}; at 1,000 it is 3.00 times as large (99% CI 2.50 to 4.00).",
        f"{lowest}, the most that were measured.",
        f"{lowest}; at 1,000 it is 3.00 times as large (one seed).",
        "Learning rate 0.01: diverged (2 of the seeds).",
    ]


def run_of(*accuracies: float, lr: float = 0.01, start: float = 0.1) -> FinishedRun:
    """Five epochs at the learning rate ``start``, the others at ``lr``."""
    rows = []
    for i, a in enumerate(accuracies):
        rows.append({"epoch": i, "lr": start if i < 5 else lr, "train_acc": a, "train_loss": 1 - a, "val_acc": a})
    settings = {"milestones": {"5": lr}, "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "optimizer": "sgd"}
    return FinishedRun(Path("nowhere"), {"epochs": rows, "settings": settings, "val_batches": 10})


DROPPED = run_of(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81)


def test_effect_of_the_learning_rate_drop() -> None:
    alone, lines = drop_numbers(DROPPED, None, "")
    assert alone == pytest.approx({"before": 70, "first": 80, "last": 81, "change": 10}) and lines == {}
    numbers, _ = drop_numbers(DROPPED, run_of(0.5, 0.6, 0.7, 0.6, 0.7, 0.72, 0.7, lr=0.1), "")
    expected = {"first_without": 72, "last_without": 70, "change_without": 2, "effect": 8, "final_effect": 11}
    assert numbers == pytest.approx(alone | expected)


def data_of(images: torch.Tensor, labels: torch.Tensor, batch_size: int = 4, max_shift: int = 4) -> CIFAR10DataModule:
    data = CIFAR10DataModule(batch_size=batch_size, max_shift=max_shift)
    data.train = data.test = images, labels
    return data


def test_accuracy_on_the_training_subset() -> None:
    net = ResNet20()
    net.linear.bias.data[3] += 1000  # the prediction is always 3
    net.bn1.running_var.fill_(math.nan)  # but in eval mode, which takes the running averages
    data = data_of(torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8), torch.tensor([3, 3, 3, 5] * 5))
    assert measure_gap([net], data, DROPPED) == {"batch_norm": 0.75, "augmented": 0}


def test_accuracy_with_renewed_running_averages() -> None:
    """Averages that are wrong do not matter, and weights that are do."""
    torch.manual_seed(0)
    nets = [ResNet20() for _ in range(3)]
    images = torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8)
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
        net.bn1.momentum = 1.0  # the last batch alone
        net.train()(normalize(images))
    labels = nets[0].train()(normalize(images)).argmax(1).detach()
    nets[1].bn1.running_mean += 100  # shifted by itself: renewal does not know it
    with torch.no_grad():
        nets[2].linear.bias[(labels[0] + 1) % 10] += 1000  # the weights themselves are wrong
    accuracies = measure_renewed(nets, data_of(images, labels, batch_size=8, max_shift=0), DROPPED)
    assert accuracies["before"] == accuracies["with"] >= 0.75 and accuracies["without"] <= 0.25


def test_losses_along_lines_between_weights() -> None:
    # Networks that differ by the bias of class 3 only, all labels 3: at b of the way from 0 to 1 the logits are those
    # of equal classes plus b, so the loss is log(9 + e^b) - b; and it decreases along each step.
    nets = [ResNet20() for _ in range(3)]
    for net, bias in zip(nets, (0.0, 1.0, -1.0), strict=True):
        net.load_state_dict(nets[0].state_dict())
        with torch.no_grad():
            net.linear.weight.zero_()
            net.linear.bias.zero_()
            net.linear.bias[3] = bias
    data = data_of(torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8), torch.full((8,), 3), batch_size=2)
    run = run_of(*[0.5] * 6, start=1e-4, lr=1e-5)
    lines = measure_lines(nets, data, run)
    expected = [math.log(9 + math.exp(b)) - b for b in lines["along"]]
    assert lines["with"] == pytest.approx(expected, rel=1e-4) and lines["images"] == 8
    assert lines["without"] == pytest.approx([math.log(9 + math.exp(-b)) + b for b in lines["along"]], rel=1e-4)
    start, end = lines["across"].index(0), lines["across"].index(1)
    for steps in (lines["steps"], lines["small_steps"]):
        assert [len(losses) for losses in steps] == [len(lines["across"])] * 4
        assert steps[0][start] == pytest.approx(math.log(10), rel=1e-4)  # from the same weights
        for before, after in itertools.pairwise(steps):
            assert before[start] > before[end] == pytest.approx(after[start], rel=1e-4)  # begins where one ended
    change, small_change = (lines[name][0][start] - lines[name][0][end] for name in ("steps", "small_steps"))
    assert small_change == pytest.approx(change / 10, rel=0.2)  # a tenth of the way along the same gradient
    run.summary["settings"]["momentum"] = 0.9
    assert measure_lines(nets, data, run)["steps"] == []


@pytest.mark.parametrize("bad", [None, math.inf])
def test_what_diverged_is_left_out_of_the_errors(bad: float | None) -> None:
    def curve_rows(lr: float, *errors: float | None) -> list[Any]:
        each = [dict.fromkeys(("median", "q25", "q75"), error) for error in errors]
        return [{"lr": lr, "epochs": 10**i, **dict.fromkeys(METRICS, value)} for i, value in enumerate(each)]

    figure = figures.errors_figure([*curve_rows(0.1, 9, bad, bad), *curve_rows(0.01, 8, 4, 2)], noise_variance=9.0)
    for axes in figure.axes:
        *_, second, first = axes.lines  # in ascending learning rates
        assert first.get_label() == "learning rate 0.1 (diverged)" and second.get_label() == "learning rate 0.01"
        assert [first.get_ydata()[0], *second.get_ydata()] == [9, 8, 4, 2]
        assert not np.isfinite(first.get_ydata()[1:]).any() and axes.get_yscale() == "log"
    assert [len(axes.lines) for axes in figure.axes] == [3, 2]  # the noise's variance beside the training MSE
    assert figures.pixels_of(figures.errors_figure(curve_rows(0.1, bad, bad), 0.0)).std() > 0


def growth_of(*epochs: int, lrs: Any = (0.1, 0.01)) -> Growth:
    """Curves of two points at the height of their epochs; after 100 epochs the first learning rate has diverged."""
    fits = []
    for e, lr in itertools.product(epochs, lrs):
        fit = {"lr": lr, "epochs": e, "true_mse": 1.0 / e, "fit": [e] * 2, "low": [e - 1.0] * 2, "high": [e] * 2}
        fits.append(fit | ({"true_mse": None, "fit": []} if (lr, e) == (lrs[0], 100) else {}))
    points = {"x": [0.0, 0.5, 1.0], "y": [0.0, 1.0, 2.0]}
    return {"x": [0.0, 1.0], "truth": [0.0, 1.0], "points": points, "fits": fits}


def test_fitted_curves_have_a_row_for_each_epoch_count_and_a_column_for_each_rate() -> None:
    figure = figures.fits_figure(growth_of(1, 10, 100), [1, 100, 5], "x**2" + " + 0" * 30)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    errors = {1: ("1", "1"), 100: ("0.01", "diverged")}  # of 0.01 and 0.1
    assert titles == [f"epochs: {e}, MSE against f: {error}" for e, both in errors.items() for error in both]
    labels = [[line.get_label() for line in axes.lines] for axes in figure.axes]
    assert [each[2:] for each in labels] == [["lr 0.01"], ["lr 0.1"], ["lr 0.01"], []]
    first, other, again = (axes.lines[-1].get_color() for axes in figure.axes[:3])
    assert first == again != other  # of a learning rate
    # The y-axis fits the points, from 0 to 2, wherever the fit is; the band is that of the quartiles.
    assert figure.axes[2].get_ylim() == pytest.approx((-0.16, 2.16)) and len(figure.axes[2].collections) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["points", "f(x)", "lr 0.01", "lr 0.1"]
    assert figure.get_suptitle().startswith("f(x) = x**2 + 0") and len(figure.get_suptitle()) == 70 + len("f(x) = ")


def test_how_the_fitted_curves_grow() -> None:
    for most in (3, 99):
        cards = dict(figures.fit_cards(growth_of(*range(1, most + 1), lrs=[0.1])))
        assert min(most, 5) <= len(cards) <= 10 and list(cards) == sorted(cards) and max(cards) == most
    assert cards[most].shape == (440, 660, 3) and not list(figures.fit_cards(growth_of()))


def test_training_figure() -> None:
    runs = [DROPPED.epochs, DROPPED.epochs[:-1]]  # one ended earlier
    figure = figures.training_figure(runs, [0.81, 0.83], "validation")
    assert figure.get_suptitle() == "Test accuracy 82.00 ± 1.41 % at the end (seeds: 2)"
    axes = figure.axes[0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["train (epoch average)", "validation", "test, at the end", "learning rate becomes 0.01"]
    assert list(axes.get_xticks()) == [*range(7)]
    (one,) = {tuple(axes.get_xticks()) for axes in figures.training_figure([DROPPED.epochs[:1]], [0.5], "test").axes}
    assert one == (0,) and [epoch_ticks(last)[-2:] for last in (9, 53, 119)] == [[8, 9], [40, 53], [100, 119]]
    train, shorter, val = axes.lines[:3]
    assert list(train.get_ydata()) == pytest.approx([50, 60, 70, 60, 70, 80, 81]) and len(shorter.get_ydata()) == 6
    assert train.get_color() == shorter.get_color() != val.get_color()
    assert lr_changes([{"epoch": i, "lr": 0.1 / (i + 1)} for i in range(9)]) == []  # a rate that changes all the time
    unmeasured = [{**row, "val_acc": None, "val_loss": None} for row in DROPPED.epochs]
    figure = figures.training_figure([unmeasured], [None], "test")
    assert "accuracy - %" in figure.get_suptitle() and len(figure.legends[0].get_texts()) == 2


def test_the_waterfall_shows_each_step() -> None:
    (rows,) = waterfall_chart({"a": 80.0, "b": 82.0, "c": 79.0}, "end").to_dict()["datasets"].values()
    assert [row["text"] for row in rows] == ["80.0 %", "+2.0 pp", "-3.0 pp", "79.0 %"]
    assert [(row["start"], row["end"]) for row in rows] == [(80, 80), (80, 82), (82, 79), (79, 79)]


def test_confusion_figure() -> None:
    matrix = np.array([[0.504, 0.0, 0.496], [np.nan] * 3, [0.001, 0, 0.999]])  # the second class has no images
    (axes,) = figures.confusion_figure(matrix, ["cat", "dog", "fox"]).axes
    table = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row): percent
    assert table == {(0, 0): "50", (2, 0): "50", (0, 2): "0", (2, 2): "100"} and axes.get_ylabel() == "true label"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]


def test_pictures_in_a_grid(tmp_path: Path) -> None:
    pictures = [np.full((4, 4, 3), i / 7) for i in range(7)]
    figure = figures.pictures_figure(pictures, [f"number ${i}" for i in range(7)], "title")
    assert [axes.get_title() for axes in figure.axes] == [*(f"number \\${i}" for i in range(7)), *[""] * 3]
    assert figure.get_suptitle() == "title"
    pixels = figures.save_png(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG" and np.array_equal(np.array(picture), pixels)
