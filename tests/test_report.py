"""scripts/report.py: every number of the page is computed anew here from the runs' files."""

import html
import itertools
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
from analysis.classifier_findings import GAP, gap, lr_drop, renewed, valley
from analysis.classifier_measurements import measured, network
from analysis.curve_animation import fit_animation
from analysis.curve_findings import METRICS, best_setting
from analysis.drawing import BLUE, GREEN
from analysis.report_sections import (
    GAP_COLUMNS,
    Section,
    classifier_sections,
    curve_sections,
    epochs_section,
    gap_section,
    make_sections,
    number_ids,
)
from PIL import Image, ImageSequence
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from scripts.rendering import environment, fit_text, sentences
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from test_analysis import DROPPED, LINES, PARTS, STAYED, rows

from analysis import classifier_measurements
from analysis.charts import lines_chart
from analysis.runs import Run, is_branch
from analysis.statistics import mean_ci, number
from scripts import report
from scripts.report import animate, read, read_all

ROOT = Path(__file__).parents[1]
CLASSIFIER = (
    *("cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", "4", "--limit_train_batches", "4"),
    *("--limit_val_batches", "2", "--limit_test_batches", "2", "--batch_size", "16", "--probe_train", "true"),
)


def script(folder: Path, name: str, *args: str) -> str:
    done = launch.run([str(ROOT / "scripts" / name), *args], folder, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of both experiments, two seeds of the classifier with and without its drop, and their report."""
    folder = tmp_path_factory.mktemp("report")
    epochs = ("--epochs", "10", "100", "1000")
    script(folder, "fit.py", *epochs, "--lr", "0.1", "0.01", "--num_seeds", "8", "--run_dir", "rates")
    script(folder, "fit.py", *epochs, "auto", "--function", "sin(x)", "--num_seeds", "3", "--run_dir", "own")
    for lr in ("0.1", "0.01"):
        script(folder, "fit.py", "--epochs", "1000", "--lr", lr, "--run_dir", f"alone_{lr}")
    script(folder, *CLASSIFIER, "--milestones", "{2: 0.01}", "--run_dir", "with_0")
    branch = ("--ckpt_path", "with_0/checkpoints/end_of_epoch1.ckpt", "--limit_test_batches", "0")
    script(folder, *CLASSIFIER, "--milestones", "{2: 0.1}", *branch, "--run_dir", "without_0")
    for name in ("with", "without"):
        add_seed(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["report.py", *RUNS, "--animation", "fit.gif"])
        for name in ("TRAIN_SUBSET", "LINE_IMAGES"):
            patch.setattr(classifier_measurements, name, FEW)
        report.run()
    return folder


def add_seed(folder: Path, name: str) -> None:
    """``name``_1 beside ``name``_0: as if another seed had led to other accuracies."""
    shutil.copytree(folder / f"{name}_0", folder / f"{name}_1")
    content = summary(folder, f"{name}_0")
    content["seed"] = content["settings"]["seed"] = 1
    if content["origin"]:
        content["origin"]["settings"]["seed"] = 1
    for row in content["epochs"]:
        row |= {n: row[n] + 0.01 * (row["epoch"] + 1) for n in ("train_acc", "val_acc", "val_loss", "probe_acc")}
    content["test_acc"] = content["test_acc"] and content["test_acc"] + 0.05
    (folder / f"{name}_1" / "summary.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images to measure."""
    for name in ("TRAIN_SUBSET", "LINE_IMAGES"):
        monkeypatch.setattr(classifier_measurements, name, FEW)


FEW = 64  # images, instead of thousands
RUNS = ("rates", "own", "alone_0.1", "alone_0.01", "with_0", "without_0", "with_1", "without_1")


@pytest.fixture(scope="module", params=["made here", "in docs"])
def reported(request: pytest.FixtureRequest) -> Path:
    """A folder with runs' summaries and their report.html; the one in docs/ is of whole runs on CIFAR-10."""
    return ROOT / "docs" / "report" if request.param == "in docs" else request.getfixturevalue("folder")


def summary(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "summary.json").read_text())


def seeds(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("with_") for path in folder.glob("with_*"))


class Page(HTMLParser):
    """{section id: {"text": its text, "rows": its table's rows of cells}}"""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, dict[str, Any]] = {}
        self.at: dict[str, Any] = {}
        self.cell: list[str] | None = None
        self.is_in_chart = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_in_chart |= tag == "figure"
        if tag == "section":
            self.at = self.sections.setdefault(str(dict(attrs)["id"]), {"text": "", "rows": []})
        elif tag == "tr":
            self.at["rows"].append([])
        elif tag in ("td", "th"):
            self.at["rows"][-1].append("")
            self.cell = self.at["rows"][-1]

    def handle_endtag(self, tag: str) -> None:
        self.is_in_chart &= tag != "figure"
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.is_in_chart:
            return
        if self.cell is not None:
            self.cell[-1] += data
        elif self.at:
            self.at["text"] += data


@pytest.fixture(scope="module")
def page(reported: Path) -> dict[str, dict[str, Any]]:
    return Page((reported / "report.html").read_text(encoding="utf-8")).sections


def test_each_question_has_its_section(page: dict[str, Any]) -> None:
    assert set(page) >= {
        *("epochs-rates", "rates-rates", "epochs-own", "settings-own", "curve", "drop", "gap", "how"),
    }


def test_more_epochs(page: dict[str, Any], reported: Path) -> None:
    content = summary(reported, "rates")
    assert len(page["epochs-rates"]["rows"]) == 1 + len({(r["lr"], r["epochs"]) for r in content["results"]})
    for row, cells in zip(content["over_seeds"], page["epochs-rates"]["rows"][1:], strict=True):
        # the medians of eight results, from the single results
        results = [r for r in content["results"] if (r["lr"], r["epochs"]) == (row["lr"], row["epochs"])]
        assert len(results) == 8
        expected = [statistics.median(r[name] for r in results) for name in ("train_mse", "true_mse", "r2")]
        assert cells[:2] == [f"{row['lr']:g}", f"{row['epochs']:,}"]
        assert [float(cells[i]) for i in (2, 3, 5)] == pytest.approx(expected, rel=5e-3)
        low, high = map(float, cells[4].split(" to "))
        assert sum(low <= r["true_mse"] * 1.01 and r["true_mse"] <= high * 1.01 for r in results) >= 4
    for part in content["more_training"]:
        (line,) = sentences("more_training", part, 8)
        assert line in page["epochs-rates"]["text"]
        # "overfitting" where the training MSE is lower at the end than where the error is lowest
        results = [row for row in content["over_seeds"] if row["lr"] == part["lr"]]
        lowest = min(results, key=lambda row: row["true_mse"]["median"])
        falls = results[-1]["train_mse"]["median"] < lowest["train_mse"]["median"]
        is_overfitting = f"{line} The training MSE falls meanwhile: overfitting." in page["epochs-rates"]["text"]
        assert is_overfitting == (falls and part["verdict"] == "hurts")


