"""scripts/report.py and the sections of analysis/: every number of the page is computed again from the runs' files."""

import html
import itertools
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, succeed
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from short_runs import CIFAR, summary

from analysis import drop, gap
from analysis.files import read_json
from analysis.gap import STEPS, gap_numbers
from analysis.measure import measured, network_after
from analysis.report import Section, make_sections, render
from analysis.runs import FinishedRun, is_branch
from analysis.statistics import mean_ci
from cli.command import UsageError
from scripts.report import read_runs

RUNS = ROOT / "docs" / "report"  # whole runs on CIFAR-10, without their checkpoints
Parts = dict[str, dict[str, Any]]


def parts(page: str | list[Section]) -> Parts:
    """{id of a section of the page: its text without figures, and the table's rows of cells}"""
    if not isinstance(page, str):
        nothing = {"vega": "", "picture": lambda chart: ""}
        page = render(sections=page, runs=(), **nothing)

    def plain(part: str) -> str:
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())

    found = {}
    for name, part in re.findall(r'<section id="(\w+-\d+)">(.*?)</section>', page, re.DOTALL):
        words, table = re.sub(r"<figure>.*?</figure>", "", part, flags=re.DOTALL).split("<table>")
        rows = [[plain(cell) for cell in re.split("<t[dh]>", row)[1:]] for row in table.split("<tr>")[1:]]
        found[name] = {"text": plain(words), "rows": rows}
    return found


@pytest.fixture(scope="module")
def sections() -> Parts:
    """The page of the runs in docs/report."""
    return parts(make_sections(read_runs([RUNS]), "absent"))


def test_curve_fits(sections: Parts) -> None:
    content, errors = summary(RUNS / "rates"), {}
    shown = sections["epochs-4"]
    for row, cells in zip(content["over_seeds"], shown["rows"][1:], strict=True):
        # the medians of eight results, from the single results
        results = [r for r in content["results"] if (r["lr"], r["epochs"]) == (row["lr"], row["epochs"])]
        expected = [statistics.median(r[name] for r in results) for name in ("train_mse", "true_mse", "r2")]
        assert cells[:2] == [f"{row['lr']:g}", f"{row['epochs']:,}"]
        assert [float(cells[i]) for i in (2, 3, 5)] == pytest.approx(expected, rel=5e-3)
        low, high = map(float, cells[4].split(" to "))
        assert sum(low <= r["true_mse"] * 1.01 and r["true_mse"] <= high * 1.01 for r in results) >= 4
        errors[row["lr"], row["epochs"]] = expected[1]
    assert "U-shaped at learning rate 0.1, 0.01, 0.001." in shown["text"] and "overfitting" in shown["text"]
    shown = sections["lr-5"]
    for part, cells in zip(content["more_training"][::-1], shown["rows"][1:], strict=True):  # in ascending rates
        assert cells[:3] == [f"{part['lr']:g}", f"{errors[part['lr'], 1000]:.3g}", f"{part['best_epochs']:,}"]
        assert cells[3] == f"{part['ratio']:.2f} ({part['low']:.2f} to {part['high']:.2f})"
        reached = [e for (lr, e), error in errors.items() if lr == part["lr"] and error <= 1.5 * min(errors.values())]
        first = f"at {min(reached):,} epochs with learning rate" if reached else "never with"
        assert f"{first} {part['lr']:g}" in shown["text"]
    assert "At 1,000 epochs the MSE is lowest with learning rate 0.01: 0.838." in shown["text"]
    assert "A smaller learning rate needs more epochs for the same fit: an MSE of" in shown["text"]
    names = ("lr", "best_epochs", "best_true_mse", "held_out_epochs", "held_out_true_mse")
    for choice, cells in zip(summary(RUNS / "own")["auto"], sections["settings-3"]["rows"][1:], strict=True):
        expected = [choice[name] for name in names]
        assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(expected, rel=5e-3)


