"""The report's sections: for each question that the runs have something for, the facts and charts that answer it."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import jinja2

from analysis.charts import fits_chart, lines_chart, waterfall_chart
from analysis.curves import Growth, early_stopping_text, error_of, lowest_rows, more_training_text
from analysis.drop import EFFECT_STEPS, NAMES, drop_numbers, measured_drop
from analysis.files import read_json
from analysis.gap import STEPS, gap_numbers
from analysis.runs import Run, distinct, drops_once, epoch_of_drop, groups, lr_changes
from analysis.statistics import number, over_runs, spread

EPOCH, MSE = "epoch (counted from 0)", "MSE against the noise-free f [y²]"
LINES = {"train": "train (epoch average)", "probe": "training subset, eval mode"}


@dataclass(frozen=True)
class Section:
    """What answers a question; its words and the captions of its charts are in report.html, by kind and by name."""

    kind: str
    facts: Mapping[str, Any]
    charts: Mapping[str, alt.LayerChart | None]


def render(**facts: Any) -> str:
    """The page, from "sections", "runs", and what else report.html names."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"number": number, "count": "{:,}".format, "g": "{:g}".format, "spread": spread}
    env.filters |= {"more_training": more_training_text, "early_stopping": early_stopping_text}
    return env.get_template("report.html").render(facts)


def make_sections(runs: Sequence[Run], data_root: str) -> list[Section]:
    """The sections of all runs; no run counts twice."""
    runs = distinct(runs)
    sections = [s for run in runs if run.is_curve and run.summary["over_seeds"] for s in curve_sections(run)]
    for group in groups(run for run in runs if not run.is_curve and run.summary["epochs"]):
        seeds = [run for run, _ in group]
        sections.append(training_section(seeds))
        if drops_once(seeds[0]):
            sections.append(drop_section([pair for pair in group if pair[1]] or group, data_root))
        if all(run.summary["epochs"][-1].get("probe_acc") and run.summary["test_acc"] for run in seeds):
            sections.append(gap_section(seeds, data_root))
    return sections


def curve_sections(run: Run) -> list[Section]:
    """1: what do more epochs do, what does the learning rate do, and which settings fit best?"""
    rows, auto = run.summary["over_seeds"], run.summary.get("auto", [])
    lowest = lowest_rows(rows)
    best = min(lowest.values(), key=error_of)
    last = [row for row in rows if row["lr"] == best["lr"]][-1]
    counts = {row["epochs"] for row in rows}
    facts = {
        "run": run,
        "best": best,
        "lowest": lowest,
        "at": 1000 if 1000 in counts else max(counts),
        "overfits": error_of(last, "train_mse") < error_of(best, "train_mse"),
        "reached": {r["lr"]: r["epochs"] for r in reversed(rows) if error_of(r) <= 1.5 * error_of(best) < math.inf},
    }
    growth: Growth = read_json(run.path / "curves.json")
    charts = {
        "fits": fits_chart(growth) if any(fit["fit"] for fit in growth["fits"]) else None,
        "train_mse": mse_chart(run, "epochs", "training MSE on the noisy points [y²]", "train_mse"),
        "true_mse": mse_chart(run, "epochs", MSE),
    }
    sections = [Section("epochs", facts, charts)]
    if len(lowest) > 1:
        sections.append(Section("lr", facts, {"true_mse": mse_chart(run, "lr", MSE)}))
    if auto:
        marks = {choice["held_out_epochs"]: "early stopping" for choice in auto if choice["lr"] == best["lr"]}
        sections.append(Section("settings", facts, {"true_mse": mse_chart(run, "epochs", MSE, marks=marks)}))
    return sections


def mse_chart(
    run: Run, x: str, y: str, metric: str = "true_mse", marks: Mapping[float, str] | None = None
) -> alt.LayerChart | None:
    """Medians and quartiles over the seeds: over the epochs for each learning rate, or the other way round.

    What diverged or is 0 has no logarithm and is left out; None where no line is left.
    """
    line, title = ("learning rate {lr:g}", "epochs") if x == "epochs" else ("{epochs:,} epochs", "learning rate")
    points = [
        {"line": line.format(**row), "x": row[x], "y": row[metric]["median"]}
        | ({"low": row[metric]["q25"] or None, "high": row[metric]["q75"]} if run.num_seeds >= 4 else {})
        for row in run.summary["over_seeds"]
        if row[metric]["median"]
    ]
    is_line = len({point["x"] for point in points}) > 1
    return lines_chart(points, title, y, log=True, marks=marks) if is_line else None


