"""analysis/: statistics, findings, figures and files, on numbers whose answers are known."""

import itertools
import json
import math
import statistics
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from analysis.charts import lines_chart, waterfall_chart
from analysis.curves import METRICS, Growth, early_stopping, fit_text, more_training, spread_over_seeds
from analysis.drop import drop_numbers, line_numbers, measure_lines, measure_noise, measure_renewed
from analysis.figures import (
    BLUE,
    COLORS,
    ORANGE,
    confusion_figure,
    errors_figure,
    fit_animation,
    fit_cards,
    fits_figure,
    pictures_figure,
    pixels_of,
    save_png,
    training_figure,
)
from analysis.files import read_json, standard_json, write_atomically, write_json
from analysis.gap import measure_gap
from analysis.measure import Data
from analysis.provenance import about, command_line
from analysis.runs import epoch_of_drop
from analysis.statistics import mean_ci, median_ci, medians, number, over_runs, quartiles, spread
from datamodules.augmentation import normalize
from lit_models import ResNet20

# Files


def test_write_atomically_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"2"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_write_atomically_leaves_no_half_file(tmp_path: Path, error: BaseException, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fails(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fails)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def test_write_json_is_standard_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    content = {"a": [1, 0.1, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": None, "e": "nan"}
    write_json(path, content)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    expected = {"a": [1, 0.1, None], "b": {"c": [None, None]}, "d": None, "e": "nan"}
    assert json.loads(path.read_text(), parse_constant=refuse) == read_json(path) == expected
    assert path.read_text() == standard_json(content) + "\n"


def test_provenance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "scripts" / "fit.py"), "--function", "2 * x"])
    assert command_line() == "python scripts/fit.py --function '2 * x'"
    monkeypatch.setattr("sys.argv", ["/elsewhere/fit.py"])
    facts = about(torch.device("cpu"))
    assert facts["command"] == "`python /elsewhere/fit.py`"
    assert "- torch 2." in facts["versions"] and "CPU cores" in facts["machine"]


# Statistics


def test_confidence_interval_of_a_mean() -> None:
    # 1, 2, 3: mean 2, deviation 1, and Student's t of 2 degrees of freedom / sqrt(3) = 4.303 / 1.732 = 2.484
    shown = mean_ci([1, 2, 3])
    assert (shown.mean, shown.sd, shown.values) == (2, 1, [1, 2, 3])
    assert (shown.low, shown.high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert shown.text(" pp") == "+2.0 pp (3 seeds, 95 % CI -0.5 to +4.5)" and not shown.excludes_zero
    assert mean_ci([-1.0, -1.01]).excludes_zero
    one = mean_ci([5])
    assert one.text(" %", 2) == "+5.00 % (one seed)" and not one.excludes_zero
    runs = [{"a": 1.0, "b": 2.0}, {"a": 3.0}]
    assert {name: ci.mean for name, ci in over_runs(runs).items()} == {"a": 2} and over_runs([]) == {}


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (31, 2.042), (41, 2.021), (61, 2.000), (121, 1.980)])
def test_students_t_of_many_seeds_too(n: int, t: float) -> None:
    values = [float(i % 2) for i in range(n)]
    high = mean_ci(values).high
    assert high == pytest.approx(statistics.mean(values) + t * statistics.stdev(values) / n**0.5, rel=1e-3)


def test_confidence_interval_of_a_median() -> None:
    # Of 6 values, smallest to largest covers the median unless all fall on one side: 1 - 2 / 2**6.
    assert median_ci(np.array([3.0, 1, 2, 6, 5, 4])) == pytest.approx((1, 6, 1 - 2 / 64))
    # Of 9, the second from either end: 1 - 2 * (1 + 9) / 2**9 = 0.961; the third would cover 0.820.
    assert median_ci(np.arange(9.0)) == pytest.approx((1, 7, 1 - 20 / 512))
    assert median_ci(np.arange(9.0), level=0.8) == pytest.approx((2, 6, 1 - 92 / 512))
    assert median_ci(np.array([1.0, 2])) == pytest.approx((1, 2, 0.5))
    assert median_ci(np.array([1.0])) == pytest.approx((1, 1, 0))