def test_how_the_fitted_curves_grow(folder: Path) -> None:
    growth, results = json.loads((folder / "rates" / "curves.json").read_text()), summary(folder, "rates")["results"]
    assert (growth["x"][0], growth["x"][-1], len(growth["x"]), len(growth["points"]["x"])) == (-5, 5, 101, 200)
    for fit in growth["fits"]:
        assert all(low <= high for low, high in zip(fit["low"], fit["high"], strict=True))
        errors = [(a - b) ** 2 for a, b in zip(fit["fit"], growth["truth"], strict=True)]
        for one in results:  # measured on ten times as many points
            if (one["lr"], one["epochs"], one["seed"]) == (fit["lr"], fit["epochs"], 0):
                assert statistics.mean(errors) == pytest.approx(one["true_mse"], rel=0.1)
    assert len({fit["epochs"] for fit in growth["fits"]}) > 20  # of which three were asked for


@pytest.mark.parametrize(("name", "lr", "colors"), [("rates", None, 2), ("rates", 0.01, 1), ("own", None, 1)])
def test_the_animation_is_of_the_run_that_it_names(
    name: str, lr: float | None, colors: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gif = tmp_path / "fit.gif"
    animate([read(folder / "with_0"), read(folder / name), read(folder / "alone_0.1")], lr, gif)
    assert capsys.readouterr().out == f"Wrote {gif}, from {folder / name}\n"
    growth = json.loads((folder / name / "curves.json").read_text())
    with Image.open(gif) as picture:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        assert (picture.size, picture.info["loop"], picture.info["duration"]) == ((720, 400), 0, 4000)
    assert len(frames) == len({fit["epochs"] for fit in growth["fits"]}) == len({frame.tobytes() for frame in frames})
    shown = np.unique(np.array(frames[-1]).reshape(-1, 3), axis=0).astype(int)
    lines = [np.abs(shown - [int(c[i : i + 2], 16) for i in (1, 3, 5)]).max(1).min() < 20 for c in (BLUE, GREEN)]
    assert sum(lines) == colors and gif.stat().st_size < 400_000
    if (name, lr) == ("rates", None):
        assert gif.read_bytes() == (folder / "fit.gif").read_bytes()  # by the command line


def test_the_animation_of_what_diverged_or_has_many_epochs() -> None:
    def frames(*fits: tuple[int, float | None]) -> int:
        rows = [{"lr": 1.0, "epochs": e, "true_mse": mse, "fit": [] if mse is None else [mse] * 3} for e, mse in fits]
        points = {"x": [0.0, 1.0], "y": [0.0, 2.0]}
        gif = fit_animation({"x": [0.0, 0.5, 1.0], "truth": [0.0, 1.0, 2.0], "points": points, "fits": rows})
        with Image.open(BytesIO(gif)) as picture:
            return picture.n_frames  # type: ignore[attr-defined]

    assert frames((1, 1e300), (10, 1e30), (100, None)) == 3
    assert frames((5, None)) == frames((5, 0.0)) == 1
    assert frames(*((epochs, 1.0) for epochs in range(1000, 100_001, 1000))) == 18  # 10^3, 10^3.3, 10^3.5, 10^3.6 ...


def test_nothing_to_animate(folder: Path, tmp_path: Path) -> None:
    for run, lr in (("with_0", None), ("rates", 0.5)):
        with pytest.raises(MisconfigurationException, match="--animation"):
            animate([read(folder / run)], lr, tmp_path / "fit.gif")
    assert not (tmp_path / "fit.gif").exists()


def test_learning_rates(page: dict[str, Any], reported: Path) -> None:
    results = summary(reported, "rates")["results"]
    counts, rates = (list(dict.fromkeys(r[name] for r in results)) for name in ("epochs", "lr"))

    def median(lr: float, epochs: int) -> float:
        return statistics.median(r["true_mse"] for r in results if (r["lr"], r["epochs"]) == (lr, epochs))

    target = 1.5 * min(median(lr, epochs) for lr in rates for epochs in counts)
    for lr, cells in zip(rates, page["rates-rates"]["rows"][1:], strict=True):
        best = min(counts, key=lambda epochs: median(lr, epochs))
        assert cells[0] == f"{lr:g}"
        assert float(cells[1]) == pytest.approx(median(lr, 1000), rel=5e-3)
        assert float(cells[2]) == pytest.approx(median(lr, best), rel=5e-3) and cells[3] == f"{best:,}"
        reached = [epochs for epochs in counts if median(lr, epochs) <= target]
        assert cells[4] == (f"{reached[0]:,}" if reached else "never")
        assert float(cells[5]) == pytest.approx(summary(reported, f"alone_{lr:g}")["seconds"]["train"], abs=0.006)


def test_settings(page: dict[str, Any], reported: Path) -> None:
    content = summary(reported, "own")
    for choice, cells in zip(content["auto"], page["settings-own"]["rows"][1:], strict=True):
        assert cells[0] == f"{choice['lr']:g}"
        assert (cells[1], cells[4]) == (f"{choice['best_epochs']:,}", f"{choice['held_out_epochs']:,}")
        results = [r for r in content["results"] if (r["lr"], r["epochs"]) == (choice["lr"], choice["best_epochs"])]
        if len(results) < 4:
            assert cells[3] == "-"
        else:
            low, high = map(float, cells[3].split(" to "))  # quartiles are values that occurred
            assert all(any(e == pytest.approx(r["true_mse"], rel=5e-3) for r in results) for e in (low, high))
        assert float(cells[2]) == pytest.approx(choice["best_true_mse"], rel=5e-3)
    assert content["function"] in page["settings-own"]["text"]


def test_the_curve(page: dict[str, Any], reported: Path) -> None:
    runs = [summary(reported, f"with_{seed}") for seed in seeds(reported)]
    for epoch, cells in enumerate(page["curve"]["rows"][1:]):
        assert cells[:2] == [str(epoch), f"{runs[0]['epochs'][epoch]['lr']:g}"]
        for name, cell in zip(("train_loss", "train_acc", "val_loss", "val_acc"), cells[2:], strict=True):
            values = [run["epochs"][epoch][name] * (100 if name.endswith("acc") else 1) for run in runs]
            mean, deviation = map(float, cell.removesuffix(" %").split(" ± "))
            assert mean == pytest.approx(statistics.mean(values), abs=6e-3)
            assert deviation == pytest.approx(statistics.stdev(values), abs=6e-3)
    mean = statistics.mean(run["test_acc"] for run in runs)
    half = students_t(len(runs)) * statistics.stdev(run["test_acc"] for run in runs) / len(runs) ** 0.5
    assert f"{100 * mean:.2f} % test accuracy (mean of {len(runs)} seeds" in page["curve"]["text"]
    assert f"95 % CI {100 * (mean - half):.1f}"[:-1] in page["curve"]["text"]
    assert ("SYNTHETIC" in page["curve"]["text"]) == (runs[0]["data"] == "synthetic")


def students_t(n: int) -> float:
    return {2: 12.706, 3: 4.3027}[n]  # of one and two degrees of freedom, two-sided 95 %


def test_the_drop(page: dict[str, Any], reported: Path) -> None:
    effects = []
    for seed, cells in zip(seeds(reported), page["drop"]["rows"][1:], strict=True):
        runs = [summary(reported, f"{name}_{seed}")["epochs"] for name in ("with", "without")]
        at = [row["lr"] for row in runs[0]].index(0.01)
        with_it, without = ([row["val_acc"] for row in rows] for rows in runs)
        assert with_it[:at] == without[:at]
        expected = [with_it[at] - with_it[at - 1], without[at] - without[at - 1]]
        expected += [with_it[at] - without[at], with_it[-1] - without[-1]]
        assert [float(cell) for cell in cells[1:]] == pytest.approx([100 * e for e in expected], abs=6e-3)
        effects.append(expected[2:])
    for when, values in zip(("At once", "At the end"), zip(*effects, strict=True), strict=True):
        half, mean = students_t(len(values)) * statistics.stdev(values) / len(values) ** 0.5, statistics.mean(values)
        verdict = "no effect on accuracy is shown"
        if abs(mean) > half:
            verdict = f"the drop {'raises' if mean > 0 else 'lowers'} accuracy"
        line = re.search(f"{when}: {verdict}[^:]*: ([+-][0-9.]+) pp", page["drop"]["text"])
        assert line is not None and float(line[1]) == pytest.approx(100 * mean, abs=0.06)


def test_how_the_weights_move(page: dict[str, Any], reported: Path) -> None:
    runs = [summary(reported, f"with_{seed}")["epochs"] for seed in seeds(reported)]
    for lr in (0.1, 0.01):
        rows = [row for run in runs for row in run if row["lr"] == lr]
        path = statistics.mean(row["path"] for row in rows)
        straightness = statistics.mean(row["displacement"] / row["path"] for row in rows)
        assert (
            f"is {path:.3g} long" in page["drop"]["text"]
            and f"from its start ({100 * straightness:.1f} %" in page["drop"]["text"]
        )
    paths = [reported / f"with_{seed}" / "noise.json" for seed in seeds(reported)]
    noises = [json.loads(path.read_text())["noise"] for path in paths if path.exists()]  # measured by report.py
    assert all(0 < noise < 1 + 1 / 39 for noise in noises)  # 40 batches that share nothing may come out as that
    assert len(noises) == len(paths) or reported == ROOT / "docs" / "report"  # its checkpoints are gone
    if noises:
        assert f"before the drop) is {100 * min(1, statistics.mean(noises)):.0f} %;" in page["drop"]["text"]


def test_the_gap(page: dict[str, Any], reported: Path) -> None:
    header = [GAP_COLUMNS[name] for name in GAP]
    assert page["gap"]["rows"][0] == ["run", *header]
    for seed, cells in zip(seeds(reported), page["gap"]["rows"][1:], strict=True):
        run = summary(reported, f"with_{seed}")
        last, kept = run["epochs"][-1], json.loads((reported / f"with_{seed}" / "gap.json").read_text())  # by report.py
        values = [last["train_acc"], kept["batch_norm"], kept["augmented"], last["probe_acc"], run["test_acc"]]
        assert cells[1:] == [f"{100 * value:.2f} %" for value in values]
    columns = zip(*(row[1:] for row in page["gap"]["rows"][1:]), strict=True)
    means = [statistics.mean(float(cell.removesuffix(" %")) for cell in column) for column in columns]
    steps = [float(step) for step in re.findall(r"([+-]\d+\.\d) pp \(mean", page["gap"]["text"])]
    assert steps == pytest.approx([end - start for start, end in itertools.pairwise(means)], abs=0.061)  # of rounding


def test_the_page_needs_no_network_and_has_the_commands(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href|srcset)="(?!#)|url\((?!#)', outside_scripts) and "<script src" not in text
    for path in reported.glob("*/summary.json"):
        assert summary(reported, path.parent.name)["command"] in html.unescape(text)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    done = launch.run([str(ROOT / "scripts" / "report.py"), "nowhere"], tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


NO_GIF = [("--animation", ""), ("--animation", "fit.png"), ("--animation", ".gif"), ("--animation_lr", "0.1")]


@pytest.mark.parametrize("flags", [("--out", ""), ("--out", "."), ("--num_seeds", "0"), *NO_GIF])
def test_flags_that_cannot_be_meant(flags: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *flags])
    with pytest.raises(MisconfigurationException, match=flags[0]):
        report.run()


# several seeds' top summary, too, when their folders are gone
@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '"function"', '{"recipe": "lab", "runs": []}'])
def test_a_summary_of_no_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(MisconfigurationException, match="no finished run"):
        read(tmp_path)


