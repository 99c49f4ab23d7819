"""The report's sections: for each question that the runs have something for, the facts and charts that answer it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import jinja2

from analysis.charts import fits_chart, lines_chart, waterfall_chart
from analysis.curves import MSE, early_stopping_text, error_name, error_of, more_training_text
from analysis.drop import ACROSS, ALONG, drop_numbers
from analysis.figures import LINES, MEASURES
from analysis.files import read_json
from analysis.gap import STEPS, gap_numbers
from analysis.runs import FinishedRun, Pair, Row, Rows, epoch_of_drop, groups, lr_changes, over_epochs
from analysis.statistics import mean_ci, number, over_runs, spread

QUARTILES = {"y": "median", "lower quartile": "q25", "upper quartile": "q75"}
LOSS = ("training loss [nats]", [(0, ""), (1, "")])  # axis and marks
EFFECT = {  # from the accuracy without the drop to that with it
    "without the drop": "first_without",
    "running averages renewed": "renewed_without",
    "weights after the drop": "renewed_with",
    "its own running averages": "first",
}


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
    sections = [s for run in runs if run.is_curve and run.summary["over_seeds"] for s in curve_sections(run)]
    for pairs in groups([run for run in runs if not run.is_curve and run.epochs]):
        seeds = [run for run, _ in pairs]
        sections.append(training_section(seeds))
        if all(epoch_of_drop(run) for run in seeds):
            sections.append(drop_section([pair for pair in pairs if pair[1]] or pairs, data_root))
        if all(run.epochs[-1].get("probe_acc") and run.summary["test_acc"] for run in seeds):
            sections.append(gap_section(seeds, data_root))
    return sections


def curve_sections(run: FinishedRun) -> list[Section]:
    rows, error = run.summary["over_seeds"], error_name(run.summary["function"])
    best = min(rows, key=lambda row: error_of(row, error))
    epochs = max((row["epochs"] for row in rows), key=lambda count: (count == 1000, count))  # 1,000, or the most
    here = [row for row in rows if row["epochs"] == epochs]
    fits_well = [row for row in rows if error_of(row, error) <= 1.5 * error_of(best, error)]
    facts = {
        "summary": run.summary,
        "error": error,
        "mse": MSE[error],
        "best": best,
        "last": [row for row in rows if row["lr"] == best["lr"]][-1],
        "here": here,
        "best_here": min(here, key=lambda row: error_of(row, error)),
        "reached": {row["lr"]: row["epochs"] for row in reversed(fits_well)},  # first epoch count that fits well
    }
    charts = {"fits": fits_chart(read_json(run.path / "curves.json"))}
    if len(rows) > len(here):
        charts |= {metric: mse_chart(rows, "epochs", "lr", metric) for metric in ("train_mse", error)}
    sections = [Section("epochs", facts, charts)]
    if len(here) > 1:
        sections.append(Section("lr", facts, {error: mse_chart(here, "lr", "epochs", error)}))
    if "auto" in run.summary:
        sections.append(Section("settings", facts, {}))
    return sections


def mse_chart(rows: Rows, x: str, each: str, metric: str) -> alt.LayerChart:
    """Medians and quartiles of the seeds over ``x``, "epochs" or "lr", with a line for ``each`` of the other."""
    names, lines = {"lr": "learning rate", "epochs": "epochs"}, []
    for value in dict.fromkeys(row[each] for row in rows):
        part = [row for row in rows if row[each] == value]
        line = {name: [row[metric][quartile] for row in part] for name, quartile in QUARTILES.items()}
        lines.append({"line": f"{names[each]} {value:,.7g}", "run": "all", "x": [row[x] for row in part], **line})
    return lines_chart(lines, names[x], f"{MSE[metric]} [y²]", log=True)


def training_section(runs: Sequence[FinishedRun]) -> Section:
    """Accuracy and loss over the epochs, for runs that differ by their seeds only."""
    summary, charts = runs[0].summary, {}
    for kind, (title, scale) in MEASURES.items():
        lines: list[Row] = []
        for name, line in LINES.items():
            lines += epoch_lines(runs, line or summary["measured_on"], f"{name}_{kind}", scale)
        charts[kind] = epochs_chart(runs, lines, title)
    tested = [100 * run.summary["test_acc"] for run in runs if run.summary["test_acc"] is not None]
    epochs = list(zip(*(run.epochs for run in runs), strict=False))  # a time limit may end one run earlier
    facts = {"runs": runs, "epochs": epochs, "test": mean_ci(tested) if tested else None}
    return Section("training", {"summary": summary, **facts}, charts)


def epoch_lines(runs: Iterable[FinishedRun | None], line: str, name: str, scale: float = 100) -> list[Row]:
    """A line of a chart for each run in which this was measured."""
    each = [(run.path.name, *over_epochs(run.epochs, name, scale)) for run in runs if run]
    return [{"line": line, "run": run, "x": x, "y": y} for run, x, y in each if x]


def epochs_chart(runs: Sequence[FinishedRun], lines: Rows, title: str) -> alt.LayerChart:
    marks = [(epoch - 0.5, f"lr {lr:g}") for epoch, lr in lr_changes(runs[0].epochs)]
    return lines_chart(lines, "epoch (counted from 0)", title, marks)


def drop_section(pairs: Sequence[Pair], data_root: str | None) -> Section:
    runs, others = zip(*pairs, strict=True)
    numbers, along, across = [], list[Row](), list[Row]()
    for run, other in pairs:
        numbers_of_run, losses = drop_numbers(run, other, data_root)
        numbers.append(numbers_of_run)
        if losses:
            name, steps = {"run": run.path.name}, enumerate(losses["steps"], start=1)
            across += [{"line": f"step {i}", **name, "x": ACROSS, "y": y} for i, y in steps]
            along += [{"line": f"{w} the drop", **name, "x": ALONG, "y": losses[w]} for w in ("without", "with")]
    lines = epoch_lines(others, "without the drop", "val_acc") + epoch_lines(runs, "with the drop", "val_acc")
    mean, summary = over_runs(numbers), runs[0].summary
    charts = {"drop": epochs_chart(runs, lines, f"{summary['measured_on']} accuracy [%]")}
    if "renewed_effect" in mean:
        charts["effect"] = waterfall_chart({title: mean[name].mean for title, name in EFFECT.items()}, "with the drop")
    if along:
        charts["along"] = lines_chart(along, "before the drop: 0, one epoch later: 1", *LOSS)
    if across:
        charts["across"] = lines_chart(across, "before the step: 0, after it: 1", *LOSS)
    return Section("drop", {"summary": summary, "runs": runs, "numbers": numbers, "mean": mean}, charts)


def gap_section(runs: Sequence[FinishedRun], data_root: str | None) -> Section:
    numbers = [gap_numbers(run, data_root) for run in runs]
    mean = over_runs(numbers)
    changes = over_runs([{b: one[b] - one[a] for a, b in itertools.pairwise(mean)} for one in numbers])
    chart = waterfall_chart({STEPS[name]: mean[name].mean for name in mean}, "test accuracy")
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "changes": changes, "names": STEPS}
    return Section("gap", {"summary": runs[0].summary, **facts}, {"gap": chart})
