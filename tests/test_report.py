"""scripts/report.py and the sections of analysis/: every number of the page is computed again from the runs' files."""

import html
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, assert_refused, command, succeed
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from short_runs import summary

from analysis import drop, gap
from analysis.gap import STEPS, gap_numbers
from analysis.measure import measured, network_after
from analysis.report import Section, make_sections, render
from analysis.runs import Run, is_branch
from analysis.statistics import mean_ci
from cli.command import UsageError
from scripts import report
from scripts.report import read_runs

RUNS = ROOT / "docs" / "report"  # whole runs on CIFAR-10, without their checkpoints
SEEDS = [(f"with_{seed}", f"without_{seed}") for seed in range(3)]
T = 4.3027  # Student's t of three seeds, two-sided 95 %


def parts(sections: list[Section]) -> dict[str, dict[str, Any]]:
    about = {"versions": "", "machine": ""}
    text = render(sections=sections, runs=(), about=about, quick=False, vega="", picture=lambda chart: "")
    return parts_of(text)


def parts_of(text: str) -> dict[str, dict[str, Any]]:
    """{id of a section: its text without figures, and the table's rows of cells}"""

    def plain(part: str) -> str:
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())

    found = {}
    for name, part in re.findall(r'<section id="(\w+-\d+)">(.*?)</section>', text, re.DOTALL):
        words, table = re.sub(r"<figure>.*?</figure>", "", part, flags=re.DOTALL).split("<table>")
        rows = [[plain(cell) for cell in re.split("<t[dh]>", row)[1:]] for row in table.split("<tr>")[1:]]
        found[name] = {"text": plain(words), "rows": rows}
    return found


@pytest.fixture(scope="module")
def sections() -> dict[str, dict[str, Any]]:
    """The page of the runs in docs/report."""
    return parts(make_sections(read_runs([RUNS]), "absent"))


def section(sections: dict[str, dict[str, Any]], kind: str, subject: str = "") -> dict[str, Any]:
    return next(s for name, s in sections.items() if name.startswith(f"{kind}-") and f"{subject})" in s["text"])


def interval(values: list[float]) -> tuple[float, float]:
    mean, half = statistics.mean(values), T * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def medians(name: str) -> dict[tuple[float, int], dict[str, float]]:
    """{(learning rate, epochs): the medians of the seeds' results}"""
    results: dict[tuple[float, int], list[Any]] = {}
    for result in summary(RUNS / name)["results"]:
        results.setdefault((result["lr"], result["epochs"]), []).append(result)
    names = ("train_mse", "true_mse", "r2")
    return {key: {n: statistics.median(r[n] for r in each) for n in names} for key, each in results.items()}


def test_more_epochs(sections: dict[str, dict[str, Any]]) -> None:
    content = summary(RUNS / "rates")
    shown = section(sections, "epochs", content["function"])
    for ((lr, epochs), expected), cells in zip(medians("rates").items(), shown["rows"][1:], strict=True):
        assert cells[:2] == [f"{lr:g}", f"{epochs:,}"]
        assert [float(cells[i]) for i in (2, 3, 5)] == pytest.approx([*expected.values()], rel=5e-3)
        low, high = map(float, cells[4].split(" to "))
        assert low <= expected["true_mse"] * 1.01 and expected["true_mse"] <= high * 1.01
    assert "U-shaped at learning rate 0.1, 0.01, 0.001." in shown["text"] and "overfitting" in shown["text"]


def test_learning_rates(sections: dict[str, dict[str, Any]]) -> None:
    content, errors = summary(RUNS / "rates"), {key: each["true_mse"] for key, each in medians("rates").items()}
    shown = section(sections, "lr", content["function"])
    for part, cells in zip(content["more_training"], shown["rows"][1:], strict=True):
        assert cells[:3] == [f"{part['lr']:g}", f"{errors[part['lr'], 1000]:.3g}", f"{part['best_epochs']:,}"]
        assert cells[3] == f"{part['ratio']:.2f} ({part['low']:.2f} to {part['high']:.2f})"
        reached = [e for (lr, e), error in errors.items() if lr == part["lr"] and error <= 1.5 * min(errors.values())]
        first = f"after {min(reached):,} epochs" if reached else "never"
        assert f"{first} with learning rate {part['lr']:g}" in shown["text"]
    assert "After 1,000 epochs the error is lowest with learning rate 0.01: 0.81." in shown["text"]
    names = ("lr", "best_epochs", "best_true_mse", "held_out_epochs", "held_out_true_mse")
    for choice, cells in zip(summary(RUNS / "own")["auto"], section(sections, "settings")["rows"][1:], strict=True):
        expected = [choice[name] for name in names]
        assert [float(cell.replace(",", "")) for cell in cells] == pytest.approx(expected, rel=5e-3)