FINISHED = '{"settings": {}, "epochs": []}'


def test_seeds_in_their_order_and_no_run_twice(tmp_path: Path) -> None:
    for name in ("many/seed10", "many/seed2", "many/seedling", "one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "many" / "seed3").touch()
    (tmp_path / "again").symlink_to("one")
    for name in ("many/seed10", "many/seed2", "one"):
        (tmp_path / name / "summary.json").write_text(FINISHED)
    found = read_all([tmp_path / name for name in ("many", "one", "many/seed2", "again")])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == ["many/seed2", "many/seed10", "one"]


def test_a_folder_of_runs_is_its_finished_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fit/b", "fit/a", "cifar/two_seeds", "cifar/two_seeds/seed0", "cifar/two_seeds/seed1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(FINISHED)
    (tmp_path / "fit" / "interrupted" / "checkpoints").mkdir(parents=True)
    (tmp_path / "of_another_program").mkdir()
    (tmp_path / "of_another_program" / "summary.json").write_text('{"a": 1}')
    names = ["cifar/two_seeds/seed0", "cifar/two_seeds/seed1", "fit/a", "fit/b"]
    assert [str(run.path.relative_to(tmp_path)) for run in read_all([tmp_path])] == names
    assert capsys.readouterr().err.startswith(f"skipped: {tmp_path / 'of_another_program'} holds no finished run")
    for named in ("fit/interrupted", "of_another_program"):
        with pytest.raises(MisconfigurationException, match="no finished run"):
            read_all([tmp_path / named])


def test_each_section_has_an_id_of_its_own() -> None:
    sections = [Section("", id, {}, []) for id in ("a", "a", "b", "a-2", "a")]
    number_ids(sections)
    assert [section.id for section in sections] == ["a", "a-2", "b", "a-2-2", "a-3"]


@pytest.mark.slow
def test_missing_runs_are_made_and_interrupted_ones_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: name for name in ("rates", "own", "alone_0.1", "alone_0.01")}
    names |= {f"synthetic_{name}": name for name in ("with_0", "without_0")}
    for name, source in {**names, "alone_1": "alone_0.1"}.items():
        shutil.copytree(folder / source, tmp_path / "R_quick" / name)
    (tmp_path / "R_quick" / "alone_0.01" / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", "--quick", "true", "--runs", "R", "--data_root", "absent"])
    # without its own imports
    monkeypatch.setattr(report, "run_child", lambda command: launch.run(command[1:], tmp_path).returncode)
    report.run()
    printed = capsys.readouterr().out
    assert "SYNTHETIC" in printed
    assert [line for line in printed.splitlines() if line.startswith("==")] == [
        "== python scripts/fit.py --epochs 1000 --lr 0.01 --ckpt_path last --run_dir R_quick/alone_0.01",
        "== python scripts/fit.py --epochs 1000 --lr 0.001 --run_dir R_quick/alone_0.001",
    ]
    for lr in (0.01, 0.001):
        (result,) = summary(tmp_path / "R_quick", f"alone_{lr}")["results"]
        assert (result["lr"], result["epochs"]) == (lr, 1000)
    resumed, whole = (summary(at, "alone_0.01")["seconds"] for at in (tmp_path / "R_quick", folder))
    # The earlier ones count, up to the last checkpoint, which is saved in the end of training.
    assert resumed["train"] == pytest.approx(whole["train"], abs=0.2) and resumed["total"] > whole["train"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "These were short runs" in text and {"rates-rates", "drop"} <= Page(text).sections.keys()


def test_what_diverged(tmp_path: Path) -> None:
    flags = ("--function", "exp(20*x)", "--lr", "1e30", "1e31", "--epochs", "10", "50", "auto", "--run_dir", "run")
    printed = script(tmp_path, "fit.py", *flags)
    assert "Learning rate 1e+30: diverged." in printed and " inf" not in printed and "nan" not in printed
    run = read(tmp_path / "run")
    assert fit_text(run.summary) in printed  # null in JSON is what nan and infinity are in Python
    epochs, lr, settings = curve_sections([run])
    assert all([*row.values()][2:] == ["diverged", "diverged", "-", "diverged"] for row in epochs.table)
    assert not epochs.charts
    assert sentences("lr_answer", lr.facts) == ["At 50 epochs every learning rate had diverged."]
    assert sentences("settings_answer", settings.facts) == ["Training diverged with every setting that was tried."]
    assert sentences("epochs_answer", epochs.facts)[1:] == [
        f"Learning rate {lr}: 1 of 1 seeds diverged, so the effect of more training was not judged."
        for lr in ("1e+30", "1e+31")
    ]


def test_a_constant_function_has_no_r2(folder: Path) -> None:
    run = read(folder / "own")
    for row in run.summary["over_seeds"]:
        row["r2"] = dict.fromkeys(row["r2"])  # -inf is null in JSON
    section = epochs_section(run)
    assert {row["R²"] for row in section.table} == {"-"}
    lines = fit_text(run.summary).splitlines()
    assert lines[0].split()[-1] == "[range]" and all(line.endswith("  -") for line in lines[1:4])


def test_the_time_alone_is_that_of_one_network_on_the_same_problem(folder: Path) -> None:
    def seconds(*runs: Run) -> list[bool]:
        section = next(s for s in curve_sections([read(folder / "rates"), *runs]) if s.id == "rates-rates")
        return [row["seconds of 1,000 epochs alone"] != "-" for row in section.table]

    one, eight = read(folder / "alone_0.1"), read(folder / "alone_0.01")
    eight.summary["results"] *= 8
    assert seconds(one, eight) == [True, False]
    one.summary["settings"]["hidden"] = [8]
    assert seconds(one, eight) == [False, False]
    assert [s.id for s in curve_sections([read(folder / "rates"), one])][-1] == "epochs-alone_0.1"  # its own section


# Which runs belong together


def ids(runs: list[Run]) -> list[tuple[str, int]]:
    """Of each section of the classifier its id and its table's rows; the numbers of epochs are left out."""
    return [(s.id, len(s.table)) for s in make_sections(runs, "absent") if s.id.split("-")[0] in ("drop", "gap")]


def test_runs_are_told_apart_by_seed_settings_and_origin(folder: Path) -> None:
    def run(name: str, **settings: Any) -> Run:
        found = read(folder / name)
        found.summary["settings"].update(settings)
        return found

    both = [run("with_0"), run("with_1")]
    assert ids(both) == [("drop", 2), ("gap", 2)]
    assert ids([*both, run("with_0")]) == [("drop", 2), ("gap", 2)]  # the same run twice
    moved = run("with_1", data_root="elsewhere", save_every_n_steps=7, num_seeds=2, enable_progress_bar=False)
    assert ids([both[0], moved]) == [("drop", 2), ("gap", 2)]
    # settings of another value are another group, though its losses may be equal
    assert ids([both[0], run("with_1", precision="bf16-mixed")]) == [
        *(("drop", 1), ("gap", 1)),
        *(("drop-2", 1), ("gap-2", 1)),
    ]
    branch = run("with_1")
    branch.summary["origin"] = {"settings": {}, "epochs": 1}
    assert ids([both[0], branch]) == [("drop", 1), ("gap", 1), ("drop-2", 1), ("gap-2", 1)]


def test_a_curve_of_more_seeds_is_another_run(folder: Path) -> None:
    runs = [read(folder / "rates"), read(folder / "rates"), read(folder / "rates")]
    runs[2].summary["results"] = [r for r in runs[2].summary["results"] if r["seed"] == 0]
    assert [s.id for s in make_sections(runs, "absent")] == [
        *("epochs-rates", "rates-rates", "epochs-rates-2", "rates-rates-2"),
    ]


def test_a_branch_continues_its_run_measured_alike(folder: Path) -> None:
    def branch() -> Run:
        return read(folder / "without_0")

    run, unmeasured = read(folder / "with_0"), branch()
    unmeasured.summary["epochs"][-1]["val_acc"] = None
    assert is_branch(run, branch()) and not is_branch(run, unmeasured)
    assert not is_branch(run, read(folder / "without_1")) and not is_branch(run, run)
    for name, value in (("val_batches", 79), ("measured_on", "validation"), ("seed", 1), ("origin", None)):
        other = branch()
        other.summary[name] = value
        assert not is_branch(run, other)
    for name, value in (("weight_decay", 0.1), ("batch_size", 8), ("precision", "bf16-true")):
        other = branch()
        other.summary["settings"][name] = value
        assert not is_branch(run, other)
        other.summary["settings"][name] = run.summary["settings"][name]
        other.summary["origin"]["settings"][name] = value
        assert not is_branch(run, other)
    longer = branch()
    longer.summary["origin"]["settings"] |= {"max_epochs": 100, "data_root": "elsewhere"}
    assert is_branch(run, longer)
    longer.summary["origin"]["epochs"] = 1  # it left the run earlier
    assert not is_branch(run, longer)
    sections = make_sections([run, branch(), branch()], "absent")
    assert [len(section.table) for section in sections if section.id == "drop"] == [1]  # counted once
    assert [section.id for section in sections] == ["curve", "drop", "gap"]  # the branch has no sections of its own
    held_out = read(folder / "with_0")
    held_out.summary["measured_on"] = "validation"
    assert "validation loss" in classifier_sections([held_out], "")[0].table[0]


def test_one_cycle_is_no_drop(folder: Path) -> None:
    run = read(folder / "with_0")
    run.summary["settings"] |= {"milestones": None, "warmup_fraction": 0.2}
    assert [section.id for section in make_sections([run], "absent")] == ["curve", "gap"]


# What is measured of the weights


def test_what_is_measured_is_of_the_end_of_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "with_0", tmp_path / "run")
    run = read(tmp_path / "run")
    kept = json.loads((run.path / "gap.json").read_text())
    last = run.path / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for broken in (whole[:1000], whole.replace(b"train_loss", b"train_lost"), whole[:-5000] + whole[-4000:], b""):
        last.write_bytes(broken)
        assert network(run, 4) is None
    assert measured("gap", "absent", run) == kept  # without a checkpoint
    for content in ("{", "[1]", json.dumps(kept | {"epoch": 1})):
        (run.path / "gap.json").write_text(content)
        assert measured("gap", "absent", run) == {}
    last.write_bytes(whole)
    assert measured("gap", "absent", run) == kept
    assert json.loads((run.path / "gap.json").read_text()) == kept
    monkeypatch.setattr(classifier_measurements, "measure_noise", lambda *_: {"noise": 0.5})
    (run.path / "noise.json").write_text(json.dumps({"noise": 0.7, "epoch": 1, "train_loss": 1.0}))
    assert measured("noise", "absent", run)["noise"] == 0.5
    assert json.loads((run.path / "noise.json").read_text())["train_loss"] == run.summary["epochs"][-1]["train_loss"]
    run.summary["epochs"][0]["train_loss"] += 1
    assert network(run, 2) is None  # the checkpoint is of another run


def test_nothing_is_measured_without_the_images_or_at_smaller_ones(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "with_0" / "checkpoints", tmp_path / "checkpoints")
    run = Run(tmp_path, read(folder / "with_0").summary)
    absent = Run(tmp_path, {**run.summary, "data": "cifar10"})
    assert measured("gap", str(tmp_path), absent) == {}
    small = {**run.summary, "settings": {**run.summary["settings"], "image_sizes": {"0.0": 20, "0.9": 32}}}
    section = gap_section([Run(tmp_path, small)], "absent")
    assert [*section.table[0]][1:] == [GAP_COLUMNS[name] for name in ("epoch_average", "probe", "test")]
    assert "The first step is not taken apart" in sentences("gap_answer", section.facts)[-1]
    settings = run.summary["settings"] | {"image_sizes": {"0.0": 20, "0.75": 32}}  # the last of four epochs
    resized = Run(tmp_path, {**run.summary, "settings": settings})
    assert {"batch_norm", "augmented"} <= measured("gap", "", resized).keys()


# The words


def test_the_sentences_of_more_training() -> None:
    known = {"lr": 0.1, "best_epochs": 1000, "last_epochs": 20000}
    several = known | {"ratio": 3.0, "low": 2.5, "high": 4.0, "coverage": 0.99}

    def words(part: dict[str, Any]) -> str:
        (line,) = sentences("more_training", part, 8)
        return line

    numbers = "lowest at 1,000 epochs. At 20,000 it is 3.00 times as large (median of the 8 seeds' ratios"
    hurts = words(several | {"verdict": "hurts"})
    assert hurts.startswith("Learning rate 0.1: the error curve is U-shaped. ") and numbers in hurts
    assert hurts.endswith("99 % CI 2.50 to 4.00).")
    unclear = words(several | {"verdict": "no evidence", "coverage": 0.875})
    assert "a rise is not certain. " in unclear and numbers in unclear
    assert unclear.endswith("one of 95 % needs six seeds).")
    assert "not certain (the CI includes 1). " in words(several | {"verdict": "no evidence", "low": 0.9})
    assert "at 20,000 it is 3.00 times that (one seed" in words(known | {"verdict": "one seed", "ratio": 3.0})
    assert "2 of 8 seeds diverged" in words(known | {"verdict": "diverged", "diverged": 2})
    assert "no U-shaped error curve up to there" in words(known | {"verdict": "helps"})
    assert "reaches 0" in words(known | {"verdict": "exact"})
    rises = several | {"verdict": "only hurts", "best_epochs": 1}
    assert "the error only rises. The MSE against the noise-free f is lowest at 1 epoch. At" in words(rises)

    def first(*parts: dict[str, Any]) -> str:
        facts = {"num_seeds": 8, "more_training": [{"overfits": True, **part} for part in parts]}
        return sentences("epochs_answer", facts)[0]

    helps = known | {"verdict": "helps", "lr": 0.01}
    assert first(several | {"verdict": "hurts"}, helps).endswith("the error curve is U-shaped at learning rate 0.1.")
    assert first(helps, helps) == "More epochs lowered the error up to the most that were measured."
    assert "show at no learning rate" in first(several | {"verdict": "no evidence"}, helps)
    assert first(rises, helps).endswith("more epochs raise the error at learning rate 0.1.")
    assert "One measured epoch count shows nothing" in first()


def test_the_sentences_of_a_training_run() -> None:
    facts = {"recipe": "lab", "data": "synthetic", "train_batches": 8, "is_cut": True, "runs": ["mine"]}
    facts |= {"test_acc": mean_ci([0.5])}
    assert sentences("training_answer", facts) == [
        "Recipe lab on the SYNTHETIC stand-in for CIFAR-10 (run mine) reaches 50.00 % test accuracy (one seed).",
        "Each epoch had only 8 batches: a demonstration, not the exercise.",
    ]
    facts |= {"data": "cifar10", "is_cut": False, "runs": ["a", "b"], "test_acc": mean_ci([0.5, 0.6])}
    assert sentences("training_answer", facts) == [  # 12.706 * 0.0707 / sqrt(2) = 0.635
        "Recipe lab on CIFAR-10 (runs a, b) reaches 55.00 % test accuracy (mean of 2 seeds, standard deviation "
        "7.07 pp, 95 % CI -8.53 to 118.53 %)."
    ]
    assert "was not tested" in sentences("training_answer", facts | {"test_acc": None})[0]


def test_the_sentences_of_the_best_setting() -> None:
    def row(lr: float, epochs: int, median: float | None, q75: float | None) -> dict[str, Any]:
        return {"lr": lr, "epochs": epochs, "true_mse": {"median": median, "q25": 0, "q75": q75}}

    def words(*rows: dict[str, Any], num_seeds: int = 8) -> str:
        (line,) = sentences("best_setting", best_setting(rows), num_seeds)
        return line

    found = [row(0.1, 10, 0.9, 0.9), row(0.1, 50, 0.7, 0.8), row(0.01, 2000, 0.6, 0.7), row(0.001, 9000, 0.71, 0.8)]
    best = "The best of the listed settings is learning rate 0.01 with 2,000 epochs (MSE against f 0.6)"
    assert words(*found) == f"{best}; within its quartiles: 0.1 with 50 epochs."
    assert words(*found, num_seeds=3) == f"{best}; within the range of its seeds: 0.1 with 50 epochs."
    assert words(*found[2:]) == f"{best}."
    assert words(*found, row(1, 5, 0.6, 0.6)).endswith("quartiles: 0.1 with 50 epochs, 1 with 5 epochs.")
    assert words(row(1, 5, 0.6, None), row(2, 5, 0.7, 0.7), row(3, 5, None, None)).endswith("(MSE against f 0.6).")
    assert words(row(1, 5, None, None), row(2, 5, None, None)) == "Training diverged with every setting that was tried."

    choice = {"lr": 0.1, "best_epochs": 20, "best_true_mse": 0.0, "held_out_epochs": 2000, "held_out_true_mse": 0.5}
    assert sentences("early_stopping", choice, 8) == [
        "Learning rate 0.1: the best epoch count for all seeds together is 20: median MSE against the noise-free f 0. "
        "Without knowing f, each seed can stop where its own validation sample is best (median 2,000 epochs): "
        "median MSE 0.5."
    ]
    (one,) = sentences("early_stopping", choice, 1)
    assert "one can stop where a validation sample is best (2,000 epochs): MSE 0.5." in one and "median" not in one


def test_the_text_of_a_fit(folder: Path) -> None:
    content = summary(folder, "own")
    lines = fit_text(content).splitlines()
    (part,), (choice,) = content["more_training"], content["auto"]
    best, error = choice["best_epochs"], number(choice["best_true_mse"])
    assert lines[0].split()[0] == "lr" and len(content["over_seeds"]) == 4
    assert lines[5:] == [
        f"auto added {best:,} epochs, where one of the learning rates is best",
        f"Trained 3 networks in {content['seconds']['train']:.1f} s",
        *sentences("more_training", part, 3),
        *sentences("early_stopping", choice, 3),
        f"The best of the listed settings is learning rate 0.01 with {best:,} epochs (MSE against f {error}).",
    ]
    alone = summary(folder, "alone_0.1")
    header, row, *rest = fit_text(alone | {"not_measured": [2000, 3000]}).splitlines()
    assert re.split(r"\s{2,}", header.strip()) == ["lr", "epochs", "train mse", "mse against f", "max error", "r2"]
    assert row.split() == ["0.1", "1,000", *(f"{alone['results'][0][name]:.4g}" for name in METRICS)]
    assert rest == [  # one result says nothing of more training
        f"Trained 1 network in {alone['seconds']['train']:.1f} s",
        "Measured last at 1,000 epochs; not measured: 2,000, 3,000 epochs",
    ]


def test_the_sentences_of_the_drop() -> None:
    def words(*args: Any, lines: Any = (), anew: Any = ()) -> str:
        more = {"measured_on": "test", "valley": valley(lines), "renewed": renewed(anew)}
        return " ".join(sentences("drop_answer", {**lr_drop(*args), **more}))

    text = words(DROPPED, STAYED, 400)
    assert text.startswith(
        "The drop of the learning rate from 0.1 to 0.01 raises test accuracy at once, by 8.0 percent"
    )
    assert "At once: the drop raises accuracy: +8.0 pp (mean of 3 seeds" in text
    assert (
        "At the end: the drop raises accuracy: +11.0 pp" in text
        and "the effect on the test loss is -0.080 (95 % CI -0.080 to -0.080)" in text
    )
    assert "changes by +10.0 pp (mean of 3 seeds" in text and "from the same weights, by +2.0 pp" in text
    assert "each is compared with itself" in text and "the weights oscillate" not in text
    assert "is 10 long, but its end is only 0.5 from its start (5.0 %; independent random steps: 5.0 %)" in text
    assert "random steps with a drift" in text
    oscillating = [rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81, straightness=0.03)]
    text = words(oscillating, [], 400)
    assert (
        "the weights oscillate: later steps undo" in text
        and "At 0.1 the weights oscillate; at 0.01 their path is 10 times shorter." in text
    )
    assert "straight line between" not in text and "batch's gradient" not in text
    assert "+10.0 pp (one seed) within one epoch" in text and "is not known, since no run was continued" in text
    text = words(oscillating, [], 400, [0.9, 0.7])
    assert "is 80 %; 20 % is common to all batches (mean of 2 seeds)" in text
    assert "60 % is common to all batches (one seed)" in words(oscillating, [], 400, [0.4])
    assert "mostly in one direction" in words([rows(*[0.5] * 5, 0.8, straightness=0.9)], [], 400)
    unrecorded = [[{**row, "path": None} for row in DROPPED[0]]]
    assert "move was not measured: --probe_train true" in words(unrecorded, [], 400)
    for effects, first, verdict in (
        ([0.08, 0.081, 0.079], "raises test accuracy at once", "At once: the drop raises accuracy"),
        ([0.08, -0.08, 0.01], "These runs do not show", "At once: no effect on accuracy is shown"),
        ([-0.08, -0.081, -0.079], "lowers test accuracy at once, by 8.0", "At once: the drop lowers accuracy"),
        ([0.08], "In one seed, test accuracy changes at once by +8.0", "At once: one seed cannot"),
    ):
        stay = [rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8 - effect, 0.7, lr=0.1) for effect in effects]
        text = words([rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81) for _ in effects], stay, 400)
        assert first in text and verdict in text
    assert "running averages" not in text
    anew = [{"batches": 80, "before": 0.75, "with": 0.81, "without": 0.81 - effect} for effect in (0.02, 0.03, 0.04)]
    text = words(DROPPED, STAYED, 400, anew=anew)
    assert "taken anew from 80 training batches at the same weights, test accuracy is 75.0 % before the drop" in text
    later = "one epoch later 81.0 % with it (instead of 81.0 %) and 78.0 % without it (instead of 73.0 %)"
    assert f"{later}: an effect of +3.0 pp" in text
    assert "So most of the effect at once is that of these averages" in text
    large = [{**one, "without": 0.74} for one in anew]
    assert "So most of the effect" not in words(DROPPED, STAYED, 400, anew=large)
    text = words(DROPPED, STAYED, 400, lines=[LINES])
    changes = "changes by -0.200 with the drop, and by +0.100 without it (one seed, 2,000 images)"
    assert f"{changes}: an effect of -0.300." in text and "both ends, in 0 of 1 runs with the drop" in text
    assert "a loss below both ends, in 1 of 1 without it" in text
    assert "Of 3 single steps at 0.1, 2 cross a valley" in text and "by 0.15 on average. So there is" in text
    for small, word in ((LINES["steps"][2:], "none does"), (LINES["steps"], "2")):
        controlled = words(DROPPED, STAYED, 400, lines=[{**LINES, "small_steps": small}])
        assert f"by 0.15 on average; of as many at 0.01, from the same weights, {word}. So there is" in controlled
    assert "there is a valley, and most steps cross it; with the drop the weights go down into it." in text
    assert "do not show a valley" in words(DROPPED, STAYED, 400, lines=[LINES | {"steps": LINES["steps"][1:]}])
    assert "with momentum" in words(DROPPED, STAYED, 400, lines=[LINES | {"steps": []}])
    rising = [LINES | {"with": LINES["without"]}, LINES]  # effects 0 and -0.3: the CI includes 0
    assert "most steps cross it. " in words(DROPPED, STAYED, 400, lines=rising)