def test_the_training_runs(sections: Parts) -> None:
    runs = [summary(RUNS / f"with_{seed}") for seed in range(3)]
    shown = sections["training-7"]
    for epoch, cells in enumerate(shown["rows"][1:]):
        assert cells[:2] == [str(epoch), f"{runs[0]['epochs'][epoch]['lr']:g}"]
        for name, cell in zip(("train_loss", "train_acc", "val_loss", "val_acc"), cells[2:], strict=True):
            values = [run["epochs"][epoch][name] * (100 if name.endswith("acc") else 1) for run in runs]
            expected = [statistics.mean(values), statistics.stdev(values)]
            digits = 1 if name.endswith("acc") else 3
            assert cell == " ± ".join(f"{value:.{digits}f}" for value in expected)
    ci = mean_ci([100 * run["test_acc"] for run in runs])
    assert f"is 81.6 % (3 seeds, standard deviation 0.4 pp, 95 % CI {ci.low:.1f} to {ci.high:.1f} %)" in shown["text"]


def test_the_drop(sections: Parts) -> None:
    shown, expected = sections["drop-8"], []
    for seed in range(3):
        rows, others = (summary(RUNS / f"{name}_{seed}")["epochs"] for name in ("with", "without"))
        renewed, lines = (read_json(RUNS / f"with_{seed}" / f"{file}.json") for file in ("renewed", "lines"))
        crosses = statistics.mean(min(loss[3:6]) < min(loss[2], loss[6]) for loss in lines["steps"])  # 2: start, 6: end
        expected.append({
            "effect at once [pp]": 100 * (rows[5]["val_acc"] - others[5]["val_acc"]),
            "effect at once, running averages renewed [pp]": 100 * (renewed["with"] - renewed["without"]),
            "effect at the end [pp]": 100 * (rows[-1]["val_acc"] - others[-1]["val_acc"]),
            "change of the training loss in the epoch of the drop [nats]": lines["with"][5] - lines["with"][1],
            "single steps that cross a valley, at the learning rate before the drop [%]": 100 * crosses,
        })  # fmt: skip
    cells = {row[0]: [*map(float, row[1:-1])] for row in shown["rows"][1:]}
    for title in expected[0]:
        digits = 3 if "nats" in title else 1
        assert cells[title] == [pytest.approx(each[title], abs=0.51 * 10**-digits) for each in expected]
    assert shown["text"].index("Most of the effect is batch normalization: at 0.1") < shown["text"].index("raises")
    assert "at once by +8.9 pp (3 seeds, 95 % CI +0.2 to +17.5); with running averages renewed" in shown["text"]
    assert "by +2.6 pp" in shown["text"] and "The rest: at 0.1, 92 % of single steps cross a valley" in shown["text"]
    assert "At the end of training the effect is +5.2 pp" in shown["text"] and "chance" in shown["text"]


def test_the_gap(sections: Parts) -> None:
    _, *rows = sections["gap-9"]["rows"]
    assert [row[0] for row in rows] == list(STEPS.values())
    for seed in range(3):
        run, kept = summary(RUNS / f"with_{seed}"), read_json(RUNS / f"with_{seed}" / "gap.json")
        last = run["epochs"][-1]
        values = [last["train_acc"], kept["batch_norm"], kept["augmented"], last["probe_acc"], run["test_acc"]]
        assert [float(row[seed + 1]) for row in rows] == pytest.approx([100 * value for value in values], abs=0.051)
    means = [statistics.mean(map(float, row[1:-1])) for row in rows]
    steps = [float(row[-1].split()[0]) for row in rows[1:]]
    assert steps == pytest.approx([end - start for start, end in itertools.pairwise(means)], abs=0.2)  # rounded


def test_the_report_in_docs_is_of_this_code(sections: Parts) -> None:
    text = (RUNS / "report.html").read_text(encoding="utf-8")
    shown = parts(text)
    assert [name for name in sections | shown if sections.get(name) != shown.get(name)] == [] and len(text) < 3_000_000
    assert text.count("<figure>") == text.count('<div class="chart"><svg') > 9  # for those who run no scripts
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)  # no network is needed
    assert not re.findall(r'(?:src|href|srcset)="(?!#)|url\((?!#)', outside_scripts) and "<script src" not in text
    assert all(run.summary["command"] in html.unescape(text) for run in read_runs([RUNS]))


