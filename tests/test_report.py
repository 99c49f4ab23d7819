"""scripts/report.py and the sections of analysis/: every number of the page is computed again from the runs' files."""

import html
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import launch
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from analysis import drop, measure
from analysis.gap import STEPS, gap_numbers
from analysis.measure import measured, network_after
from analysis.report import Section, make_sections, render
from analysis.runs import Run, is_branch
from analysis.statistics import mean_ci
from cli.command import UsageError
from scripts import report
from scripts.report import read_runs

ROOT = Path(__file__).parents[1]
IN_DOCS = ROOT / "docs" / "report"  # whole runs on CIFAR-10, without their checkpoints
CLASSIFIER = (
    *("cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", "4", "--limit_train_batches", "4"),
    *("--limit_val_batches", "2", "--limit_test_batches", "2", "--batch_size", "16", "--probe_train", "true"),
)
FEW = 64  # images to measure, instead of thousands
T = {2: 12.706, 3: 4.3027}  # Student's t of so many seeds, two-sided 95 %


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
    script(folder, *CLASSIFIER, "--milestones", "{2: 0.01}", "--run_dir", "with_0")
    branch = ("--ckpt_path", "with_0/checkpoints/end_of_epoch1.ckpt")
    script(folder, *CLASSIFIER, "--milestones", "{2: 0.1}", *branch, "--run_dir", "without_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["report.py", ".", "--animation", "fit.gif", "--animation_lr", "0.01"])
        patch.setattr(measure, "TRAIN_SUBSET", FEW)
        for name in ("NOISE_BATCHES", "RENEWAL_BATCHES"):
            patch.setattr(drop, name, 4)
        make_sections(read_runs([folder / "with_0", folder / "without_0"]), "")  # measures
        for name in ("with", "without"):
            add_seed(folder, name)
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
    content["test_acc"] += 0.05
    (folder / f"{name}_1" / "summary.json").write_text(json.dumps(content))


@pytest.fixture(scope="module", params=["made here", "in docs"])
def reported(request: pytest.FixtureRequest) -> Path:
    """A folder with runs' summaries and their report.html."""
    return IN_DOCS if request.param == "in docs" else request.getfixturevalue("folder")


def summary(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "summary.json").read_text())


def seeds(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("with_") for path in folder.glob("with_*"))