def test_the_sentences_of_the_gap() -> None:
    one = sentences("gap_answer", gap([PARTS]))
    assert one[0] == (
        "In one seed the final network has an accuracy of 86.0 % on the training subset, 81.0 % on test images."
    )
    assert [line.split(" ")[0] for line in one[2:]] == ["+2.0", "-1.0", "+3.0", "-5.0"]
    assert "The CI includes 0." not in " ".join(one)  # one seed has none
    two = sentences("gap_answer", gap([PARTS, PARTS | {"batch_norm": 0.82}]))
    assert two[0].startswith("The final network is better on training images than on test images: 86.0 %")
    assert "+1.0 pp (mean of 2 seeds, 95 % CI -11.7 to +13.7 pp)" in two[2]
    assert [line.endswith("The CI includes 0.") for line in two[2:]] == [True, True, False, False]
    unclear = sentences("gap_answer", gap([PARTS, PARTS | {"test": 0.9}]))
    assert unclear[0].startswith("These runs do not show that the final network is better")
    fewer = sentences("gap_answer", gap([{name: PARTS[name] for name in ("epoch_average", "probe", "test")}]))
    assert [line.split(" ")[0] for line in fewer[2:4]] == ["+4.0", "-5.0"]
    assert fewer[2].count(";") == 2 and "not taken apart" in fewer[-1]