def test_a_diverged_seed_counts_as_the_worst() -> None:
    # Positions 0.25 * 2 and 0.75 * 2 lie between two values; the nearest is taken, of two as near the even one.
    assert quartiles(np.array([1.0, 2, 3])) == {"median": 2, "q25": 1, "q75": 3}
    one_bad = np.array([math.nan, 1.0, 2, 3, 4])
    assert quartiles(one_bad) == {"median": 3, "q25": 2, "q75": 4}  # in order: 1 2 3 4 inf
    assert quartiles(one_bad, worst=-math.inf) == {"median": 2, "q25": 1, "q75": 3}  # in order: -inf 1 2 3 4
    assert quartiles(np.array([math.inf, math.nan, 1.0]))["median"] == math.inf
    assert medians(np.array([[1.0, math.nan, math.nan], [5.0, 6, 7]])).tolist() == [math.inf, 6]


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (1 / 3, 0.0, None, math.nan, -math.inf)] == ["0.333", "0", *["diverged"] * 3]
    assert number(None, "-") == "-" and number(1 / 3, digits=4) == "0.3333"
    assert spread([0.5, None, 0.7], 100) == "60.00 ± 14.14" and spread([2.0]) == "2.000" and spread([None]) == "-"


# Findings of the curve fits


def test_spread_over_seeds() -> None:
    values = {name: np.arange(12.0).reshape(2, 2, 3) for name in METRICS}  # 2 epoch counts, 2 rates, 3 seeds
    values["r2"][1, 1] = [math.nan, 1, 2]
    rows = spread_over_seeds([0.1, 0.01], np.array([5, 50]), values)
    assert [(row["lr"], row["epochs"]) for row in rows] == [(0.1, 5), (0.1, 50), (0.01, 5), (0.01, 50)]
    assert [row["true_mse"]["median"] for row in rows] == [1, 7, 4, 10]
    assert rows[3]["r2"] == {"median": 1, "q25": -math.inf, "q75": 2}  # in order: -inf 1 2
    assert spread_over_seeds([0.1], np.array([], dtype=int), {}) == []
    assert json.loads(standard_json(rows))[3]["r2"]["q25"] is None  # plain numbers


U_SHAPED = np.array([[9.0], [1], [3]]) * np.linspace(1, 1.5, 8)  # every seed: lowest at 10, three times that at 100


def test_whether_more_training_hurts() -> None:
    epochs = np.array([1, 10, 100])
    answer = more_training(epochs, U_SHAPED)
    assert (answer["verdict"], answer["best_epochs"], answer["last_epochs"]) == ("hurts", 10, 100)
    assert [answer[name] for name in ("ratio", "low", "high")] == pytest.approx([3, 3, 3])
    assert answer["coverage"] == pytest.approx(1 - 2 / 2**8)  # from the smallest to the largest of 8
    assert more_training(epochs, np.array([[9.0], [3], [1]]) * np.ones(8))["verdict"] == "helps"
    assert more_training(epochs, np.array([[1.0], [3], [9]]) * np.ones(8))["verdict"] == "only hurts"
    noise = np.where(np.arange(8) % 2, 1.1, 0.9)  # at 100 half of the seeds are better, half worse
    flat = np.stack([np.full(8, 9.0), np.full(8, 1.0), noise + 0.01])
    assert more_training(epochs, flat)["verdict"] == "no evidence"
    assert more_training(epochs, U_SHAPED[:, :4])["verdict"] == "no evidence"  # 4 seeds cover only 87.5 %
    one = more_training(epochs, U_SHAPED[:, :1])
    assert one == {"best_epochs": 10, "last_epochs": 100, "verdict": "one seed", "ratio": 3}
    assert more_training(epochs, np.array([[2.0], [1], [0.5]]))["verdict"] == "helps"
    diverged = more_training(epochs, np.array([[1.0, 1], [np.nan, 1], [1, 1]]))
    assert (diverged["verdict"], diverged["diverged"]) == ("diverged", 1)
    assert more_training(epochs, np.array([[1.0, 1], [0, 0], [0, 0]]))["verdict"] == "exact"  # no division by 0


def test_each_seed_is_judged_at_the_epochs_that_the_others_choose() -> None:
    # A column a seed. The medians of the others of seeds 0, 1, 2 are lowest at 1, 1 and 10: ratios 4/3, 4/3 and 4/4.
    error = np.array([[3.0, 3.0, 1.0], [2.0, 2.0, 4.0], [4.0, 4.0, 4.0]])
    answer = more_training(np.array([1, 10, 100]), error)
    assert [answer[name] for name in ("ratio", "low", "high")] == [4 / 3, 1, 4 / 3]