def test_the_training_runs(sections: dict[str, dict[str, Any]]) -> None:
    runs = [summary(RUNS / name) for name, _ in SEEDS]
    shown = section(sections, "training", "recipe lab on CIFAR-10")
    for epoch, cells in enumerate(shown["rows"][1:]):
        assert cells[:2] == [str(epoch), f"{runs[0]['epochs'][epoch]['lr']:g}"]
        for name, cell in zip(("train_loss", "train_acc", "val_loss", "val_acc"), cells[2:], strict=True):
            values = [run["epochs"][epoch][name] * (100 if name.endswith("acc") else 1) for run in runs]
            expected = [statistics.mean(values), statistics.stdev(values)]
            assert [*map(float, cell.split(" ± "))] == pytest.approx(expected, abs=6e-3)
    low, high = interval([100 * run["test_acc"] for run in runs])
    assert f"is 81.56 % (3 seeds, standard deviation 0.42 pp, 95 % CI {low:.2f} to {high:.2f} %)" in shown["text"]


def test_the_drop(sections: dict[str, dict[str, Any]]) -> None:
    shown = section(sections, "drop")
    cells = {row[0]: [*map(float, row[1:-1])] for row in shown["rows"][1:]}
    effects, final, straightness, renewed, noise = [], [], [], [], []
    for name, other in SEEDS:
        rows, others = summary(RUNS / name)["epochs"], summary(RUNS / other)["epochs"]
        effects.append(100 * (rows[5]["val_acc"] - others[5]["val_acc"]))
        final.append(100 * (rows[-1]["val_acc"] - others[-1]["val_acc"]))
        straightness.append(100 * statistics.mean(row["displacement"] / row["path"] for row in rows[:5]))
        kept = json.loads((RUNS / name / "renewed.json").read_text())  # measured from checkpoints, which are gone
        renewed.append(100 * (kept["with"] - kept["without"]))
        noise.append(100 * json.loads((RUNS / name / "noise.json").read_text())["noise"])
    assert cells["effect at once [pp]"] == pytest.approx(effects, abs=6e-3)
    assert cells["effect at the end [pp]"] == pytest.approx(final, abs=6e-3)
    straight = "distance between the ends of the path before the drop [% of the path]"
    assert cells[straight] == pytest.approx(straightness, abs=6e-3)
    assert cells["effect at once, running averages renewed [pp]"] == pytest.approx(renewed, abs=6e-3)
    assert cells["gradient-noise fraction before the drop [%]"] == pytest.approx(noise, abs=6e-3)
    low, high = interval(effects)
    assert f"at once by +8.9 pp (3 seeds, 95 % CI {low:+.1f} to {high:+.1f}), most of it" in shown["text"]
    assert "it is +2.6 pp" in shown["text"] and "92 % of single steps cross a valley" in shown["text"]
    assert f"the effect is {statistics.mean(final):+.1f} pp" in shown["text"] and "chance" in shown["text"]


def test_the_gap(sections: dict[str, dict[str, Any]]) -> None:
    shown = section(sections, "gap")
    assert [row[0] for row in shown["rows"][1:]] == list(STEPS.values())
    columns = list(zip(*(row[1:-1] for row in shown["rows"][1:]), strict=True))
    for (name, _), column in zip(SEEDS, columns, strict=True):
        run, kept = summary(RUNS / name), json.loads((RUNS / name / "gap.json").read_text())
        last = run["epochs"][-1]
        values = [last["train_acc"], kept["batch_norm"], kept["augmented"], last["probe_acc"], run["test_acc"]]
        assert [*map(float, column)] == pytest.approx([100 * value for value in values], abs=6e-3)
    means = [statistics.mean(map(float, row[1:-1])) for row in shown["rows"][1:]]
    steps = [float(row[-1].split()[0]) for row in shown["rows"][2:]]
    assert steps == pytest.approx([end - start for start, end in itertools.pairwise(means)], abs=0.02)  # rounded


def test_the_report_in_docs_is_of_this_code(sections: dict[str, dict[str, Any]]) -> None:
    text = (RUNS / "report.html").read_text(encoding="utf-8")
    shown = parts_of(text)
    assert [name for name in sections | shown if sections.get(name) != shown.get(name)] == []
    assert len(text) < 3_000_000
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)  # no network is needed
    assert not re.findall(r'(?:src|href|srcset)="(?!#)|url\((?!#)', outside_scripts) and "<script src" not in text
    assert all(run.summary["command"] in html.unescape(text) for run in read_runs([RUNS]))


