"""The report's sections: for each question that the runs have something for, the facts and charts that answer it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import jinja2

from analysis.charts import bars_chart, fits_chart, lines_chart, waterfall_chart
from analysis.curves import MSE, early_stopping_text, error_name, error_of, more_training_text
from analysis.drop import ACROSS, ALONG, drop_numbers
from analysis.figures import LINES, MEASURES
from analysis.files import read_json
from analysis.gap import STEPS, gap_numbers
from analysis.runs import FinishedRun, Pair, Row, Rows, epoch_of_drop, epoch_ticks, groups, lr_changes, over_epochs
from analysis.statistics import MeanCI, mean_ci, number, over_runs, spread

QUARTILES = {"y": "median", "lower quartile": "q25", "upper quartile": "q75"}
RATES = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#bcbd22")  # colors of learning rates, and of nothing else
TRAIN, VAL, PROBE, TEST = "#9467bd", "#17becf", "#8c564b", "#e377c2"
BOTH = [(0, ""), (1, "")]  # marks at both ends


class Section(NamedTuple):
    """What answers a question; its words and the captions of its charts are in report.html, by kind and by name."""

    kind: str
    facts: Row
    charts: Mapping[str, alt.LayerChart]


def render(**facts: Any) -> str:
    """The page; ``facts`` are what report.html names."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    env.filters.update(number=number, count="{:,}".format, g="{:g}".format, spread=spread)
    env.filters.update(more_training=more_training_text, early_stopping=early_stopping_text)
    return env.get_template("report.html").render(facts)


def make_sections(runs: Sequence[FinishedRun], data_root: str | None) -> list[Section]:
    curves = [run for run in runs if run.summary.get("over_seeds")]
    together = groups([run for run in runs if run.summary.get("epochs")])
    lrs = {row["lr"] for run in curves for row in run.summary["over_seeds"]}
    lrs |= {run.epochs[i]["lr"] for pairs in together for run, _ in pairs if epoch_of_drop(run) for i in (0, -1)}
    colors = dict(zip(sorted(lrs), itertools.cycle(RATES), strict=False))
    sections = [section for run in curves for section in curve_sections(run, colors)]
    for pairs in together:
        seeds = [run for run, _ in pairs]
        sections.append(training_section(seeds))
        if all(epoch_of_drop(run) for run in seeds):
            sections.append(drop_section([pair for pair in pairs if pair[1]] or pairs, colors, data_root))
        if all(run.epochs[-1].get("probe_acc") and run.summary["test_acc"] for run in seeds):
            sections.append(gap_section(seeds, data_root))
    return sections


def curve_sections(run: FinishedRun, colors: Mapping[float, str]) -> list[Section]:
    rows, error = run.summary["over_seeds"], error_name(run.summary["function"])
    best = min(rows, key=lambda row: error_of(row, error))
    epochs = max((row["epochs"] for row in rows), key=lambda count: (count == 1000, count))  # 1,000, or the most
    here = sorted((row for row in rows if row["epochs"] == epochs), key=lambda row: row["lr"])
    fits_well = [row for row in rows if error_of(row, error) <= 1.5 * error_of(best, error)]
    reached = {row["lr"]: row["epochs"] for row in reversed(fits_well)}  # first epoch count that fits well
    needed = [reached[row["lr"]] for row in here if row["lr"] in reached]
    facts = {
        **{"summary": run.summary, "error": error, "mse": MSE[error], "best": best, "here": here, "reached": reached},
        "last": [row for row in rows if row["lr"] == best["lr"]][-1],
        "best_here": min(here, key=lambda row: error_of(row, error)),
        "slower": needed == sorted(needed, reverse=True) and len({*needed}) > 1,  # a smaller rate needs more epochs
    }
    charts = {"fits": fits_chart(read_json(run.path / "curves.json"), colors)}
    if len(rows) > len(here):
        metrics = ("train_mse", error)
        charts |= {metric: mse_chart(rows, colors, "epochs", metric, f"{MSE[metric]} [y²]") for metric in metrics}
    sections = [Section("epochs", facts, charts)]
    if len(here) > 1:
        title = f"{MSE[error]} at {epochs:,} epochs [y²]"
        sections.append(Section("lr", facts, {"rates": mse_chart(here, colors, "lr", error, title)}))
    if "auto" in run.summary:
        sections.append(Section("settings", facts, {}))
    return sections


def mse_chart(rows: Rows, colors: Mapping[float, str], x: str, metric: str, title: str) -> alt.LayerChart:
    """Medians and quartiles of the seeds over ``x``, "epochs" or "lr", a line for each learning rate."""
    lines = []
    for lr in sorted({row["lr"] for row in rows}):
        part = [row for row in rows if row["lr"] == lr]
        line = {"line": f"learning rate {lr:g}", "run": "all", "color": colors[lr], "x": [row[x] for row in part]}
        lines.append(line | {name: [row[metric][quartile] for row in part] for name, quartile in QUARTILES.items()})
    first, last = min(row[x] for row in rows), max(row[x] for row in rows)
    ticks = [first, *(10.0**i for i in range(-9, 9) if 1.5 * first < 10**i < last / 1.5), last]
    return lines_chart(lines, {"lr": "learning rate"}.get(x, x), title, ticks=ticks, log=True)