def test_early_stopping() -> None:
    true, held_out = np.array([[4.0, 4], [1, 1], [2, 2]]), np.array([[14.0, 14], [11, 11], [10, 10]])
    assert early_stopping(np.array([1, 10, 100]), true, held_out) == {
        "best_epochs": 10,
        "best_true_mse": 1,
        "held_out_epochs": 100,
        "held_out_true_mse": 2,
    }
    # Each seed by its own held-out points: 1, 10 and 100 epochs, errors 4, 1 and 2.
    true, held_out = np.array([[4.0] * 3, [1] * 3, [2] * 3]), np.array([[1.0, 3, 3], [2, 1, 2], [3, 2, 1]])
    choice = early_stopping(np.array([1, 10, 100]), true, held_out)
    assert (choice["held_out_epochs"], choice["held_out_true_mse"]) == (10, 2)
    diverged = early_stopping(np.array([1, 10]), np.full((2, 1), np.nan), np.full((2, 1), np.nan))
    assert diverged["best_true_mse"] == diverged["held_out_true_mse"] == math.inf


SUMMARY = {
    "settings": {"num_seeds": 8},
    "results": [{"lr": lr, "seed": seed} for lr in (0.1, 0.01) for seed in range(8)],
    "not_measured": [2000],
    "seconds": {"train": 1.25},
}


def test_the_text_of_a_fit() -> None:
    quartile = {"median": 0.51234, "q25": 0.4, "q75": None}
    rows = [{"lr": 0.1, "epochs": 1000, **dict.fromkeys(METRICS, quartile)}]
    rows += [{"lr": 0.01, "epochs": 1000, **dict.fromkeys(METRICS, dict.fromkeys(quartile))}]  # null in JSON
    rows[0]["r2"] = dict.fromkeys(quartile)  # of a constant function
    part = {"lr": 0.1, "best_epochs": 100, "last_epochs": 1000, "ratio": 3.0}
    hurts = part | {"verdict": "hurts", "low": 2.5, "high": 4.0, "coverage": 0.99}
    diverged = {"lr": 0.01, "verdict": "diverged", "diverged": 2, "best_epochs": 1, "last_epochs": 1000}
    lines = fit_text(SUMMARY | {"over_seeds": rows, "more_training": [hurts, diverged]}).splitlines()
    assert lines[0].split() == "lr epochs train mse mse against f [quartiles] max error r2".split()
    assert lines[1].split() == ["0.1", "1,000", "0.5123", "0.5123", "[0.4,", "diverged]", "0.5123", "-"]
    assert lines[2].split() == ["0.01", "1,000", *["diverged"] * 2, "[diverged,", "diverged]", *["diverged"] * 2]
    assert lines[3:] == [
        "Trained 16 networks in 1.2 s",
        "Not measured: 2,000 epochs",
        "Learning rate 0.1: the MSE against the noise-free f is lowest at 100 epochs; at 1,000 it is 3.00 times as "
        "large (99% CI 2.50 to 4.00).",
        "Learning rate 0.01: diverged (2 of the seeds).",
    ]
    for verdict, words in (
        ("helps", "the most that were measured"),
        ("exact", "reaches 0"),
        ("one seed", "(one seed)"),
    ):
        text = fit_text(SUMMARY | {"over_seeds": rows, "more_training": [part | {"verdict": verdict}]})
        assert words in text.splitlines()[-1]
    auto = {"lr": 0.1, "best_epochs": 20, "best_true_mse": 0.0, "held_out_epochs": 2000, "held_out_true_mse": 0.5}
    *_, first, second = fit_text(
        SUMMARY | {"over_seeds": rows, "auto": [auto, auto | {"best_true_mse": None}]}
    ).splitlines()
    assert "lowest at 20 epochs (0); a validation sample would stop at 2,000 (0.5)." in first
    assert second == "Learning rate 0.1: diverged."


# The classifier: the learning-rate drop


def rows(*accuracies: float, lr: float = 0.01) -> list[dict[str, Any]]:
    """Five epochs at 0.1, the others at ``lr``."""
    return [
        {"epoch": i, "lr": 0.1 if i < 5 else lr, "train_acc": a, "train_loss": 1 - a, "val_acc": a, "val_loss": 1 - a,
         "path": 10.0 if i < 5 else 1.0, "displacement": 0.5 if i < 5 else 0.1}
        for i, a in enumerate(accuracies)
    ]  # fmt: skip