def test_a_folder_of_runs_is_its_finished_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        read_runs([RUNS, tmp_path])
    for name in ("fit/a", "two_seeds/seed0", "two_seeds/seed1", "on_another_disk/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text('{"settings": {}, "epochs": []}')
    (tmp_path / "two_seeds" / "summary.json").write_text('{"recipe": "lab", "runs": []}')
    (tmp_path / "again").symlink_to("fit")
    (tmp_path / "two_seeds" / "seed2").symlink_to("../on_another_disk/run")
    runs = read_runs([tmp_path / name for name in ("again", "two_seeds", "fit")])
    assert [run.path.name for run in runs] == ["a", "seed0", "seed1", "seed2"]
    (tmp_path / "fit" / "a" / "summary.json").write_text("{")
    with pytest.raises(OSError, match="no JSON: .*/a/summary.json"):
        read_runs([tmp_path])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_report_makes_missing_runs_and_resumes_others(tmp_path: Path) -> None:
    for name in ("rates", "with_0", "without_0"):
        shutil.copytree(RUNS / name, tmp_path / "runs/report_quick" / name)
    for name in ("pyproject.toml", "requirements.lock"):  # on which the set-up depends
        (tmp_path / name).touch()
    interrupted = tmp_path / "runs/report_quick/without_0"
    (interrupted / "summary.json").rename(interrupted / "config.yaml")

    def commands(*arguments: str) -> list[str]:
        make = ["make", "-n", "-f", str(ROOT / "Makefile"), "report", *arguments]
        text = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return [line.strip() for line in text.replace("\\\n", " ").splitlines() if "scripts/" in line]

    own, without, page = commands("QUICK=1")
    assert own.endswith("--run_dir runs/report_quick/own") and page.endswith("scripts/report.py runs/report_quick")
    assert "--ckpt_path runs/report_quick/with_0/checkpoints/end_of_epoch4.ckpt --run_dir" in without
    assert without.endswith("--run_dir runs/report_quick/without_0 --ckpt_path last")
    whole = commands()
    assert len(whole) == 9 and "100000 --run_dir runs/report/rates" in whole[0] and "limit" not in " ".join(whole)


def run_of(name: str, **settings: Any) -> FinishedRun:
    content = summary(RUNS / name)
    content["settings"] |= settings
    return FinishedRun(RUNS / name, content)


def kinds(*runs: FinishedRun) -> list[tuple[str, int]]:
    """The sections of the classifier, each with the number of its runs."""
    return [(s.kind, len(s.facts["runs"])) for s in make_sections(runs, "absent") if s.kind != "training"]


def test_runs_are_told_apart_by_seed_and_settings() -> None:
    run, seed = run_of("with_0"), run_of("with_1")
    assert kinds(run, seed, run) == [("drop", 2), ("gap", 2)]  # the same run twice
    assert kinds(run, run_of("with_1", data_root="elsewhere", save_every_n_steps=7)) == [("drop", 2), ("gap", 2)]
    assert kinds(run, run_of("with_1", precision="bf16-mixed")) == [("drop", 1), ("gap", 1)] * 2
    assert kinds(run_of("with_0", milestones=None, warmup_fraction=0.2)) == [("gap", 1)]
    assert kinds(run, seed, run_of("without_0")) == [("drop", 1), ("gap", 2)]  # by itself the other shows no effect


def test_a_branch_continues_its_run_with_the_same_settings() -> None:
    run, branch = run_of("with_0"), run_of("without_0")
    assert is_branch(run, branch) and not is_branch(run, run) and not is_branch(run, run_of("without_1"))
    earlier, shorter = branch.summary["origin"] | {"epochs": 4}, branch.epochs[:-1]
    others = [{"origin": None}, {"origin": earlier}, {"epochs": shorter}, {"epochs": [*shorter, run.epochs[-1]]}]
    assert not any(is_branch(run, FinishedRun(branch.path, branch.summary | other)) for other in others)
    assert not is_branch(run, run_of("without_0", weight_decay=0.1))


def test_what_is_measured_is_of_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = "--limit_train_batches 4 --batch_size 16 --limit_test_batches 2 --probe_train true --milestones".split()
    flags = (*CIFAR, *few)
    succeed(tmp_path, *flags, "{1: 0.01}", "--run_dir", "with")
    succeed(tmp_path, *flags, "{1: 0.1}", "--run_dir", "without", "--ckpt_path", "with/checkpoints/end_of_epoch0.ckpt")
    monkeypatch.setattr(gap, "TRAIN_SUBSET", 64)
    for name, few in (("LINE_IMAGES", 8), ("RENEWAL_BATCHES", 2)):
        monkeypatch.setattr(drop, name, few)
    runs = read_runs([tmp_path])
    for _ in range(2):
        _, drops, gaps = make_sections(runs, "absent")
        assert {"renewed_before", "renewed_effect", "crossing", "loss_change_without"} <= drops.facts["mean"].keys()
        assert list(drops.charts) == ["drop", "renewed", "along", "across"]
        assert list(gaps.facts["mean"]) == list(STEPS)
        shutil.rmtree(tmp_path / "without" / "checkpoints", ignore_errors=True)  # what was measured is kept
    run = runs[0]
    assert network_after(run, 1).bn1.num_batches_tracked == 4
    run.epochs[-1]["train_loss"] += 1  # type: ignore[index]  # as if continued: what was kept is of before
    assert measured("gap", [(run, 3)], "absent", lambda nets, data, run: {"a": len(data.train[1])})["a"] == 10_000
    absent = FinishedRun(run.path, run.summary | {"data": "cifar10"})
    assert measured("x", [(absent, 3)], "absent", gap.measure_gap) == {}
    run.summary["epochs"].append(run.epochs[-1])  # the last checkpoint is not of this epoch
    assert list(gap_numbers(run, "absent")) == ["epoch_average", "probe", "test"]


def test_what_diverged(tmp_path: Path) -> None:
    flags = ("--function", "exp(20*x)", "--lr", "1e30", "1e31", "--epochs", "10", "50", "auto", "--run_dir", "run")
    printed = succeed(tmp_path, "fit.py", *flags).stdout
    assert "Learning rate 1e+30: diverged." in printed and " inf" not in printed and "nan" not in printed
    epochs, lr, settings = parts(make_sections(read_runs([tmp_path]), "absent")).values()
    assert "Learning rate 1e+30: diverged" in epochs["text"] and "diverged" in settings["text"]
    assert "Training diverged at every learning rate." in lr["text"]


def test_the_words_of_the_drop() -> None:
    def drop_words(effects: list[float], **more: float) -> str:
        mean = {"change": mean_ci([10.0])} | {name: mean_ci([value]) for name, value in more.items()}
        mean |= {"effect": mean_ci(effects)} if effects else {}
        runs = [run_of("with_0")] * max(1, len(effects))
        facts = {"summary": runs[0].summary | {"recipe": "<b>"}, "runs": runs, "numbers": [], "mean": mean}
        return parts([Section("drop", facts, {})])["drop-1"]["text"]

    raises = drop_words([8.0, 8.1, 7.9], renewed_effect=6.0)
    assert "from 0.1 to 0.01 raises test accuracy at once by +8.0 pp (3 seeds" in raises
    assert "CIFAR-10) Part of the effect is batch normalization: at 0.1" in raises  # first
    assert "lowers test accuracy at once by -8.0 pp" in drop_words([-8.0, -8.1, -7.9])
    assert "These runs do not show that the drop" in drop_words([8.0, -8.0, 1.0])
    assert "One seed does not show that the drop" in drop_words([8.0])
    alone = drop_words([], crossing=75.0, crossing_after=0.0)
    assert "changes by +10.0 pp (one seed); how much of it the drop causes is not known" in alone
    assert "At 0.1, 75 % of single steps cross a valley" in alone and "chance" not in alone
    assert "(recipe <b> on CIFAR-10)" in alone  # what a user wrote is escaped


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    succeed(folder, "report.py", str(RUNS))
    return folder


def show(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    """Opens the page as a phone or a desktop, and waits for its charts."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    charts = len(browser.find_elements(By.TAG_NAME, "figure"))
    WebDriverWait(browser, 60).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".vega-embed svg")) == charts > 9)


WIDER = """
document.querySelectorAll("details").forEach((part) => (part.open = true));
return [...document.querySelectorAll(".table, figure, svg, pre, h2, p, li")].filter(
  (part) => part.getBoundingClientRect().right > document.documentElement.clientWidth
).map((part) => part.tagName + part.textContent.slice(0, 80))"""
COLORS = """const [label, body] = [".role-axis-label text", "body"].map((name) => document.querySelector(name));
return [getComputedStyle(label).fill, getComputedStyle(body).color, getComputedStyle(body).backgroundColor]"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1100, "light")])
def test_it_reads_well(written: Path, browser: webdriver.Chrome, width: int, scheme: str) -> None:
    show(browser, written / "report.html", width, scheme)
    assert browser.execute_script(WIDER) == []
    ink, text, paper = browser.execute_script(COLORS)
    assert ink == text and (int(re.findall(r"\d+", paper)[0]) > 127) == (scheme == "light")
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert not browser.find_elements(By.CSS_SELECTOR, "details:not([open])")  # printed tables are whole


@pytest.mark.slow
def test_the_slider_chooses_the_curve_and_the_pointer_shows_numbers(written: Path, browser: webdriver.Chrome) -> None:
    show(browser, written / "report.html", 390, "light")
    growth = read_json(RUNS / "rates" / "curves.json")
    counts = sorted({fit["epochs"] for fit in growth["fits"]})
    figure = browser.find_elements(By.CSS_SELECTOR, "section[id^=epochs] figure:first-child")[1]  # own, then rates
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    for lr in (0.1, 0.01):
        figure.find_element(By.CSS_SELECTOR, f"input[type=radio][value='{lr:g}']").click()
        for key, epochs in ((Keys.HOME, counts[0]), (Keys.ARROW_RIGHT, counts[1]), (Keys.END, counts[-1])):
            slider.send_keys(key)
            (fit,) = [fit for fit in growth["fits"] if (fit["lr"], fit["epochs"]) == (lr, epochs)]
            label = f"lr {lr:g}, {epochs:,} epochs, MSE against f: {fit['true_mse']:.3g}"
            WebDriverWait(browser, 60).until(lambda _, label=label: label in figure.text)
    plot = figure.find_element(By.CSS_SELECTOR, "svg .background")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    for x in (-2, 0):  # the pointer must move for the browser to notice it
        ActionChains(browser).move_to_element_with_offset(plot, x, 0).perform()
    tooltip = WebDriverWait(browser, 60).until(lambda b: b.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible"))
    rows = [row.find_elements(By.TAG_NAME, "td") for row in tooltip.find_elements(By.TAG_NAME, "tr")]
    tips = {key.text.strip(" :"): float(value.text.replace("\u2212", "-")) for key, value in rows}
    i = min(range(len(growth["x"])), key=lambda i: abs(growth["x"][i] - tips["x"]))
    shown = [tips[name] for name in ("fitted curve", "ground truth f(x)", "lower quartile", "upper quartile")]
    expected = [fit["fit"][i], growth["truth"][i], fit["low"][i], fit["high"][i]]
    assert shown == pytest.approx(expected, rel=5e-3)  # three digits
    bars = browser.find_elements(By.CSS_SELECTOR, "section[id^=gap] .mark-rect path")
    assert len(bars) == 12  # four steps from training to test accuracy, and the two ends: a bar and a tick each