# The command


def test_what_a_report_cannot_be_made_of(tmp_path: Path) -> None:
    assert_refused(command(tmp_path, "report.py", "nowhere"), "nowhere", "summary.json")
    with pytest.raises(UsageError, match="--animation_lr"):
        report.growth_of(read_runs([RUNS / "own"]), 0.5)


def test_a_folder_of_runs_is_its_finished_ones(tmp_path: Path) -> None:
    for name in ("fit/a", "two_seeds/seed0", "two_seeds/seed1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text('{"settings": {}, "epochs": []}')
    (tmp_path / "two_seeds" / "summary.json").write_text('{"recipe": "lab", "runs": []}')
    (tmp_path / "again").symlink_to("fit")
    runs = read_runs([tmp_path / name for name in ("again", "two_seeds", "fit")])
    assert [run.path.name for run in runs] == ["a", "seed0", "seed1"]


def test_missing_runs_are_made_and_interrupted_ones_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rates", "with_0", "without_0"):
        shutil.copytree(RUNS / name, tmp_path / "R_quick" / name)
    (tmp_path / "R_quick" / "without_0" / "summary.json").rename(tmp_path / "R_quick" / "without_0" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(report, "run_child", lambda command: commands.append(command))
    cfg = report.Namespace(runs="R", quick=True, data_root="data root", num_seeds=3)
    names = [path.name for path in report.make_runs(cfg)]
    assert names == ["rates", "own", "with_0", "without_0"] and capsys.readouterr().out.count("== python") == 2
    assert [Path(command[-1]).name for command in commands] == ["own", "without_0"]
    assert "--ckpt_path" not in commands[0] and commands[1][-4:-2] == ["--ckpt_path", "last"]
    assert "R_quick/with_0/checkpoints/end_of_epoch4.ckpt" in commands[1] and "data root" in commands[1]


# Which runs belong together


def run_of(name: str, **settings: Any) -> Run:
    content = summary(RUNS / name)
    content["settings"] |= settings
    return Run(RUNS / name, content)


def kinds(*runs: Run) -> list[tuple[str, int]]:
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
    assert not is_branch(run, run_of("without_0", weight_decay=0.1))
    for change in (
        {"origin": None},
        {"origin": branch.summary["origin"] | {"epochs": 4}},  # it left the run earlier
        {"epochs": branch.epochs[:-1]},
        {"epochs": [*branch.epochs[:-1], branch.epochs[-1] | {"lr": 0.01}]},
    ):
        assert not is_branch(run, Run(branch.path, branch.summary | change))


# What is measured of the weights


def test_what_is_measured_is_of_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--data synthetic --accelerator cpu --max_epochs 3 --limit_train_batches 4 --limit_val_batches 2".split()
    flags += "--batch_size 16 --limit_test_batches 2 --probe_train true".split()
    branch = ("--ckpt_path", "with/checkpoints/end_of_epoch0.ckpt")
    succeed(tmp_path, "cifar.py", *flags, "--milestones", "{1: 0.01}", "--run_dir", "with")
    succeed(tmp_path, "cifar.py", *flags, "--milestones", "{1: 0.1}", *branch, "--run_dir", "without")
    for module, name, few in ((gap, "TRAIN_SUBSET", 64), (drop, "NOISE_BATCHES", 2), (drop, "RENEWAL_BATCHES", 2)):
        monkeypatch.setattr(module, name, few)
    runs = read_runs([tmp_path])
    for _ in range(2):
        _, drops, gaps = make_sections(runs, "absent")
        assert {"noise", "renewed_effect", "crossing", "loss_change_without"} <= drops.facts["mean"].keys()
        assert list(drops.charts) == ["drop", "effect", "along", "across"]
        assert list(gaps.facts["mean"]) == list(STEPS)
        shutil.rmtree(tmp_path / "without" / "checkpoints", ignore_errors=True)  # what was measured is kept
    run = runs[0]
    assert network_after(run, 1).bn1.num_batches_tracked == 4
    run.epochs[-1]["train_loss"] += 1  # type: ignore[index]  # as if continued: what was kept is of before
    assert (
        measured("x", [(run, 3)], "absent", lambda nets, data, run: {"images": len(data.train[1])})["images"] == 10_000
    )
    assert measured("gap", [(Run(run.path, run.summary | {"data": "cifar10"}), 3)], "absent", gap.measure_gap) == {}
    run.summary["epochs"].append(run.epochs[-1])  # the last checkpoint is not of this epoch
    assert list(gap_numbers(run, "absent")) == ["epoch_average", "probe", "test"]


# The words


def words(kind: str, **facts: Any) -> str:
    """The text of a section."""
    (shown,) = parts([Section(kind, {"summary": summary(RUNS / "with_0"), **facts}, {})]).values()
    return shown["text"]


def test_what_diverged(tmp_path: Path) -> None:
    flags = ("--function", "exp(20*x)", "--lr", "1e30", "1e31", "--epochs", "10", "50", "auto", "--run_dir", "run")
    printed = succeed(tmp_path, "fit.py", *flags).stdout
    assert "Learning rate 1e+30: diverged." in printed and " inf" not in printed and "nan" not in printed
    epochs, lr, settings = parts(make_sections(read_runs([tmp_path]), "absent")).values()
    assert "Learning rate 1e+30: diverged" in epochs["text"] and "diverged" in settings["text"]
    assert "Training diverged at every learning rate." in lr["text"]


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
    facts: dict[str, Any] = {"runs": [Run(Path("with"), {})] * len(effects), "numbers": []}
    mean = {"change": mean_ci([10.0]), "effect": mean_ci(effects), "renewed_effect": mean_ci([6.0] * 3)}
    text = words("drop", **facts, mean=mean)
    assert expected in text and ("part of it through batch normalization" in text) == ("raises" in text)
    alone = words("drop", **facts, mean={"change": mean["change"], "straightness": mean_ci([3.0])})
    assert "changes by +10.0 pp (one seed); how much of it the drop causes is not known" in alone
    assert "At 0.1 the weights oscillate: their path in an epoch ends 3.0 %" in alone and "chance" not in alone


def test_what_a_user_wrote_is_escaped_on_the_page() -> None:
    content = summary(RUNS / "with_0") | {"recipe": "<b>", "train_batches": 8}
    content["settings"]["limit_train_batches"] = 8
    text = words("training", summary=content, runs=[], test=None, epochs=[])
    assert "(recipe <b> on CIFAR-10) The network was not tested. Each epoch had only 8 batches" in text


# The page in a browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and a GIF, as the command writes them."""
    folder = tmp_path_factory.mktemp("report")
    succeed(folder, "report.py", str(RUNS), "--animation", "fit.gif", "--animation_lr", "0.001")
    return folder


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
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1100, "light")])
def test_it_reads_well_on_a_phone_and_a_desktop(
    written: Path, browser: webdriver.Chrome, width: int, scheme: str
) -> None:
    show(browser, written / "report.html", width, scheme)
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
    show(browser, written / "report.html", width, scheme, script=False)
    assert all(pic.size["width"] <= width for pic in browser.find_elements(By.CSS_SELECTOR, ".chart svg"))