class Page(HTMLParser):
    """Its sections: the text without figures, and the table's rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[dict[str, Any]] = []
        self.is_in_figure = self.is_in_cell = False
        self.feed(text)
        for section in self.sections:
            section["rows"] = [[" ".join(cell.split()) for cell in row] for row in section["rows"]]
            section["text"] = " ".join(section["text"].split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_in_figure |= tag == "figure"
        if tag == "section":
            self.sections.append({"id": dict(attrs)["id"], "text": "", "rows": []})
        elif tag == "tr":
            self.sections[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.is_in_cell = True
            self.sections[-1]["rows"][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.is_in_figure &= tag != "figure"
        self.is_in_cell &= tag != "table"

    def handle_data(self, data: str) -> None:
        if self.is_in_cell:
            self.sections[-1]["rows"][-1][-1] += data
        elif self.sections and not self.is_in_figure:
            self.sections[-1]["text"] += data


@pytest.fixture(scope="module")
def sections(reported: Path) -> list[dict[str, Any]]:
    return Page((reported / "report.html").read_text(encoding="utf-8")).sections


def section(sections: list[dict[str, Any]], kind: str, subject: str = "") -> dict[str, Any]:
    return next(s for s in sections if s["id"].startswith(f"{kind}-") and f"{subject})" in s["text"])


def interval(values: list[float]) -> tuple[float, float]:
    mean, half = statistics.mean(values), T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def test_more_epochs(sections: list[dict[str, Any]], reported: Path) -> None:
    content = summary(reported, "rates")
    shown = section(sections, "epochs", content["function"])
    for row, cells in zip(content["over_seeds"], shown["rows"][1:], strict=True):
        # the medians of eight results, from the single results
        results = [r for r in content["results"] if (r["lr"], r["epochs"]) == (row["lr"], row["epochs"])]
        expected = [statistics.median(r[name] for r in results) for name in ("train_mse", "true_mse", "r2")]
        assert cells[:2] == [f"{row['lr']:g}", f"{row['epochs']:,}"]
        assert [float(cells[i]) for i in (2, 3, 5)] == pytest.approx(expected, rel=5e-3)
        low, high = map(float, cells[4].split(" to "))
        assert sum(low <= r["true_mse"] * 1.01 and r["true_mse"] <= high * 1.01 for r in results) >= 4
    hurts = [f"{part['lr']:g}" for part in content["more_training"] if part["verdict"] == "hurts"]
    assert ("U-shaped at learning rate " + ", ".join(hurts) + "." in shown["text"]) == bool(hurts)
    best = min(content["over_seeds"], key=lambda row: row["true_mse"]["median"])
    last = [row for row in content["over_seeds"] if row["lr"] == best["lr"]][-1]
    is_lower = last["train_mse"]["median"] < best["train_mse"]["median"]
    assert ("overfitting" in shown["text"]) == (is_lower and f"{best['lr']:g}" in hurts)


def test_learning_rates(sections: list[dict[str, Any]], reported: Path) -> None:
    content = summary(reported, "rates")
    shown, results = section(sections, "lr", content["function"]), content["results"]
    counts, lrs = (list(dict.fromkeys(r[name] for r in results)) for name in ("epochs", "lr"))

    def median(lr: float, epochs: int) -> float:
        return statistics.median(r["true_mse"] for r in results if (r["lr"], r["epochs"]) == (lr, epochs))

    lowest = min(median(lr, epochs) for lr in lrs for epochs in counts)
    for lr, cells in zip(lrs, shown["rows"][1:], strict=True):
        best = min(counts, key=lambda epochs: median(lr, epochs))
        assert (cells[0], cells[3]) == (f"{lr:g}", f"{best:,}")
        assert [float(cells[1]), float(cells[2])] == pytest.approx([median(lr, 1000), median(lr, best)], rel=5e-3)
        reached = [f"after {epochs:,} epochs" for epochs in counts if median(lr, epochs) <= 1.5 * lowest]
        assert f"{(reached or ['never'])[0]} with learning rate {lr:g}" in shown["text"]
    best_lr = min(lrs, key=lambda lr: median(lr, 1000))
    assert f"After 1,000 epochs the error is lowest with learning rate {best_lr:g}:" in shown["text"]


def test_settings(sections: list[dict[str, Any]], reported: Path) -> None:
    content = summary(reported, "own")
    for choice, cells in zip(content["auto"], section(sections, "settings")["rows"][1:], strict=True):
        assert (cells[0], cells[1], cells[3]) == (
            *(f"{choice['lr']:g}", f"{choice['best_epochs']:,}", f"{choice['held_out_epochs']:,}"),
        )
        assert float(cells[2]) == pytest.approx(choice["best_true_mse"], rel=5e-3)
        assert float(cells[4]) == pytest.approx(choice["held_out_true_mse"], rel=5e-3)


def test_the_training_runs(sections: list[dict[str, Any]], reported: Path) -> None:
    runs = [summary(reported, f"with_{seed}") for seed in seeds(reported)]
    shown = section(sections, "training", f"recipe lab on {'CIFAR-10' if reported == IN_DOCS else 'SYNTHETIC images'}")
    for epoch, cells in enumerate(shown["rows"][1:]):
        assert cells[:2] == [str(epoch), f"{runs[0]['epochs'][epoch]['lr']:g}"]
        for name, cell in zip(("train_loss", "train_acc", "val_loss", "val_acc"), cells[2:], strict=True):
            values = [run["epochs"][epoch][name] * (100 if name.endswith("acc") else 1) for run in runs]
            assert [*map(float, cell.split(" ± "))] == pytest.approx(
                [statistics.mean(values), statistics.stdev(values)], abs=6e-3
            )
    tested = [100 * run["test_acc"] for run in runs]
    assert f"The test accuracy is {statistics.mean(tested):.2f} % ({len(runs)} seeds, standard" in shown["text"]
    assert f"95 % CI {interval(tested)[0]:.1f}"[:-1] in shown["text"]


def test_the_drop(sections: list[dict[str, Any]], reported: Path) -> None:
    shown = section(sections, "drop")
    cells = {row[0]: [*map(float, row[1:-1])] for row in shown["rows"][1:]}
    effects, final, straightness = [], [], []
    for seed in seeds(reported):
        rows, others = (summary(reported, f"{name}_{seed}")["epochs"] for name in ("with", "without"))
        at = [row["lr"] for row in rows].index(0.01)
        effects.append(100 * (rows[at]["val_acc"] - others[at]["val_acc"]))
        final.append(100 * (rows[-1]["val_acc"] - others[-1]["val_acc"]))
        straightness.append(100 * statistics.mean(row["displacement"] / row["path"] for row in rows[:at]))
    assert cells["effect at once [pp]"] == pytest.approx(effects, abs=6e-3)
    assert cells["effect at the end [pp]"] == pytest.approx(final, abs=6e-3)
    name = "distance between the ends of the path before the drop [% of the path]"
    assert cells[name] == pytest.approx(straightness, abs=6e-3)
    low, high = interval(effects)
    assert ("do not show that the drop" in shown["text"]) == (low < 0 < high)
    assert f"{statistics.mean(final):+.1f} pp ({len(final)} seeds, 95 % CI" in shown["text"]
    # measured from the checkpoints, by report.py: those of docs/report are gone
    kept = [json.loads((reported / f"with_{seed}" / "renewed.json").read_text()) for seed in seeds(reported)]
    renewed = [100 * (each["with"] - each["without"]) for each in kept]
    assert cells["effect at once, running averages renewed [pp]"] == pytest.approx(renewed, abs=6e-3)
    noises = [json.loads((reported / f"with_{seed}" / "noise.json").read_text())["noise"] for seed in seeds(reported)]
    expected = [min(100, 100 * noise) for noise in noises]
    assert cells["gradient-noise fraction before the drop [%]"] == pytest.approx(expected, abs=6e-3)
    if reported == IN_DOCS:
        assert "raises test accuracy at once by +8.9 pp (3 seeds, 95 % CI +0.2 to +17.5), most of it" in shown["text"]
        assert "it is +2.6 pp" in shown["text"] and "92 % of single steps cross a valley" in shown["text"]


def test_the_gap(sections: list[dict[str, Any]], reported: Path) -> None:
    shown = section(sections, "gap")
    assert [row[0] for row in shown["rows"][1:]] == list(STEPS.values())
    columns = list(zip(*(row[1:-1] for row in shown["rows"][1:]), strict=True))
    for seed, column in zip(seeds(reported), columns, strict=True):
        run, kept = summary(reported, f"with_{seed}"), json.loads((reported / f"with_{seed}" / "gap.json").read_text())
        last = run["epochs"][-1]
        values = [last["train_acc"], kept["batch_norm"], kept["augmented"], last["probe_acc"], run["test_acc"]]
        assert [*map(float, column)] == pytest.approx([100 * value for value in values], abs=6e-3)
    means = [statistics.mean(map(float, row[1:-1])) for row in shown["rows"][1:]]
    steps = [float(row[-1].split()[0]) for row in shown["rows"][2:]]
    assert steps == pytest.approx([end - start for start, end in itertools.pairwise(means)], abs=0.02)  # rounded


def test_the_page_needs_no_network_and_has_the_commands(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href|srcset)="(?!#)|url\((?!#)', outside_scripts) and "<script src" not in text
    for path in reported.glob("with_*/summary.json"):
        assert summary(reported, path.parent.name)["command"] in html.unescape(text)


# The command


def test_the_animation_is_of_the_learning_rate_that_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {fit["epochs"] for fit in json.loads((folder / "own" / "curves.json").read_text())["fits"]}
    with Image.open(folder / "fit.gif") as picture:
        assert picture.n_frames == len(counts)  # type: ignore[attr-defined]
    assert (folder / "fit.gif").stat().st_size < 400_000
    monkeypatch.setattr(
        "sys.argv", ["report.py", str(folder), "--animation", str(tmp_path / "a.gif"), "--animation_lr", "0.5"]
    )
    with pytest.raises(UsageError, match="--animation"):
        report.run()
    assert not (tmp_path / "a.gif").exists()


def test_a_report_of_nothing(tmp_path: Path) -> None:
    done = launch.run([str(ROOT / "scripts" / "report.py"), "nowhere"], tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_runs_is_its_finished_ones(tmp_path: Path) -> None:
    for name in ("fit/a", "two_seeds/seed0", "two_seeds/seed1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text('{"settings": {}, "epochs": []}')
    (tmp_path / "two_seeds" / "summary.json").write_text('{"recipe": "lab", "runs": []}')
    (tmp_path / "again").symlink_to("fit")
    found = read_runs([tmp_path / name for name in ("fit", "two_seeds", "again")])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == ["fit/a", "two_seeds/seed0", "two_seeds/seed1"]


@pytest.mark.slow
def test_missing_runs_are_made_and_interrupted_ones_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rates", "with_0", "without_0"):
        shutil.copytree(folder / name, tmp_path / "R_quick" / name)
    (tmp_path / "R_quick" / "without_0" / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", "--quick", "true", "--runs", "R", "--data_root", "absent"])
    commands: list[list[str]] = []

    def run_child(command: list[str]) -> int:
        commands.append(command)
        run_dir = Path(command[-1])
        run_dir.mkdir(exist_ok=True)
        for file in (folder / run_dir.name).glob("*.json"):
            shutil.copy(file, run_dir)
        return 0

    monkeypatch.setattr(report, "run_child", run_child)
    report.run()
    printed = capsys.readouterr().out
    assert printed.count("== python scripts/") == 2
    assert [Path(command[-1]).name for command in commands] == ["own", "without_0"]
    assert "--ckpt_path" not in commands[0] and commands[1][-4:-2] == ["--ckpt_path", "last"]
    assert "These were short runs" in (tmp_path / "report.html").read_text(encoding="utf-8")


# Which runs belong together


def run_of(folder: Path, name: str, **settings: Any) -> Run:
    run = Run(folder / name, summary(folder, name))
    run.summary["settings"].update(settings)
    return run


def kinds(*runs: Run) -> list[tuple[str, int]]:
    """The sections of the classifier, each with the number of its runs."""
    return [(s.kind, len(s.facts["runs"])) for s in make_sections(runs, "absent") if s.kind != "training"]


def test_runs_are_told_apart_by_seed_settings_and_origin(folder: Path) -> None:
    both = [run_of(folder, "with_0"), run_of(folder, "with_1")]
    assert kinds(*both) == [("drop", 2), ("gap", 2)]
    assert kinds(*both, run_of(folder, "with_0")) == [("drop", 2), ("gap", 2)]  # the same run twice
    moved = run_of(folder, "with_1", data_root="elsewhere", save_every_n_steps=7, enable_progress_bar=False)
    assert kinds(both[0], moved) == [("drop", 2), ("gap", 2)]
    for other in (run_of(folder, "with_1", precision="bf16-mixed"), run_of(folder, "with_1")):
        other.summary["origin"] = {"settings": {}, "epochs": 1} if other.summary == both[1].summary else None
        assert kinds(both[0], other) == [("drop", 1), ("gap", 1)] * 2
    cycle = run_of(folder, "with_0", milestones=None, warmup_fraction=0.2)
    assert kinds(cycle) == [("gap", 1)]


def test_a_branch_continues_its_run_with_the_same_settings(folder: Path) -> None:
    run, branch = run_of(folder, "with_0"), run_of(folder, "without_0")
    assert is_branch(run, branch) and not is_branch(run, run) and not is_branch(run, run_of(folder, "without_1"))
    assert kinds(run, branch, run_of(folder, "without_0")) == [("drop", 1), ("gap", 1)]
    assert is_branch(run, run_of(folder, "without_0", max_epochs=100, data_root="elsewhere"))
    assert not is_branch(run, run_of(folder, "without_0", weight_decay=0.1))
    for name, value in (("origin", None), ("epochs", branch.summary["epochs"][:-1])):
        other = run_of(folder, "without_0")
        other.summary[name] = value  # type: ignore[index]
        assert not is_branch(run, other)
    for name, value in (("val_acc", None), ("lr", 0.01)):
        other = run_of(folder, "without_0")
        other.summary["epochs"][-1][name] = value
        assert not is_branch(run, other)
    branch.summary["origin"]["epochs"] = 1  # it left the run earlier
    assert not is_branch(run, branch)


# What is measured of the weights


def test_what_is_measured_is_of_the_end_of_the_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "with_0", tmp_path / "run")
    run = Run(tmp_path / "run", summary(tmp_path, "run"))
    calls = []

    def measure_something(nets: Any, data: Any) -> dict[str, Any]:
        calls.append((len(nets), len(data.train[1]), len(data.subset[1]), len(data.validation[1])))
        return {"something": 1}

    found = [measured("x", [(run, 2), (run, 4)], "absent", measure_something) for _ in range(2)]
    end = {"epoch": 3, "train_loss": run.summary["epochs"][-1]["train_loss"]}
    assert found == [end | {"something": 1}] * 2 and calls == [(2, 10_000, 5_000, 32)]  # measured once
    run.summary["epochs"][-1]["train_loss"] += 1  # extended: what was kept, and the last checkpoint, are of before
    assert network_after(run, 2) and not network_after(run, 4)
    assert measured("x", [(run, 4)], "absent", measure_something) == {}
    run = Run(tmp_path / "run", {**summary(tmp_path, "run"), "data": "cifar10"})
    assert measured("y", [(run, 4)], str(tmp_path), measure_something) == {}  # no images
    run.summary["settings"]["image_sizes"] = {"0.0": 20}
    assert network_after(run, 4) is None
    (tmp_path / "run" / "gap.json").unlink()
    assert list(gap_numbers(run, "absent")) == ["epoch_average", "probe", "test"]


# The words


def words(kind: str, **facts: Any) -> str:
    """The text of a page with this section alone."""
    nothing: dict[str, Any] = {"runs": [], "about": {"versions": "", "machine": ""}, "quick": False, "vega": ""}
    section = Section(kind, {"subject": "<b>", **facts}, {})
    return Page(render(sections=[section], picture=str, **nothing)).sections[0]["text"]


def test_what_diverged(tmp_path: Path) -> None:
    flags = ("--function", "exp(20*x)", "--lr", "1e30", "1e31", "--epochs", "10", "50", "auto", "--run_dir", "run")
    printed = script(tmp_path, "fit.py", *flags)
    assert "Learning rate 1e+30: diverged." in printed and " inf" not in printed and "nan" not in printed
    epochs, lr, settings = make_sections([Run(tmp_path / "run", summary(tmp_path, "run"))], "absent")
    assert not any([*epochs.charts.values(), *lr.charts.values()])
    assert "Learning rate 1e+30: diverged" in words("epochs", **epochs.facts)
    assert "Training diverged at every learning rate." in words("lr", **lr.facts)
    assert "diverged" in words("settings", **settings.facts)


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([8.0, 8.1, 7.9], "from 0.1 to 0.01 raises test accuracy at once by +8.0 pp (3 seeds"),
        ([-8.0, -8.1, -7.9], "lowers test accuracy at once by -8.0 pp"),
        ([8.0, -8.0, 1.0], "These runs do not show that the drop"),
        ([8.0], "One seed does not show that the drop"),
    ],
)
def test_the_words_of_the_drop(effects: list[float], expected: str) -> None:
    facts: dict[str, Any] = {
        "runs": [Run(Path("with"), {})] * len(effects),
        "numbers": [],
        "lrs": [0.1, 0.01],
        "random": 5.0,
    }
    facts["summary"] = {"measured_on": "test"}
    mean = {"change": mean_ci([10.0]), "effect": mean_ci(effects), "final_effect": mean_ci(effects)}
    assert expected in words("drop", **facts, mean=mean)
    most, part = mean_ci([2.0, 2.0, 2.1]), mean_ci([6.0, 6.0, 6.1])
    if expected.startswith("from"):
        assert "most of it through batch normalization" in words("drop", **facts, mean={**mean, "renewed_effect": most})
        assert "part of it through batch normalization" in words("drop", **facts, mean={**mean, "renewed_effect": part})
    alone = words("drop", **facts, mean={"change": mean["change"], "straightness": mean_ci([3.0])})
    assert "changes by +10.0 pp (one seed); how much of it the drop causes is not known" in alone
    assert "At 0.1 the weights oscillate: their path in an epoch ends 3.0 %" in alone and "chance" not in alone


def test_what_a_user_wrote_is_escaped_on_the_page() -> None:
    summary = {"recipe": "<b>", "measured_on": "test", "settings": {"limit_train_batches": 8}, "train_batches": 8}
    text = words("training", summary=summary, runs=[], test={}, epochs=[])
    assert "epoch by epoch? (<b>) The network was not tested. Each epoch had only 8 batches" in text


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
        WebDriverWait(browser, 60).until(
            lambda b: len(b.find_elements(By.CSS_SELECTOR, ".vega-embed svg")) == charts > 9
        )


WIDER = """
document.querySelectorAll("details").forEach((part) => (part.open = true));
return [...document.querySelectorAll(".table, figure, svg, pre, h2, p, li")].filter(
  (part) => part.getBoundingClientRect().right > document.documentElement.clientWidth
).map((part) => part.tagName + part.textContent.slice(0, 80))"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_reads_well_on_a_phone_and_a_desktop_in_light_and_dark(
    reported: Path, browser: webdriver.Chrome, scheme: str, width: int
) -> None:
    show(browser, reported / "report.html", width, scheme)
    assert browser.execute_script(WIDER) == []
    colors = browser.execute_script(
        "return ['.role-axis-label text', 'body'].map((part) => getComputedStyle(document.querySelector(part)))"
        ".flatMap((style) => [style.fill, style.color, style.backgroundColor])"
    )
    assert colors[0] == colors[4]  # the ink of a chart is that of the page
    assert (int(re.findall(r"\d+", colors[5])[0]) > 127) == (scheme == "light")
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert not browser.find_elements(By.CSS_SELECTOR, "details:not([open])")  # printed tables are whole
    show(browser, reported / "report.html", width, scheme, script=False)
    assert all(pic.size["width"] <= width for pic in browser.find_elements(By.CSS_SELECTOR, ".chart svg"))