def test_what_a_user_wrote_is_escaped_on_the_page() -> None:
    facts = {"function": "1 if x<0 else <b>2</b>"}
    (text,) = sentences("lr_question", facts)
    assert text.endswith("f(x) = 1 if x<0 else <b>2</b>")
    facts = {"recipe": "<b>", "data": "cifar10", "test_acc": None, "is_cut": False}
    chart = lines_chart([{"line": "</script><b>", "x": 1, "y": y} for y in (1, 2)], "<b>", "y")
    section = Section("training", "curve", facts, [{"<b>": "<b>"}], [chart])
    page = environment(autoescape=True).get_template("report.html")
    about = {"versions": "", "machine": ""}
    html = page.render(sections=[section], runs=[], quick=False, about=about, vega="", picture=report.picture)
    assert "Recipe &lt;b&gt; on" in html and "<th>&lt;b&gt;</th>" in html and "<b>" not in html and "&amp;" not in html
    assert html.count("</script>") == 3


# The page in a browser


@pytest.fixture(scope="module")
def browser(browser_binaries: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, chromedriver = browser_binaries
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):  # fmt: skip
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(executable_path=chromedriver))
    yield browser
    browser.quit()


def show(browser: webdriver.Chrome, page: Path, width: int, scheme: str = "light", script: bool = True) -> None:
    """Opens the page as a phone or a desktop, and waits for its charts."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    if script:
        charts = len(browser.find_elements(By.TAG_NAME, "figure"))
        wait(browser).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".vega-embed svg")) == charts > 9)


def wait(browser: webdriver.Chrome) -> WebDriverWait[webdriver.Chrome]:
    return WebDriverWait(browser, 60)


OVERLAPS = """
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
return [...document.querySelectorAll("figure .role-axis-label")].flatMap((axis) => {
  const labels = [...axis.querySelectorAll("text")].filter((text) => text.getAttribute("opacity") !== "0");
  const boxes = labels.map((text) => text.getBoundingClientRect());
  return labels.slice(1).filter((_, i) => !apart(boxes[i], boxes[i + 1])).map((text) => text.textContent);
})"""
TICKS = """
return [...document.querySelectorAll("figure .role-axis-label")].map((axis) =>
  [...axis.querySelectorAll("text")].filter((text) => text.getAttribute("opacity") !== "0").map((t) => t.textContent))