DROPPED = rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81)
STAYED = rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.72, 0.7, lr=0.1)


def test_effect_of_the_learning_rate_drop() -> None:
    expected = {"before": 70, "with": 80, "without": 72, "change": 10, "change_without": 2, "effect": 8}
    expected |= {"final_effect": 11, "path": 10, "path_after": 1, "straightness": 5, "straightness_after": 10}
    assert drop_numbers(DROPPED, STAYED) == pytest.approx(expected)
    alone = drop_numbers([{**row, "path": None} for row in DROPPED])
    assert alone == pytest.approx({"before": 70, "with": 80, "change": 10})
    # Three or more values vary around a line: 50 60 70 60 70 around 54 58 62 66 70: slope 4, residuals -4 2 8 -6 0,
    # the sum of their squares is 120.
    long = rows(*[0.5] * 5, 0.5, 0.6, 0.7, 0.6, 0.7)
    assert drop_numbers(long)["residual_sd"] == pytest.approx((120 / 3) ** 0.5)
    with pytest.raises(ValueError, match="no drop"):
        drop_numbers(STAYED)
    assert epoch_of_drop(DROPPED) == 5 and epoch_of_drop(STAYED) is None


def test_what_lines_between_weights_show() -> None:
    lines: dict[str, Any] = {
        "along": [-0.5, 0, 0.5, 1, 1.5],
        "with": [0.9, 0.7, 0.6, 0.5, 0.6],
        "without": [0.9, 0.7, 0.6, 0.8, 0.9],
        "across": [-1, 0, 0.25, 0.75, 1, 2],
        # The first two steps are lowest inside; the third still goes down at its end.
        "steps": [[0.9, 0.7, 0.6, 0.65, 0.8, 1.0], [0.9, 0.7, 0.5, 0.6, 0.8, 1.0], [0.9, 0.7, 0.6, 0.5, 0.4, 0.3]],
    }
    lines["small_steps"] = lines["steps"][2:]
    expected = {"loss_change": -0.2, "loss_change_without": 0.1, "crossing": 200 / 3, "crossing_after": 0}
    assert line_numbers(lines) == pytest.approx(expected)
    assert "crossing" not in line_numbers(lines | {"steps": [], "small_steps": []})


# What is measured of its weights


def data_of(images: torch.Tensor, labels: torch.Tensor, **settings: Any) -> Data:
    return Data((images, labels), (images, labels), (images, labels), {"batch_size": 4, "max_shift": 4} | settings)


def test_gradients_that_all_batches_share_are_no_noise() -> None:
    torch.manual_seed(0)
    images = torch.full((12, 32, 32, 3), 200, dtype=torch.uint8)  # a flip changes nothing, nor a shift by 0 pixels
    same = measure_noise([ResNet20()], data_of(images, torch.full((12,), 3), max_shift=0))
    assert same["noise"] == pytest.approx(0, abs=1e-4)
    images = torch.randint(256, images.shape, dtype=torch.uint8)
    assert 0.05 < measure_noise([ResNet20()], data_of(images, torch.arange(12) % 10))["noise"] <= 1.5


def test_accuracy_on_the_training_subset() -> None:
    net = ResNet20()
    with torch.no_grad():
        net.linear.bias[3] += 1000  # the prediction is always 3
    data = data_of(torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8), torch.tensor([3, 3, 3, 5] * 5))
    assert measure_gap([net], data) == {"batch_norm": 0.75, "augmented": 0.75}


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
    accuracies = measure_renewed(nets, data_of(images, labels, batch_size=8, max_shift=0))
    assert accuracies["before"] == accuracies["with"] >= 0.75 and accuracies["without"] <= 0.25
    for net in nets[:2]:
        mean = net.conv1(normalize(images)).mean((0, 2, 3))
        assert torch.allclose(net.bn1.running_mean, mean, atol=1e-2)  # but for the flips


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
    settings = {"lr": 1e-4, "milestones": {"5": 1e-5}, "weight_decay": 0.0, "momentum": 0.0}
    data = data_of(torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8), torch.full((8,), 3), batch_size=2, **settings)
    lines = measure_lines(nets, data)
    expected = [math.log(9 + math.exp(b)) - b for b in lines["along"]]
    assert lines["with"] == pytest.approx(expected, rel=1e-4) and lines["images"] == 8
    assert lines["without"] == pytest.approx([math.log(9 + math.exp(-b)) + b for b in lines["along"]], rel=1e-4)
    assert [len(losses) for losses in lines["steps"]] == [len(lines["across"])] * 4
    start, end = lines["across"].index(0), lines["across"].index(1)
    assert lines["steps"][0][start] == pytest.approx(math.log(10), rel=1e-4)
    for before, after in itertools.pairwise(lines["steps"]):
        assert before[start] > before[end] == pytest.approx(after[start], rel=1e-4)  # a step begins where one ended
    small = lines["small_steps"]
    assert len(small) == 4 and small[0][start] == pytest.approx(math.log(10), rel=1e-4)  # from the same weights
    change, small_change = (each[0][start] - each[0][end] for each in (lines["steps"], small))
    assert small_change == pytest.approx(change / 10, rel=0.2)  # a tenth of the way along the same gradient
    data.settings["momentum"] = 0.9  # type: ignore[index]
    empty = measure_lines(nets, data)
    assert empty["steps"] == empty["small_steps"] == []


