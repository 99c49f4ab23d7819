"""scripts/report.py: every number of the page is computed anew here from the runs' files."""

import html
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import launch
import pytest
from matplotlib.image import imread
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from callbacks.classifier_answers import drop_sentences, gap_sentences, mean_and_interval, what_the_drop_did
from callbacks.curve_answers import sentence
from scripts import measure, report
from scripts.cli import UserError
from scripts.report import Run, Section, expand, read

ROOT = Path(__file__).parents[1]
CLASSIFIER = (
    *("cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", "4", "--limit_train_batches", "6"),
    *("--limit_val_batches", "3", "--limit_test_batches", "3", "--batch_size", "32", "--probe_train", "true"),
)


def script(folder: Path, name: str, *args: str) -> str:
    done = launch.run([str(ROOT / "scripts" / name), *args], folder, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of both exercises, two seeds of the classifier with and without the fall of its rate, and their report."""
    folder = tmp_path_factory.mktemp("report")
    epochs = ("--epochs", "10", "100", "1000", "3000")
    script(folder, "fit.py", *epochs, "--lr", "0.1", "0.01", "--num_seeds", "8", "--run_dir", "rates")
    script(folder, "fit.py", *epochs, "auto", "--function", "sin(x)", "--num_seeds", "3", "--run_dir", "own")
    for lr in ("0.1", "0.01"):
        script(folder, "fit.py", "--epochs", "1000", "--lr", lr, "--run_dir", f"alone_{lr}")
    for seed in ("0", "1"):
        flags = ("--seed", seed, "--milestones")
        script(folder, *CLASSIFIER, *flags, "{2: 0.01}", "--run_dir", f"with_{seed}")
        branch = ("--ckpt_path", f"with_{seed}/checkpoints/end_of_epoch1.ckpt", "--limit_test_batches", "0")
        script(folder, *CLASSIFIER, *flags, "{}", *branch, "--run_dir", f"without_{seed}")
    told = script(folder, "report.py", *RUNS)
    assert "report.html" in told
    return folder


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
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.at = self.sections.setdefault(str(dict(attrs)["id"]), {"text": "", "rows": []})
        elif tag == "tr":
            self.at["rows"].append([])
        elif tag in ("td", "th"):
            self.at["rows"][-1].append("")
            self.cell = self.at["rows"][-1]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data: str) -> None:
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
        assert sentence(part["lr"], part, 8) in page["epochs-rates"]["text"]


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
    assert f"{mean:.2%} test accuracy" in page["curve"]["text"]
    assert ("SYNTHETIC" in page["curve"]["text"]) == (runs[0]["data"] == "synthetic")


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
    t = {2: 12.706, 3: 4.303}[len(effects)]  # Student's for one and two degrees of freedom
    for when, values in zip(("At once", "At the end"), zip(*effects, strict=True), strict=True):
        half = t * statistics.stdev(values) / len(values) ** 0.5
        verdict = "raises accuracy is not shown" if abs(statistics.mean(values)) <= half else (
            "raises accuracy is shown" if statistics.mean(values) > 0 else "lowers accuracy is shown"
        )  # fmt: skip
        assert f"{when}: that the fall {verdict}" in page["drop"]["text"]


def test_how_the_weights_move(page: dict[str, Any], reported: Path) -> None:
    runs = [summary(reported, f"with_{seed}")["epochs"] for seed in seeds(reported)]
    for lr in (0.1, 0.01):
        rows = [row for run in runs for row in run if row["lr"] == lr]
        path = statistics.mean(row["path"] for row in rows)
        straightness = statistics.mean(row["displacement"] / row["path"] for row in rows)
        assert f"{path:.3g}" in page["drop"]["text"] and f"{100 * straightness:.1f} % of that" in page["drop"]["text"]
    paths = [reported / f"with_{seed}" / "noise.json" for seed in seeds(reported)]
    noises = [json.loads(path.read_text())["noise"] for path in paths if path.exists()]  # measured by report.py
    assert all(0 < noise < 1 + 1 / 39 for noise in noises)  # 40 batches that share nothing may come out as that
    assert len(noises) == len(paths) or reported == ROOT / "docs" / "report"  # its checkpoints are gone
    if noises:
        assert f"{100 * min(1, statistics.mean(noises)):.0f} % of a batch's gradient" in page["drop"]["text"]


def test_the_gap(page: dict[str, Any], reported: Path) -> None:
    for seed, cells in zip(seeds(reported), page["gap"]["rows"][1:], strict=True):
        run = summary(reported, f"with_{seed}")
        told = dict(zip(page["gap"]["rows"][0][1:], cells[1:], strict=True))
        for name, value in (
            ("running", run["epochs"][-1]["train_acc"]),
            ("probe", run["epochs"][-1]["probe_acc"]),
            ("test", run["test_acc"]),
        ):
            assert told[name] == f"{value:.2%}"
        measured = json.loads((reported / f"with_{seed}" / "gap.json").read_text())  # by report.py
        for name in ("batch_norm", "augmented"):
            assert told[name] == f"{measured[name]:.2%}"
    assert list(told) == ["running", "batch_norm", "augmented", "probe", "test"]
    means = [
        statistics.mean(float(cell.removesuffix("%")) for cell in column)
        for column in zip(*(row[1:] for row in page["gap"]["rows"][1:]), strict=True)
    ]
    steps = [float(step) for step in re.findall(r"([+-]\d+\.\d) points \(mean", page["gap"]["text"])]
    assert steps == pytest.approx([end - start for start, end in itertools.pairwise(means)], abs=0.061)  # of rounding


def test_the_page_needs_no_network_and_tells_the_commands(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', text) and "url(" not in text and "<script" not in text
    for path in reported.glob("*/summary.json"):
        assert summary(reported, path.parent.name)["command"] in html.unescape(text)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "nowhere" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("flags", [("--out", ""), ("--out", "."), ("--num_seeds", "0")])
def test_flags_that_cannot_be_meant(flags: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *flags])
    with pytest.raises(UserError, match=flags[0]):
        report.run()


# several seeds' top summary, too, when their folders are gone
@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '"function"', '{"recipe": "lab", "runs": []}'])
def test_a_summary_of_no_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match="no finished run"):
        read(tmp_path)


def test_seeds_in_their_order_and_no_run_twice(tmp_path: Path) -> None:
    for name in ("many/seed10", "many/seed2", "many/seedling", "one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "many" / "seed3").touch()
    (tmp_path / "again").symlink_to("one")
    found = expand([tmp_path / name for name in ("many", "one", "many/seed2", "again")])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["many/seed2", "many/seed10", "one"]


def test_each_section_has_an_id_of_its_own() -> None:
    sections = [Section(id, "", []) for id in ("a", "a", "b", "a-2", "a")]
    report.number_ids(sections)
    assert [section.id for section in sections] == ["a", "a-2", "b", "a-2-2", "a-3"]


def test_missing_runs_are_made_and_interrupted_ones_go_on(folder: Path, tmp_path: Path) -> None:
    names = {name: name for name in ("rates", "own", "alone_0.1", "alone_0.01", "with_0", "without_0")}
    for name, source in {**names, "alone_1": "alone_0.1"}.items():
        shutil.copytree(folder / source, tmp_path / "R_quick" / name)
    (tmp_path / "R_quick" / "alone_0.01" / "summary.json").unlink()
    told = script(tmp_path, "report.py", "--quick", "true", "--runs", "R", "--data_root", "absent")
    assert "SYNTHETIC" in told
    assert [line for line in told.splitlines() if line.startswith("==")] == [
        "== python scripts/fit.py --epochs 1000 --lr 0.01 --ckpt_path last --run_dir R_quick/alone_0.01",
        "== python scripts/fit.py --epochs 1000 --lr 0.001 --run_dir R_quick/alone_0.001",
    ]
    for lr in (0.01, 0.001):
        (result,) = summary(tmp_path / "R_quick", f"alone_{lr}")["results"]
        assert (result["lr"], result["epochs"]) == (lr, 1000)
    went_on, whole = (summary(at, "alone_0.01")["seconds"] for at in (tmp_path / "R_quick", folder))
    assert went_on["train"] == whole["train"] and went_on["total"] > whole["train"]  # the earlier ones count
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "These were short runs" in text and {"rates-rates", "drop"} <= Page(text).sections.keys()


def test_what_diverged(tmp_path: Path) -> None:
    flags = ("--function", "exp(20*x)", "--lr", "1e30", "1e31", "--epochs", "10", "50", "auto", "--run_dir", "run")
    told = script(tmp_path, "fit.py", *flags)
    assert "Learning rate 1e+30: diverged" in told and " inf" not in told and "nan" not in told
    epochs, rates, settings = report.curve_sections([read(tmp_path / "run")])
    assert [row[2:] for row in epochs.table[1:]] == [["diverged", "diverged", "-", "diverged"]] * len(epochs.table[1:])
    assert "every learning rate had diverged" in " ".join(rates.answer) and len(rates.answer) == 1
    assert settings.answer == ["With every setting that was tried the training diverged."]


def test_a_constant_function_has_no_r2(folder: Path) -> None:
    run = read(folder / "own")
    for row in run.summary["over_seeds"]:
        row["r2"] = dict.fromkeys(row["r2"])  # -inf is null in JSON
    section = report.epochs_section(run)
    assert section.table[0][-1] == "R²" and {row[-1] for row in section.table[1:]} == {"-"}


def test_a_true_error_of_zero_has_no_multiples() -> None:
    best = {"lr": 0.1, "best_epochs": 10, "best_true_mse": 0.0, "held_out_epochs": 10, "held_out_true_mse": 0.0}
    assert "times that" not in " ".join(report.settings_answer(best))


def test_the_time_alone_is_that_of_one_network(folder: Path) -> None:
    rates, one, eight = (read(folder / name) for name in ("rates", "alone_0.1", "alone_0.01"))
    eight.summary["results"] *= 8
    section = next(s for s in report.curve_sections([rates, one, eight]) if s.id == "rates-rates")
    assert [row[-1] == "-" for row in section.table[1:]] == [False, True]


def test_a_branch_is_measured_as_its_run_was(folder: Path) -> None:
    def branch() -> Run:
        return read(folder / "without_0")

    run, other, unmeasured = read(folder / "with_0"), branch(), branch()
    unmeasured.summary["epochs"][-1]["val_acc"] = None
    assert report.is_branch(run, other) and not report.is_branch(run, unmeasured)
    assert not report.is_branch(run, read(folder / "without_1"))
    for name, value in (("val_batches", 79), ("measured_on", "held-out")):
        other = branch()
        other.summary[name] = value
        assert not report.is_branch(run, other)
    sections = report.classifier_sections([run, branch(), branch()], "absent")
    assert [len(section.table) for section in sections if section.id == "drop"] == [2]  # told once


def test_what_is_measured_is_of_the_end_of_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "with_0", tmp_path / "run")
    run = read(tmp_path / "run")
    kept = json.loads((run.path / "gap.json").read_text())
    last = run.path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert measure.measured(run.path, run.summary, "gap", "absent") == kept  # without a checkpoint
    for content in ("{", "[1]", json.dumps(kept | {"epoch": 1})):
        (run.path / "gap.json").write_text(content)
        assert measure.measured(run.path, run.summary, "gap", "absent") == {}
    monkeypatch.setattr(measure, "measure_noise", lambda net, data: {"noise": 0.5})
    (run.path / "noise.json").write_text(json.dumps({"noise": 0.7, "epoch": 1, "train_loss": 1.0}))
    assert measure.measured(run.path, run.summary, "noise", "absent")["noise"] == 0.5
    assert json.loads((run.path / "noise.json").read_text())["train_loss"] == run.summary["epochs"][-1]["train_loss"]
    run.summary["epochs"][0]["train_loss"] += 1
    with pytest.raises(UserError, match="has gone on"):
        measure.network(run.path, run.summary["epochs"], 2)


def test_the_gap_of_fast_has_no_steps_that_were_measured_with_other_augmentation(folder: Path) -> None:
    run = Run(Path("nowhere"), read(folder / "with_0").summary | {"recipe": "fast"})
    section = report.gap_section([run], "absent")
    assert section.table[0] == ["run", "running", "probe", "test"] and "augments in its own way" in section.answer[-1]


# The answers


def rows(*accuracies: float, lr: float = 0.01, straightness: float = 0.05) -> list[dict[str, Any]]:
    """Five epochs at 0.1, the others at ``lr``."""
    return [
        {"epoch": i, "lr": 0.1 if i < 5 else lr, "val_acc": a, "val_loss": 1 - a, "path": 10.0 if i < 5 else 1.0,
         "displacement": straightness * (10 if i < 5 else 1), "gradient": 1.0, "mean_gradient": 0.1}
        for i, a in enumerate(accuracies)
    ]  # fmt: skip


def test_an_interval_of_students() -> None:
    # 1, 2, 3: mean 2, deviation 1, and 4.303 / sqrt(3) = 2.484
    shown = mean_and_interval([1, 2, 3])
    assert (shown["mean"], shown["sd"]) == (2, 1) and shown["low"] == pytest.approx(2 - 2.484, abs=1e-3)
    assert mean_and_interval([5])["low"] is None


def test_what_the_drop_did_and_what_is_not_shown() -> None:
    fell = [rows(0.5, 0.6, 0.7, 0.6, 0.7 + d, 0.8 + d, 0.81 + d) for d in (0, 0.01, 0.02)]
    stayed = [rows(0.5, 0.6, 0.7, 0.6, 0.7 + d, 0.72 + d, 0.7 + d, lr=0.1) for d in (0, 0.01, 0.02)]
    answer = what_the_drop_did(fell, stayed)
    assert answer["change"]["mean"] == pytest.approx(0.1) and answer["effect"]["mean"] == pytest.approx(0.08)
    assert answer["final_effect"]["mean"] == pytest.approx(0.11)
    assert answer["change_loss"]["mean"] == pytest.approx(-0.1)
    assert answer["effect_loss"]["mean"] == pytest.approx(-0.08)
    # Two values lie on a line: only parts of three epochs or more scatter about theirs, 0.5 0.6 0.7 0.6 0.7+d about
    # 0.54+0.2d, 0.58+0.1d, ...: with d = 0 slope 0.04, remainders -0.04 0.02 0.08 -0.06 0, their squares' sum 0.012.
    assert what_the_drop_did(fell[:1], [])["before"]["scatter"] == pytest.approx((0.012 / 3) ** 0.5)
    assert answer["after"]["scatter"] is None and answer["after_without"]["scatter"] is None
    text = " ".join(drop_sentences(answer, 400))
    assert "At once: that the fall raises accuracy is shown" in text
    assert "At the end: that the fall raises accuracy is shown" in text
    assert "independent random steps 5.0 %" in text and "random steps with a drift" in text and "valley" not in text
    undone = what_the_drop_did([rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81, straightness=0.03)], [])
    text = " ".join(drop_sentences(undone, 400))
    assert "undo each other" in text and "valley" in text and "noise was not measured" in text
    text = " ".join(drop_sentences(undone, 400, "test", [0.9, 0.7]))
    assert "80 % of a batch's gradient, by squared length, is noise" in text and "(mean of 2 seeds)" in text
    assert "most of a gradient is chance" in text and "not measured" not in text
    text = " ".join(drop_sentences(undone, 400, "test", [0.4]))
    assert "40 % of a batch's gradient" in text and "is chance" not in text and "valley" in text
    assert "100 % of a batch's gradient" in " ".join(drop_sentences(undone, 400, "test", [1.02]))
    straight = " ".join(drop_sentences(what_the_drop_did([rows(*[0.5] * 5, 0.8, straightness=0.9)], []), 400))
    assert "mostly onwards" in straight and "valley" not in straight
    for effects, verdict, fits_a_valley in (
        ([0.08, 0.081, 0.079], "At once: that the fall raises accuracy is shown", True),
        ([0.08, -0.08, 0.01], "At once: that the fall raises accuracy is not shown", False),
        ([-0.08, -0.081, -0.079], "At once: that the fall lowers accuracy is shown", False),
        ([0.08], "At once: one seed cannot", True),
    ):
        stay = [rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8 - effect, 0.7, lr=0.1) for effect in effects]
        same = [rows(0.5, 0.6, 0.7, 0.6, 0.7, 0.8, 0.81, straightness=0.03) for _ in effects]
        text = " ".join(drop_sentences(what_the_drop_did(same, stay), 400))
        assert verdict in text and ("valley" in text) == fits_a_valley
    fell_or_rose = [rows(0.5, 0.6, 0.7, 0.6, 0.7, a, a, straightness=0.03) for a in (0.6, 0.9)]
    assert "valley" not in " ".join(drop_sentences(what_the_drop_did(fell_or_rose, []), 400))
    assert "not known" in " ".join(drop_sentences(what_the_drop_did(fell, []), 400))


def test_the_gap_taken_apart_adds_up() -> None:
    parts = {"running": 0.82, "batch_norm": 0.84, "augmented": 0.83, "probe": 0.86, "test": 0.81}
    told = gap_sentences([parts])
    steps = [float(line.split(" ")[0]) for line in told[1:]]
    assert steps == [2.0, -1.0, 3.0, -5.0] and sum(steps) == pytest.approx(100 * (parts["test"] - parts["running"]))
    whole = {name: parts[name] for name in ("running", "probe", "test")}  # where a checkpoint is missing
    assert [line.split(" ")[0] for line in gap_sentences([whole])[1:]] == ["+4.0", "-5.0"]
    other = parts | {"batch_norm": 0.82}  # 2 and 0: mean 1, deviation sqrt(2), 12.706 * sqrt(2) / sqrt(2) = 12.7
    two = gap_sentences([parts, other])
    assert "+1.0 points (mean of 2 seeds, 95 % interval -11.7 to +13.7)" in two[1]
    assert [line.endswith("The interval holds 0.") for line in two[1:]] == [True, True, False, False]
    assert "The interval holds 0." not in " ".join(told)  # one seed has none


# The page in a browser


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_reads_well_on_a_phone_and_a_desktop_in_light_and_dark(
    folder: Path, browser_binaries: tuple[str, str], tmp_path: Path, scheme: str, width: int
) -> None:
    chromium, chromedriver = browser_binaries
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     f"--user-data-dir={tmp_path}/profile"):  # fmt: skip
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(executable_path=chromedriver))
    try:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((folder / "report.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width  # nothing sticks out
        images = browser.find_elements(By.TAG_NAME, "img")
        assert len(images) >= 4
        for image in images:
            assert browser.execute_script("return arguments[0].naturalWidth", image) > 300
        shown = browser.execute_script("return document.querySelector('img').currentSrc")
        dark = browser.find_element(By.TAG_NAME, "source").get_attribute("srcset")
        assert (shown == dark) == (scheme == "dark")
        picture = imread(io.BytesIO(browser.get_screenshot_as_png()))[..., :3]
        assert (picture.mean() > 0.6) == (scheme == "light")
        browser.save_screenshot(str(folder / f"report-{scheme}-{width}.png"))
    finally:
        browser.quit()