"""
WIDER = """
document.querySelectorAll("details").forEach((part) => (part.open = true));
const width = document.documentElement.clientWidth;
const cut = [...document.querySelectorAll("figure svg text")].filter((text) => {
  const [box, svg] = [text, text.closest("svg")].map((part) => part.getBoundingClientRect());
  return text.getAttribute("opacity") !== "0" && (box.left < svg.left - 1 || box.right > svg.right + 1);
});
return [...document.querySelectorAll("table, td, th, figure, svg, pre, h2, p, li")].filter(
  (part) => part.getBoundingClientRect().right > width || part.scrollWidth > part.clientWidth + 1 && part.clientWidth
).concat(cut).map((part) => part.tagName + part.textContent.slice(0, 80))"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_reads_well_on_a_phone_and_a_desktop_in_light_and_dark(
    reported: Path, browser: webdriver.Chrome, scheme: str, width: int
) -> None:
    show(browser, reported / "report.html", width, scheme)
    assert browser.execute_script(OVERLAPS) == [] and browser.execute_script(WIDER) == []
    for labels in browser.execute_script(TICKS):
        assert len(labels) >= 2 and len({"e" in label for label in labels if label[0].isdigit()}) < 2, labels
    colors = browser.execute_script(
        "return ['.role-axis-label text', 'body'].map((part) => getComputedStyle(document.querySelector(part)))"
        ".flatMap((style) => [style.fill, style.color, style.backgroundColor])"
    )
    assert colors[0] == colors[4]  # the ink of a chart is that of the page
    assert (int(re.findall(r"\d+", colors[5])[0]) > 127) == (scheme == "light")
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1100])
def test_the_slider_and_the_learning_rate_choose_the_fitted_curve(
    folder: Path, browser: webdriver.Chrome, width: int
) -> None:
    show(browser, folder / "report.html", width)
    growth = json.loads((folder / "rates" / "curves.json").read_text())
    counts = sorted({fit["epochs"] for fit in growth["fits"]})
    figure = browser.find_element(By.CSS_SELECTOR, "#epochs-rates figure")
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    for lr in (0.1, 0.01):
        figure.find_element(By.CSS_SELECTOR, f"input[type=radio][value='{lr:g}']").click()
        for key, epochs in ((Keys.HOME, counts[0]), (Keys.ARROW_RIGHT, counts[1]), (Keys.END, counts[-1])):
            slider.send_keys(key)
            (fit,) = [fit for fit in growth["fits"] if (fit["lr"], fit["epochs"]) == (lr, epochs)]
            label = f"LR {lr:g}, {epochs:,} epoch{'s' if epochs > 1 else ''}: MSE against f {fit['true_mse']:.3g}"
            wait(browser).until(lambda _, label=label: label in figure.find_element(By.TAG_NAME, "svg").text)
    shown = hovered(browser, figure, 0.5)  # the grid's point in the middle: x is 0
    assert float(shown["fitted curve"]) == pytest.approx(fit["fit"][50], rel=1e-3)
    assert float(shown["ground truth"]) == pytest.approx(growth["truth"][50], rel=1e-3)
    assert [float(shown[name]) for name in ("quartiles of the seeds", "to")] == pytest.approx(
        [fit["low"][50], fit["high"][50]], rel=1e-3
    )