# Figures


def curve_rows(true_mse: Any, lr: float = 0.1) -> list[Any]:
    each = [dict.fromkeys(("median", "q25", "q75"), value) for value in true_mse]
    return [{"lr": lr, "epochs": 10**i, **dict.fromkeys(METRICS, value)} for i, value in enumerate(each)]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_diverged_is_left_out_of_the_errors(bad: float | None) -> None:
    figure = errors_figure([*curve_rows([9, bad, bad]), *curve_rows([8, 4, 2], lr=0.01)], noise_variance=9.0)
    for axes in figure.axes:
        *_, first, second = axes.lines
        assert first.get_label() == "learning rate 0.1 (diverged)" and second.get_label() == "learning rate 0.01"
        assert [first.get_ydata()[0], *second.get_ydata()] == [9, 8, 4, 2] and np.isnan(first.get_ydata()[1:]).all()
        assert axes.get_yscale() == "log"
    assert [len(axes.lines) for axes in figure.axes] == [3, 2]  # the noise's variance beside the training MSE
    for nothing in ([bad] * 3, [0, 0, 0]):  # what has no logarithm
        assert pixels_of(errors_figure(curve_rows(nothing))).std() > 0


def test_bands_are_quartiles() -> None:
    part = curve_rows([3.0, 2.0])
    part[0]["true_mse"] = {"median": 3.0, "q25": 1.0, "q75": 4.0}
    train, true = errors_figure(part).axes
    assert not train.collections  # one seed has none
    (band,) = true.collections
    edges = band.get_paths()[0].vertices
    assert {tuple(edge) for edge in edges[edges[:, 0] == 1]} == {(1, 1), (1, 4)}


def growth_of(*epochs: int, lrs: Any = (0.1, 0.01)) -> Growth:
    """Curves of two points at the height of their epochs; after 100 epochs the first learning rate has diverged."""
    return {
        "x": [0.0, 1.0],
        "truth": [0.0, 1.0],
        "points": {"x": [0.0, 0.5, 1.0], "y": [0.0, 1.0, 2.0]},
        "fits": [
            {"lr": lr, "epochs": e, "true_mse": None, "fit": [], "low": [], "high": []}
            if (lr, e) == (lrs[0], 100)
            else {"lr": lr, "epochs": e, "true_mse": 1.0 / e, "fit": [e] * 2, "low": [e - 1.0] * 2, "high": [e] * 2}
            for e in epochs
            for lr in lrs
        ],
    }


def test_fitted_curves_have_a_row_for_each_epoch_count_and_a_column_for_each_rate() -> None:
    growth, reported = growth_of(1, 10, 100), [(0.1, 100), (0.1, 1), (0.01, 100), (0.01, 1), (0.01, 5)]
    figure = fits_figure(growth, reported, "x**2" + " + 0" * 30)
    titles = ["1 epoch, MSE against f: 1"] * 2 + [
        "100 epochs, MSE against f: 0.01",
        "100 epochs, MSE against f: diverged",
    ]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    labels = [[line.get_label() for line in axes.lines] for axes in figure.axes]
    assert labels == [["points", "f(x)", *fit] for fit in (["lr 0.01"], ["lr 0.1"], ["lr 0.01"], [])]
    # The y-axis fits the points, from 0 to 2, wherever the fit is; the band is that of the quartiles.
    assert figure.axes[2].get_ylim() == pytest.approx((-0.16, 2.16)) and len(figure.axes[0].collections) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["points", "f(x)", "lr 0.01", "lr 0.1"]
    assert figure.get_suptitle().endswith("...") and len(figure.get_suptitle()) == len("f(x) = ") + 70