@pytest.mark.slow
def test_the_slider_chooses_the_fitted_curve_and_the_pointer_shows_numbers(
    folder: Path, browser: webdriver.Chrome
) -> None:
    show(browser, folder / "report.html", 390)
    growth = json.loads((folder / "rates" / "curves.json").read_text())
    counts = sorted({fit["epochs"] for fit in growth["fits"]})
    figure = browser.find_elements(By.CSS_SELECTOR, "section[id^=epochs] figure:first-child")[1]  # own, then rates
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    for lr in (0.1, 0.01):
        figure.find_element(By.CSS_SELECTOR, f"input[type=radio][value='{lr:g}']").click()
        for key, epochs in ((Keys.HOME, counts[0]), (Keys.ARROW_RIGHT, counts[1]), (Keys.END, counts[-1])):
            slider.send_keys(key)
            (fit,) = [fit for fit in growth["fits"] if (fit["lr"], fit["epochs"]) == (lr, epochs)]
            label = f"learning rate {lr:g}, {epochs:,} epochs, MSE against f: {fit['true_mse']:.3g}"
            WebDriverWait(browser, 60).until(
                lambda _, label=label: label in figure.find_element(By.TAG_NAME, "svg").text
            )
    shown, middle = hovered(browser, figure), len(growth["x"]) // 2
    assert float(shown["fitted curve"]) == pytest.approx(fit["fit"][middle], rel=1e-3)
    assert float(shown["ground truth"]) == pytest.approx(growth["truth"][middle], rel=1e-3)
    assert float(shown["quartiles of the seeds"]) == pytest.approx(fit["low"][middle], rel=1e-3)
    bars = browser.find_elements(By.CSS_SELECTOR, "section[id^=gap] .mark-rect path")
    assert len(bars) == 6  # four steps from training to test accuracy, and the two ends
    assert len(browser.find_elements(By.CSS_SELECTOR, "section[id^=drop] figure")) == 4


def hovered(browser: webdriver.Chrome, figure: WebElement) -> dict[str, str]:
    """What the tooltip says with the pointer in the middle of the plot: {name: value}"""
    plot = figure.find_element(By.CSS_SELECTOR, "svg .background")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    for x in (-2, 0):  # the pointer must move for the browser to notice it
        ActionChains(browser).move_to_element_with_offset(plot, x, 0).perform()
    tooltip = WebDriverWait(browser, 60).until(lambda b: b.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible"))
    rows = [row.find_elements(By.TAG_NAME, "td") for row in tooltip.find_elements(By.TAG_NAME, "tr")]
    return {key.text.strip(" :"): value.text.replace("\u2212", "-") for key, value in rows}