def training_section(runs: Sequence[FinishedRun]) -> Section:
    """Accuracy and loss over the epochs, for runs that differ by their seeds only."""
    summary, charts = runs[0].summary, {}
    for kind, (title, scale) in MEASURES.items():
        lines = []
        for (name, line), color in zip(LINES.items(), (TRAIN, VAL, PROBE), strict=True):
            lines += epoch_lines(runs, line or summary["measured_on"], color, f"{name}_{kind}", scale)
        for run in runs:
            if (value := run.summary[f"test_{kind}"]) is not None:
                end = {"x": [run.epochs[-1]["epoch"]], "y": [scale * value]}
                lines.append({"line": "test, at the end", "run": run.path.name, "color": TEST, **end})
        charts[kind] = epochs_chart(runs, lines, title)
    tested = [100 * run.summary["test_acc"] for run in runs if run.summary["test_acc"] is not None]
    epochs = list(zip(*(run.epochs for run in runs), strict=False))  # a time limit may end one run earlier
    facts = {"runs": runs, "epochs": epochs, "test": mean_ci(tested) if tested else None}
    return Section("training", {"summary": summary, **facts}, charts)


def epoch_lines(runs: Iterable[FinishedRun | None], line: str, color: str, name: str, scale: float = 100) -> list[Row]:
    """A line of a chart for each run in which this was measured."""
    each = [(run.path.name, *over_epochs(run.epochs, name, scale)) for run in runs if run]
    return [{"line": line, "run": run, "color": color, "x": x, "y": y} for run, x, y in each if x]


def epochs_chart(runs: Sequence[FinishedRun], lines: Rows, title: str) -> alt.LayerChart:
    marks = [(epoch - 0.5, f"lr {lr:g} →") for epoch, lr in lr_changes(runs[0].epochs)]
    ticks = epoch_ticks(max(run.epochs[-1]["epoch"] for run in runs))
    return lines_chart(lines, "epoch (counted from 0)", title, marks, ticks)


def drop_section(pairs: Sequence[Pair], colors: Mapping[float, str], data_root: str | None) -> Section:
    runs, others = zip(*pairs, strict=True)
    summary, numbers, along, across = runs[0].summary, [], [], []
    lrs = {"without": summary["epochs"][0]["lr"], "with": summary["epochs"][-1]["lr"]}  # before and after the drop
    for run, other in pairs:
        numbers_of_run, losses = drop_numbers(run, other, data_root)
        numbers.append(numbers_of_run)
        for way, lr in lrs.items() if losses else ():
            line = {"run": run.path.name, "color": colors[lr]}
            along.append({**line, "line": f"{way} the drop", "x": ALONG, "y": losses[way]})
            for i, step in enumerate(losses["steps" if way == "without" else "small_steps"], start=1):
                line |= {"line": f"steps at learning rate {lr:g}", "run": f"{run.path.name}, step {i}"}
                change = [loss - step[ACROSS.index(0)] for loss in step]
                across.append({**line, "x": ACROSS[1:-1], "y": change[1:-1]})  # what lies farther out hides the rest
    lines = epoch_lines(runs, "with the drop", colors[lrs["with"]], "val_acc")
    lines += epoch_lines(others, "without the drop", colors[lrs["without"]], "val_acc")
    mean = over_runs(numbers)
    charts = {"drop": epochs_chart(runs, lines, f"{summary['measured_on']} accuracy [%]")}
    if "renewed_effect" in mean:
        charts["renewed"] = renewed_chart(mean)
    if along:
        charts["along"] = lines_chart(along, "before the drop: 0, one epoch later: 1", "training loss [nats]", BOTH)
    if across:
        title = "change of the training loss [nats]"
        charts["across"] = lines_chart(across, "before the step: 0, after it: 1", title, BOTH)
    return Section("drop", {"summary": summary, "runs": runs, "numbers": numbers, "mean": mean}, charts)


def renewed_chart(mean: Mapping[str, MeanCI]) -> alt.LayerChart:
    """From each accuracy with a run's own running averages to that with renewed ones."""
    rows = []
    for name, own in {"before": "before", "without": "first_without", "with": "first"}.items():
        start, end = mean[own].mean, mean[f"renewed_{name}"].mean
        rows.append({"name": f"{name} the drop", "start": start, "end": end, "text": f"{start:.1f} → {end:.1f} %"})
    return bars_chart(rows, height=260)


def gap_section(runs: Sequence[FinishedRun], data_root: str | None) -> Section:
    numbers = [gap_numbers(run, data_root) for run in runs]
    mean = over_runs(numbers)
    changes = over_runs([{b: one[b] - one[a] for a, b in itertools.pairwise(mean)} for one in numbers])
    chart = waterfall_chart({STEPS[name]: mean[name].mean for name in mean}, "test accuracy")
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "changes": changes, "names": STEPS}
    return Section("gap", {"summary": runs[0].summary, **facts}, {"gap": chart})