def test_cards_show_what_was_reported_and_ten_in_all() -> None:
    growth = growth_of(*range(1, 200))
    cards = dict(fit_cards(growth, [7, 55, 1000]))
    assert {1, 7, 55, 199} <= cards.keys() and 8 <= len(cards) <= 10 and list(cards) == sorted(cards)
    assert {picture.shape for picture in cards.values()} == {(440, 660, 3)}


def test_the_animation_shows_each_epoch_count_and_every_learning_rate() -> None:
    with Image.open(BytesIO(fit_animation(growth_of(1, 2, 100)))) as picture:
        assert (picture.size, picture.info["loop"]) == ((720, 400), 0)
        frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
        assert picture.info["duration"] == 4000
    assert len(frames) == 3 and not np.array_equal(frames[0], frames[1])
    for color in COLORS[:2]:
        ink = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(frames[1].astype(int) - ink).max(2).min() < 20


def colors_in_the_report(*others: str) -> list[str]:
    points = [{"line": name, "x": x, "y": x} for name in ("train (epoch average)", *others) for x in (0, 1)]
    return next(
        layer["encoding"]["color"]["scale"]["range"] for layer in lines_chart(points, "x", "y").to_dict()["layer"]
    )


def test_training_figure() -> None:
    runs = [DROPPED, [*rows(0.5, 0.6, 0.7, 0.6, 0.71, 0.81, 0.82), DROPPED[-1]]]  # a time limit ended one earlier
    figure = training_figure(runs, [0.81, 0.83], "validation")
    title = "ResNet-20: test accuracy 82.00 ± 1.41 % at the end\nmeans of 2 seeds ± one standard deviation"
    assert figure.get_suptitle() == title
    axes = figure.axes[0]
    labels = ["train (epoch average)", "validation", "learning rate becomes 0.01"]
    assert [line.get_label() for line in axes.lines] == labels
    means = [50, 60, 70, 60, 70.5, 80.5, 81.5]  # percent, of the two runs
    assert list(axes.lines[0].get_ydata()) == pytest.approx(means)
    assert [line.get_color() for line in axes.lines[:2]] == [BLUE, ORANGE] == colors_in_the_report("validation")
    unmeasured = [{**row, "val_acc": None, "val_loss": None} for row in DROPPED]
    figure = training_figure([unmeasured], [None], "test")
    assert figure.get_suptitle() == "ResNet-20" and len(figure.axes[0].lines) == 2
    cycle = [{**row, "lr": 0.1 / (i + 1)} for i, row in enumerate(DROPPED)]  # a rate that changes all the time
    assert len(training_figure([cycle], [0.8], "test").axes[0].lines) == 2


def test_the_waterfall_shows_each_step() -> None:
    chart = waterfall_chart({"a": 80.0, "b": 82.0, "c": 79.0}, "end").to_dict()
    (shown,) = chart["datasets"].values()
    assert [(row["name"], row["kind"]) for row in shown] == [
        ("a", "accuracy"), ("b", "rises"), ("c", "falls"), ("end", "accuracy"),
    ]  # fmt: skip
    assert [row["text"] for row in shown] == ["80.0 %", "+2.0 pp", "-3.0 pp", "79.0 %"]


def test_confusion_figure() -> None:
    matrix = np.array([[0.504, 0.0, 0.496], [np.nan] * 3, [0.001, 0, 0.999]])  # the second class has no images
    (axes,) = confusion_figure(matrix, ["cat", "dog", "fox"]).axes
    table = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row): percent
    assert table == {(0, 0): "50", (2, 0): "50", (0, 2): "0", (2, 2): "100"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]


def test_pictures_in_a_grid() -> None:
    pictures = [np.full((4, 4, 3), i / 7) for i in range(7)]
    figure = pictures_figure(pictures, [f"number ${i}" for i in range(7)], "title")
    assert [axes.get_title() for axes in figure.axes] == [*(f"number \\${i}" for i in range(7)), *[""] * 3]
    assert figure.get_suptitle() == "title" and pixels_of(figure).std() > 0
    assert len(pictures_figure(pictures, columns=7).axes) == 7


def test_png_files(tmp_path: Path) -> None:
    save_png(np.zeros((2, 3, 3), dtype=np.uint8), tmp_path / "new" / "picture.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