def training_section(runs: Sequence[Run]) -> Section:
    """2: accuracy and loss over the epochs, means over runs that differ by their seeds only."""
    summary, charts = runs[0].summary, {}
    # A time limit ends runs of the same settings in different epochs.
    epochs = list(zip(*(run.summary["epochs"] for run in runs), strict=False))
    for kind, title, scale in (("acc", "accuracy [%]", 100), ("loss", "cross-entropy loss [nats]", 1)):
        points = []
        for (name, line), rows in itertools.product({**LINES, "val": summary["measured_on"]}.items(), epochs):
            values = [row.get(f"{name}_{kind}") for row in rows]
            if None not in values:
                mean, sd = scale * statistics.mean(values), scale * statistics.pstdev(values)
                points.append({"line": line, "x": rows[0]["epoch"], "y": mean, "low": mean - sd, "high": mean + sd})
        charts[kind] = lines_chart(points, EPOCH, title, marks=lr_marks(summary))
    test = over_runs([{"acc": 100 * run.summary["test_acc"]} for run in runs if run.summary["test_acc"] is not None])
    return Section("training", {"runs": runs, "summary": summary, "epochs": epochs, "test": test}, charts)


def lr_marks(summary: Mapping[str, Any]) -> dict[float, str]:
    """A vertical line for a chart at each epoch in which the learning rate became another."""
    return {epoch - 0.5: f"learning rate {lr:g}" for epoch, lr in lr_changes(summary["epochs"])}


def drop_section(pairs: Sequence[tuple[Run, Run | None]], data_root: str) -> Section:
    """2: what did the drop do? ``pairs``: runs, each with the one that continued it without its drop."""
    runs, summary = [run for run, _ in pairs], pairs[0][0].summary
    numbers: list[dict[str, float]] = []
    points: dict[str, list[dict[str, Any]]] = {"drop": [], "along": [], "across": []}
    for run, other in pairs:
        measured, losses = measured_drop(run, other, data_root)
        parts = {"with the drop": run.summary["epochs"], "without the drop": other.summary["epochs"] if other else []}
        numbers.append(drop_numbers(*parts.values()) | measured)
        accuracies = [(name, row["epoch"], 100 * row["val_acc"]) for name, rows in parts.items() for row in rows]
        for chart, each in {"drop": accuracies, **losses}.items():
            points[chart] += [{"line": line, "run": run.path.name, "x": x, "y": y} for line, x, y in each]
    mean = over_runs(numbers)
    accuracy, loss, ends = f"{summary['measured_on']} accuracy [%]", "training loss [nats]", {0.0: "", 1.0: ""}
    charts = {"drop": lines_chart(points["drop"], EPOCH, accuracy, marks=lr_marks(summary))}
    if "renewed_effect" in mean:
        steps = {name: mean[number].mean for name, number in EFFECT_STEPS.items()}
        charts["effect"] = waterfall_chart(steps, "with the drop")
    for name, way in (
        ("along", "from before the drop (0) to one epoch later (1)"),
        ("across", "a single step, 0 to 1"),
    ):
        if points[name]:
            charts[name] = lines_chart(points[name], way, loss, marks=ends)
    at = epoch_of_drop(summary["epochs"]) or 0
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "summary": summary, "names": NAMES}
    facts |= {"lrs": [summary["epochs"][i]["lr"] for i in (at - 1, at)]}
    facts |= {"random": 100 / math.sqrt(summary["train_batches"])}
    return Section("drop", facts, charts)


def gap_section(runs: Sequence[Run], data_root: str) -> Section:
    """2: what lies between training and test accuracy?"""
    numbers = [gap_numbers(run, data_root) for run in runs]
    mean = over_runs(numbers)
    changes = over_runs([{b: one[b] - one[a] for a, b in itertools.pairwise(mean)} for one in numbers])
    chart = waterfall_chart({STEPS[name]: mean[name].mean for name in mean}, "test accuracy")
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "changes": changes, "names": STEPS}
    return Section("gap", facts, {"gap": chart})