@pytest.mark.slow
def test_curves_show_their_numbers_under_the_pointer(folder: Path, browser: webdriver.Chrome) -> None:
    show(browser, folder / "report.html", 1100)
    figure = browser.find_element(By.CSS_SELECTOR, "#curve figure")
    shown = hovered(browser, figure, 0.99)
    last = [summary(folder, f"with_{seed}")["epochs"][-1] for seed in seeds(folder)]
    names = {"train (epoch average)": "train_acc", "training subset, eval mode": "probe_acc", "test": "val_acc"}
    mean = 100 * statistics.mean(row[names[shown[""]]] for row in last)
    assert shown["epoch (counted from 0)"] == "3" and float(shown["accuracy [%]"]) == pytest.approx(mean, rel=1e-3)
    bars = browser.find_elements(By.CSS_SELECTOR, "#gap .mark-rect path")
    assert len(bars) == 6  # four steps from training to test accuracy, and the two ends
    assert len(browser.find_elements(By.CSS_SELECTOR, "#drop figure")) == 3


def hovered(browser: webdriver.Chrome, figure: WebElement, part: float) -> dict[str, str]:
    """What the tooltip says with the pointer at this part of the plot's width: {name: value}"""
    plot = figure.find_element(By.CSS_SELECTOR, "svg .background")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    for shift in (-2, 0):  # the pointer must move for the browser to notice it
        x = round((part - 0.5) * plot.rect["width"]) + shift
        ActionChains(browser).move_to_element_with_offset(plot, x, 0).perform()
    tooltip = wait(browser).until(lambda b: b.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible"))
    rows = [row.find_elements(By.TAG_NAME, "td") for row in tooltip.find_elements(By.TAG_NAME, "tr")]
    return {key.text.strip(" :"): value.text.replace("\u2212", "-") for key, value in rows}


@pytest.mark.slow
def test_without_javascript_and_printed_it_has_pictures(folder: Path, browser: webdriver.Chrome) -> None:
    show(browser, folder / "report.html", 390, "dark", script=False)
    pictures = browser.find_elements(By.CSS_SELECTOR, ".chart svg")
    assert len(pictures) > 9 and all(100 < picture.size["width"] <= 390 for picture in pictures)
    show(browser, folder / "report.html", 1100, "dark")
    browser.execute_cdp_cmd("Page.printToPDF", {})
    closed = browser.find_elements(By.CSS_SELECTOR, "details:not([open])")
    assert not closed  # printed tables are whole
