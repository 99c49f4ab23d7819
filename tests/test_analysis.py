"""analysis/: statistics, findings, figures and files, on numbers whose answers are known."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis.classifier_figures import (
    confident_errors_figure,
    confusion_figure,
    contact_sheet,
    filters_figure,
    training_figure,
)
from analysis.classifier_findings import epoch_of_drop, gap, lr_drop, valley
from analysis.classifier_measurements import (
    is_at_full_size,
    measure_gap,
    measure_lines,
    measure_noise,
    measure_renewed,
)
from analysis.curve_figures import curves_figure, errors_figure
from analysis.curve_findings import METRICS, early_stopping, more_training, spread_over_seeds
from analysis.drawing import BLUE, ORANGE, pixels_of, save_png, use_log_scale
from matplotlib.figure import Figure

from analysis.charts import lines_chart, number_axis, waterfall_chart
from analysis.files import read_json, standard_json, write_atomically, write_json
from analysis.provenance import about, command_line
from analysis.statistics import mean_ci, median_ci, medians, number, quartiles
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
    assert (shown["mean"], shown["sd"], shown["values"]) == (2, 1, [1, 2, 3])
    assert (shown["low"], shown["high"]) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert mean_ci([5]) == {"values": [5], "mean": 5, "sd": None, "low": None, "high": None}


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (31, 2.042), (41, 2.021), (61, 2.000), (121, 1.980)])
def test_students_t_of_many_seeds_too(n: int, t: float) -> None:
    values = [float(i % 2) for i in range(n)]
    high = mean_ci(values)["high"]
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
    assert number(None, "-") == "-"


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


# Findings of the classifier


def rows(*accuracies: float, lr: float = 0.01, straightness: float = 0.05) -> list[dict[str, Any]]:
    """Five epochs at 0.1, the others at ``lr``."""
    return [
        {"epoch": i, "lr": 0.1 if i < 5 else lr, "train_acc": a, "train_loss": 1 - a, "val_acc": a, "val_loss": 1 - a,
         "path": 10.0 if i < 5 else 1.0, "displacement": straightness * (10 if i < 5 else 1)}
        for i, a in enumerate(accuracies)
    ]  # fmt: skip


DROPPED = [rows(0.5, 0.6, 0.7, 0.6, 0.7 + d, 0.8 + d, 0.81 + d) for d in (0, 0.01, 0.02)]
STAYED = [rows(0.5, 0.6, 0.7, 0.6, 0.7 + d, 0.72 + d, 0.7 + d, lr=0.1) for d in (0, 0.01, 0.02)]


def test_effect_of_the_learning_rate_drop() -> None:
    answer = lr_drop(DROPPED, STAYED, 400)
    assert (answer["epoch"], answer["lr_before"], answer["lr_after"]) == (5, 0.1, 0.01)
    means = {"change": 0.1, "change_loss": -0.1, "change_without": 0.02, "effect": 0.08, "effect_loss": -0.08}
    for name, mean in {**means, "final_effect": 0.11}.items():
        assert answer[name]["mean"] == pytest.approx(mean)  # type: ignore[literal-required]
    assert answer["effect"] == mean_ci([0.8 + d - (0.72 + d) for d in (0, 0.01, 0.02)])
    # Two values lie on a line: only parts of three epochs or more vary around theirs, 0.5 0.6 0.7 0.6 0.7 around
    # 0.54 0.58 0.62 0.66 0.70: slope 0.04, residuals -0.04 0.02 0.08 -0.06 0, their squares' sum 0.012.
    alone = lr_drop(DROPPED[:1], [], 400)
    assert alone["before"]["residual_sd"] == pytest.approx((0.012 / 3) ** 0.5)
    assert alone["after"]["residual_sd"] is None and alone["effect"] is None and alone["after_without"] is None
    assert answer["before"] | {"residual_sd": 0} == pytest.approx(
        {"residual_sd": 0, "straightness": 0.05, "path": 10, "displacement": 0.5}
    )
    with pytest.raises(ValueError, match="no drop"):
        lr_drop([rows(0.5, 0.6)], [], 400)
    assert epoch_of_drop(DROPPED[0]) == 5 and epoch_of_drop(STAYED[0]) is None


@pytest.mark.parametrize(("straightness", "weights"), [(0.049, "oscillate"), (0.051, "drift"), (0.9, "move on")])
def test_how_the_weights_move_beside_random_steps(straightness: float, weights: str) -> None:
    run = rows(*[0.5] * 5, 0.8, straightness=straightness)  # 400 random steps end 1 / 20 of their path away
    assert lr_drop([run], [], 400)["weights"] == weights
    assert lr_drop([[{**row, "path": None} for row in run]], [], 400)["weights"] is None


LINES = {
    "images": 2000,
    "along": [-0.5, 0, 0.5, 1, 1.5],
    "with": [0.9, 0.7, 0.6, 0.5, 0.6],
    "without": [0.9, 0.7, 0.6, 0.8, 0.9],
    "across": [-1, 0, 0.25, 0.75, 1, 2],
    "steps": [[0.9, 0.7, 0.6, 0.65, 0.8, 1.0], [0.9, 0.7, 0.5, 0.6, 0.8, 1.0], [0.9, 0.7, 0.6, 0.5, 0.4, 0.3]],
}


def test_what_lines_between_weights_show() -> None:
    # The first two steps are lowest inside, by 0.7 - 0.6 and 0.7 - 0.5; the third still goes down at its end.
    found = valley([LINES])
    assert found is not None and valley([]) is None
    assert (found["with_drop"]["mean"], found["without"]["mean"]) == pytest.approx((-0.2, 0.1))
    assert (found["hills"], found["dips"], found["num_runs"]) == (0, 1, 1)
    assert (found["crossing"], found["num_steps"], found["depth"]) == (2, 3, pytest.approx(0.15))
    assert found["small_crossing"] is None
    controlled = valley([LINES | {"small_steps": LINES["steps"][1:]}])
    assert controlled is not None and controlled["small_crossing"] == 1
    hill = valley([LINES | {"with": [0.9, 0.7, 0.8, 0.5, 0.6]}, LINES])
    assert hill is not None and (hill["hills"], hill["dips"], hill["num_steps"]) == (1, 2, 6)


def test_gradient_noise_is_a_fraction() -> None:
    assert lr_drop(DROPPED, [], 400, [0.9, 0.7])["gradient_noise"] == pytest.approx(0.8)
    assert lr_drop(DROPPED, [], 400, [1.02])["gradient_noise"] == 1
    assert lr_drop(DROPPED, [], 400)["gradient_noise"] is None


PARTS = {"epoch_average": 0.82, "batch_norm": 0.84, "augmented": 0.83, "probe": 0.86, "test": 0.81}


def test_the_gap_taken_apart_adds_up() -> None:
    found = gap([PARTS, PARTS | {"batch_norm": 0.82}])
    assert found["accuracies"] == pytest.approx(PARTS | {"batch_norm": 0.83})
    changes = [step["change"]["mean"] for step in found["steps"]]
    assert changes == pytest.approx([0.01, 0, 0.03, -0.05]) and sum(changes) == pytest.approx(0.81 - 0.82)
    # 2 and 0: mean 1, deviation sqrt(2), 12.706 * sqrt(2) / sqrt(2) = 12.7
    first = found["steps"][0]["change"]
    assert (first["low"], first["high"]) == pytest.approx((-0.117, 0.137), abs=1e-3)
    fewer = gap([PARTS, {name: PARTS[name] for name in ("epoch_average", "probe", "test")}])  # without a checkpoint
    assert [step["parts"] for step in fewer["steps"]] == [("batch_norm", "augmented", "probe"), ("test",)]
    assert [step["change"]["mean"] for step in fewer["steps"]] == pytest.approx([0.04, -0.05])


# What is measured of the classifier's weights


def test_gradients_that_all_batches_share_are_no_noise() -> None:
    torch.manual_seed(0)
    images = torch.full((12, 32, 32, 3), 200, dtype=torch.uint8)  # a flip changes nothing, nor a shift by 0 pixels
    same = measure_noise(ResNet20(), (images, torch.full((12,), 3)), {"batch_size": 4, "max_shift": 0})
    assert same["noise"] == pytest.approx(0, abs=1e-4)
    images = torch.randint(256, images.shape, dtype=torch.uint8)
    data, settings = (images, torch.arange(12) % 10), {"batch_size": 4, "max_shift": 4}
    assert 0.05 < measure_noise(ResNet20(), data, settings)["noise"] <= 1.5
    assert measure_noise(ResNet20(), data, settings | {"batch_size": 12}) == {}  # a single batch


def test_accuracy_on_the_training_subset() -> None:
    net = ResNet20()
    with torch.no_grad():
        net.linear.bias[3] += 1000  # the prediction is always 3
    labels = torch.tensor([3, 3, 3, 5] * 5)
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    settings = {"batch_size": 8, "max_shift": 4}
    assert measure_gap(net, (images, labels), settings) == {"batch_norm": 0.75, "augmented": 0.75}


def test_accuracy_with_renewed_running_averages() -> None:
    """Averages that are wrong do not matter, and weights that are do."""
    torch.manual_seed(0)
    nets = [ResNet20() for _ in range(3)]
    images = torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8)
    settings = {"batch_size": 8, "max_shift": 0, "limit_val_batches": 2}
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
        net.bn1.momentum = 1.0  # the last batch alone
        net.train()(normalize(images))
    labels = nets[0].train()(normalize(images)).argmax(1).detach()
    nets[1].bn1.running_mean += 100  # shifted by itself: renewal does not know it
    with torch.no_grad():
        nets[2].linear.bias[(labels[0] + 1) % 10] += 1000  # the weights themselves are wrong
    found = measure_renewed(*nets, (images, labels), (images, labels), settings)
    assert found["batches"] == 5  # of 80
    assert found["before"] == found["with"] >= 0.75 and found["without"] <= 0.25  # of the first two batches
    for net in nets[:2]:
        parts = torch.cat([net.conv1(normalize(part)).mean((2, 3)) for part in images.split(40)])
        assert torch.allclose(net.bn1.running_mean, parts.mean(0), atol=1e-2)  # but for the flips


def test_losses_along_lines_between_weights() -> None:
    # Networks that differ by the bias of class 3 only, all labels 3: at b of the way from 0 to 1 the logits are those
    # of equal classes plus b, so the loss is log(9 + e^b) - b; and it falls along each step.
    nets = [ResNet20() for _ in range(3)]
    for net, bias in zip(nets, (0.0, 1.0, -1.0), strict=True):
        net.load_state_dict(nets[0].state_dict())
        with torch.no_grad():
            net.linear.weight.zero_()
            net.linear.bias.zero_()
            net.linear.bias[3] = bias
    data = (torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8), torch.full((20,), 3))
    settings = {"batch_size": 4, "max_shift": 4, "lr": 1e-4, "lr_after": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
    found = measure_lines(*nets, data, settings)
    expected = [math.log(9 + math.exp(b)) - b for b in found["along"]]
    assert found["with"] == pytest.approx(expected, rel=1e-4) and found["images"] == 20
    assert found["without"] == pytest.approx([math.log(9 + math.exp(-b)) + b for b in found["along"]], rel=1e-4)
    assert [len(losses) for losses in found["steps"]] == [len(found["across"])] * 4
    start, end = found["across"].index(0), found["across"].index(1)
    assert found["steps"][0][start] == pytest.approx(math.log(10), rel=1e-4)
    for before, after in itertools.pairwise(found["steps"]):
        assert before[start] > before[end] == pytest.approx(after[start], rel=1e-4)  # a step begins where one ended
    small = found["small_steps"]
    assert len(small) == 4 and small[0][start] == pytest.approx(math.log(10), rel=1e-4)  # from the same weights
    fall, small_fall = found["steps"][0][start] - found["steps"][0][end], small[0][start] - small[0][end]
    assert small_fall == pytest.approx(fall / 10, rel=0.2)  # a tenth of the way along the same gradient
    empty = measure_lines(*nets, data, settings | {"momentum": 0.9})
    assert empty["steps"] == empty["small_steps"] == []


@pytest.mark.parametrize(
    ("sizes", "epoch", "expected"),
    [
        ({}, 0, True),
        (None, 3, True),
        ({"0.0": 20, "0.75": 32}, 3, True),  # of four epochs the last begins at 0.75
        ({"0.0": 20, "0.76": 32}, 3, False),
        ({"0.0": 20, "0.75": 32}, 2, False),
        ({"0.5": 24, "0.75": 32}, 1, True),  # before the first size 32
        ({"0.5": 24, "0.75": 32}, 2, False),
        ({"0.8": 24}, 3, False),
    ],
)
def test_epochs_at_full_size(sizes: Any, epoch: int, expected: bool) -> None:
    assert is_at_full_size({"settings": {"image_sizes": sizes}, "epochs": [{}] * 4}, epoch) is expected


# Figures


def tick_labels(axis: Any) -> list[Any]:
    low, high = axis.get_view_interval()
    pairs = zip(axis.get_majorticklabels(), axis.get_majorticklocs(), strict=True)
    return [label for label, place in pairs if label.get_text() and low <= place <= high]


@pytest.mark.parametrize("low", [1e-7, 0.003, 3, 200, 1222, 5e4])
@pytest.mark.parametrize("ratio", [1.02, 3.4, 9, 49, 90, 1e5])
def test_tick_labels_are_alike_and_do_not_overlap(low: float, ratio: float) -> None:
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2)[0]
    axes.plot([low, low * ratio], [low, low * ratio])
    use_log_scale(axes)
    pixels_of(figure)
    for axis in (axes.xaxis, axes.yaxis):
        labels = tick_labels(axis)
        boxes = [label.get_window_extent() for label in labels]
        assert len(labels) >= 2 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        texts = [label.get_text() for label in labels]
        assert all("10^" in text for text in texts) or not any("10^" in text or "e" in text for text in texts)
    assert low != 200 or ratio != 90 or "1,000" in texts


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


def test_curves_figure() -> None:
    x = np.linspace(-1, 1, 11)
    fits = [np.stack([x**2, x**2 + 1]), np.full((2, 11), np.nan)]
    figure = curves_figure(x, x**2, (x, x), [("good", fits[0]), ("bad", fits[1])], "x**2" + " + 0" * 30)
    assert [axes.get_title() for axes in figure.axes] == ["good", "bad"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["diverged"] and not figure.axes[0].texts
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "training points",
        "ground truth f(x)",
        "interquartile range of the seeds",
        "fitted curve of the first seed",
    ]
    assert figure.get_suptitle().endswith("...") and len(figure.get_suptitle()) == len("f(x) = ") + 70
    figure = curves_figure(x, x**2, (x, x), [("one seed", fits[0][:1])] * 5, "x**2")
    assert figure.legends[0].get_texts()[-1].get_text() == "fitted curve"
    numbered = [bool(axes.get_xlabel() and axes.xaxis.get_tick_params()["labelbottom"]) for axes in figure.axes]
    assert numbered == [False, True, True, True, True, *[False] * 3]  # the lowest panel of each column


def colors_in_the_report(*others: str) -> list[str]:
    points = [{"line": name, "x": x, "y": x} for name in ("train (epoch average)", *others) for x in (0, 1)]
    return next(
        layer["encoding"]["color"]["scale"]["range"] for layer in lines_chart(points, "x", "y").to_dict()["layer"]
    )


def test_training_figure() -> None:
    runs = [DROPPED[0], [*DROPPED[1], DROPPED[1][-1]]]  # a time limit ended one earlier
    figure = training_figure(runs, [0.81, 0.83], "validation")
    title = "ResNet-20: test accuracy 82.00 ± 1.41 % at the end\nmeans of 2 seeds ± one standard deviation (bands)"
    assert figure.get_suptitle() == title
    axes = figure.axes[0]
    labels = ["train (epoch average)", "validation", "learning rate becomes 0.01"]
    assert [line.get_label() for line in axes.lines] == labels
    means = [50, 60, 70, 60, 70.5, 80.5, 81.5]  # percent, of the two runs
    assert list(axes.lines[0].get_ydata()) == pytest.approx(means)
    assert [line.get_color() for line in axes.lines[:2]] == [BLUE, ORANGE] == colors_in_the_report("validation")
    unmeasured = [{**row, "val_acc": None, "val_loss": None} for row in DROPPED[0]]
    figure = training_figure([unmeasured], [None], "test")
    assert figure.get_suptitle() == "ResNet-20" and len(figure.axes[0].lines) == 2
    cycle = [{**row, "lr": 0.1 / (i + 1)} for i, row in enumerate(DROPPED[0])]  # a rate that changes all the time
    assert len(training_figure([cycle], [0.8], "test").axes[0].lines) == 2


@pytest.mark.parametrize("low", [1e-7, 0.003, 3, 200, 1222, 5e4])
@pytest.mark.parametrize("ratio", [1.02, 3.4, 9, 49, 90, 1e5])
def test_logarithmic_axes_have_ticks_that_are_written_alike(low: float, ratio: float) -> None:
    axis = number_axis([low, low * ratio], "x", log=True)["axis"].to_dict()
    assert len(axis["values"]) >= (2 if ratio == 1.02 else 3)
    assert all(low <= value <= low * ratio * 1.001 for value in axis["values"])
    assert (axis["format"] == "~e") == (low < 1e-4 or low * ratio > 1e6)


def test_the_waterfall_shows_each_step() -> None:
    steps = [("a", 80.0, 80.0), ("b", 80.0, 82.0), ("c", 82.0, 79.0), ("d", 79.0, 79.0)]
    chart = waterfall_chart([{"name": n, "start": a, "end": b, "text": f"{b - a:+.1f}"} for n, a, b in steps]).to_dict()
    (rows,) = chart["datasets"].values()
    assert [row["kind"] for row in rows] == ["accuracy", "rises", "falls", "accuracy"]
    assert [row["at"] for row in rows] == [80, 82, 82, 79]  # where the text begins


def test_confusion_figure() -> None:
    matrix = np.array([[0.504, 0.0, 0.496], [np.nan] * 3, [0.001, 0, 0.999]])  # the second class has no images
    (axes,) = confusion_figure(matrix, ["cat", "dog", "fox"]).axes
    table = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row): percent
    assert table == {(0, 0): "50", (2, 0): "50", (0, 2): "0", (2, 2): "100"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]


def test_pictures_in_grids() -> None:
    pictures = [np.full((4, 4, 3), i / 7) for i in range(7)]
    errors = confident_errors_figure(pictures, [f"number {i}" for i in range(7)])
    assert [axes.get_title() for axes in errors.axes] == [*(f"number {i}" for i in range(7)), *[""] * 3]
    filters = filters_figure(np.stack([np.full((3, 3, 3), value) for value in (-2.0, 0.0, 1.0)]))
    assert [axes.images[0].get_array().mean() for axes in filters.axes] == [0, 0.5, 0.75]
    assert pixels_of(filters_figure(np.zeros((2, 3, 3, 3)))).std() > 0
    name = "a/very_long_name_of_a_picture_$1$.png"
    sheet = contact_sheet(pictures[:1], [{"file": name, "classes": ["cat", "dog"], "probabilities": [0.9, 0.1]}])
    assert sheet.axes[0].get_title() == "..._of_a_picture_\\$1\\$.png\ncat 90%\ndog 10%"
    many = contact_sheet(pictures[:1] * 101, [{"file": "x", "classes": [], "probabilities": []}] * 101)
    assert sum(bool(axes.images) for axes in many.axes) == 100


def test_png_files(tmp_path: Path) -> None:
    save_png(np.zeros((2, 3, 3), dtype=np.uint8), tmp_path / "new" / "picture.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_that_changes_after_each_epoch_is_no_event() -> None:
    def marked(*lrs: float) -> int:
        row = {"train_loss": 1.0, "train_acc": 0.5, "val_loss": None, "val_acc": None}
        figure = training_figure([[row | {"epoch": i, "lr": lr} for i, lr in enumerate(lrs)]], [None], "test")
        return sum("learning rate" in text.get_text() for text in figure.legends[0].get_texts())

    assert [marked(0.1, 0.1, 0.01), marked(0.1, 0.01), marked(0.1, 0.1)] == [1, 1, 0]
    assert marked(0.19, 0.13, 0.06, 0.001) == 0  # one cycle