@pytest.mark.slow
def test_the_slider_chooses_the_fitted_curve_and_the_pointer_shows_numbers(
    written: Path, browser: webdriver.Chrome
) -> None:
    show(browser, written / "report.html", 390)
    growth = json.loads((RUNS / "rates" / "curves.json").read_text())
    counts = sorted({fit["epochs"] for fit in growth["fits"]})
    with Image.open(written / "fit.gif") as picture:
        assert (written / "fit.gif").stat().st_size < 400_000 and picture.n_frames > 30  # type: ignore[attr-defined]
    figure = browser.find_elements(By.CSS_SELECTOR, "section[id^=epochs] figure:first-child")[1]  # own, then rates
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    for lr in (0.1, 0.01):
        figure.find_element(By.CSS_SELECTOR, f"input[type=radio][value='{lr:g}']").click()
        for key, epochs in ((Keys.HOME, counts[0]), (Keys.ARROW_RIGHT, counts[1]), (Keys.END, counts[-1])):
            slider.send_keys(key)
            (fit,) = [fit for fit in growth["fits"] if (fit["lr"], fit["epochs"]) == (lr, epochs)]
            label = f"lr {lr:g}, {epochs:,} epochs, MSE against f: {fit['true_mse']:.3g}"
            WebDriverWait(browser, 60).until(
                lambda _, label=label: label in figure.find_element(By.TAG_NAME, "svg").text
            )
    shown = hovered(browser, figure)
    i = min(range(len(growth["x"])), key=lambda i: abs(growth["x"][i] - float(shown["x"])))
    assert float(shown["fitted curve"]) == pytest.approx(fit["fit"][i], rel=1e-3)
    assert float(shown["ground truth f(x)"]) == pytest.approx(growth["truth"][i], rel=1e-3)
    assert float(shown["lower quartile"]) == pytest.approx(fit["low"][i], rel=1e-3)
    bars = browser.find_elements(By.CSS_SELECTOR, "section[id^=gap] .mark-rect path")
    assert len(bars) == 12  # four steps from training to test accuracy, and the two ends: a bar and a tick each
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
