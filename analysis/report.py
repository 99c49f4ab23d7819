"""The report's sections: for each question that the runs have something for, the facts and charts that answer it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import jinja2

from analysis.charts import fits_chart, lines_chart, waterfall_chart
from analysis.curves import Growth, early_stopping_text, error_of, lowest_rows, more_training_text
from analysis.drop import EFFECT_STEPS, drop_numbers, measured_drop
from analysis.files import read_json
from analysis.gap import STEPS, gap_numbers
from analysis.runs import Rows, Run, distinct, drops_once, epoch_of_drop, groups, lr_changes
from analysis.statistics import number, over_runs, spread

EPOCH = "epoch (counted from 0)"
MSE = {"train_mse": "training MSE on the noisy points [y²]", "true_mse": "MSE against the noise-free f [y²]"}


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
    at = min((row["epochs"] for row in rows), key=lambda epochs: (epochs != 1000, -epochs))  # 1,000, or the most
    here = [row for row in rows if row["epochs"] == at]
    fits_well = [row for row in rows if error_of(row) <= 1.5 * error_of(best) < math.inf]
    facts = {
        "subject": f"f(x) = {run.summary['function']}",
        "summary": run.summary,
        "best": best,
        "lowest": lowest,
        "here": here,
        "best_here": min(here, key=error_of),
        "reached": {row["lr"]: row["epochs"] for row in reversed(fits_well)},  # first epoch count that fits well
        "overfits": error_of(last, "train_mse") < error_of(best, "train_mse"),
    }
    growth: Growth = read_json(run.path / "curves.json")
    true_mse = mse_chart(rows, "epochs", "true_mse")
    fits = fits_chart(growth) if any(fit["fit"] for fit in growth["fits"]) else None
    charts = {"fits": fits, "train_mse": mse_chart(rows, "epochs", "train_mse"), "true_mse": true_mse}
    sections = [Section("epochs", facts, charts)]
    if len(lowest) > 1:
        sections.append(Section("lr", facts, {"true_mse": mse_chart(here, "lr", "true_mse")}))
    if auto:
        sections.append(Section("settings", facts, {"true_mse": true_mse}))
    return sections


def mse_chart(rows: Rows, x: str, metric: str) -> alt.LayerChart | None:
    """Medians and quartiles over the seeds: over the "epochs" for each learning rate, or over "lr" at one epoch count.

    What diverged or is 0 has no logarithm and is left out; None where no line is left.
    """
    points = [
        {
            "line": f"learning rate {row['lr']:g}" if x == "epochs" else f"{row['epochs']:,} epochs",
            "x": row[x],
            "y": row[metric]["median"],
            "low": row[metric]["q25"] or None,
            "high": row[metric]["q75"],
        }
        for row in rows
        if row[metric]["median"]
    ]
    if len({point["x"] for point in points}) < 2:
        return None
    return lines_chart(points, "epochs" if x == "epochs" else "learning rate", MSE[metric], log=True)


def training_section(runs: Sequence[Run]) -> Section:
    """2: accuracy and loss over the epochs, for runs that differ by their seeds only."""
    summary, charts = runs[0].summary, {}
    lines = {"train": "train (epoch average)", "probe": "training subset, eval mode", "val": summary["measured_on"]}
    for kind, title, scale in (("acc", "accuracy [%]", 100), ("loss", "cross-entropy loss [nats]", 1)):
        points = [
            p for name, line in lines.items() for run in runs for p in epoch_points(run, line, f"{name}_{kind}", scale)
        ]
        charts[kind] = lines_chart(points, EPOCH, title, marks=lr_marks(summary))
    test = over_runs([{"acc": 100 * run.summary["test_acc"]} for run in runs if run.summary["test_acc"] is not None])
    # A time limit ends runs of the same settings in different epochs.
    epochs = list(zip(*(run.summary["epochs"] for run in runs), strict=False))
    facts = {"subject": recipe(summary), "runs": runs, "summary": summary, "epochs": epochs, "test": test}
    return Section("training", facts, charts)


def recipe(summary: Mapping[str, Any]) -> str:
    return f"recipe {summary['recipe']} on {'CIFAR-10' if summary['data'] == 'cifar10' else 'SYNTHETIC images'}"


def epoch_points(run: Run, line: str, name: str, scale: float = 100) -> list[dict[str, Any]]:
    """A line of a chart over the epochs in which this was measured."""
    rows = [row for row in run.summary["epochs"] if row.get(name) is not None]
    return [{"line": line, "run": run.path.name, "x": row["epoch"], "y": scale * row[name]} for row in rows]


def lr_marks(summary: Mapping[str, Any]) -> dict[float, str]:
    """A vertical line for a chart at each epoch in which the learning rate became another."""
    return {epoch - 0.5: f"learning rate {lr:g}" for epoch, lr in lr_changes(summary["epochs"])}


def drop_section(pairs: Sequence[tuple[Run, Run | None]], data_root: str) -> Section:
    """2: what did the drop do? ``pairs``: runs, each with the one that continued it without its drop."""
    runs, summary, at = (
        [run for run, _ in pairs],
        pairs[0][0].summary,
        epoch_of_drop(pairs[0][0].summary["epochs"]) or 0,
    )
    numbers: list[dict[str, float]] = []
    points: dict[str, list[dict[str, Any]]] = {"drop": [], "along": [], "across": []}
    for run, other in pairs:
        measured, losses = measured_drop(run, other, data_root)
        numbers.append(drop_numbers(run.summary["epochs"], other.summary["epochs"] if other else ()) | measured)
        points["drop"] += epoch_points(other, "without the drop", "val_acc") if other else []
        points["drop"] += epoch_points(run, "with the drop", "val_acc")
        for name, each in losses.items():
            points[name] += [{"line": line, "run": run.path.name, "x": x, "y": y} for line, x, y in each]
    mean = over_runs(numbers)
    charts = {
        "drop": lines_chart(points["drop"], EPOCH, f"{summary['measured_on']} accuracy [%]", marks=lr_marks(summary))
    }
    if "renewed_effect" in mean:
        steps = {title: mean[name].mean for title, name in EFFECT_STEPS.items()}
        charts["effect"] = waterfall_chart(steps, "with the drop")
    for name, way in (
        ("along", "before the drop: 0, one epoch later: 1"),
        ("across", "before the step: 0, after it: 1"),
    ):
        if points[name]:
            charts[name] = lines_chart(points[name], way, "training loss [nats]", marks={0: "", 1: ""})
    lrs, random = [summary["epochs"][i]["lr"] for i in (at - 1, at)], 100 / math.sqrt(summary["train_batches"])
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "summary": summary, "lrs": lrs, "random": random}
    return Section("drop", {**facts, "subject": recipe(summary)}, charts)


def gap_section(runs: Sequence[Run], data_root: str) -> Section:
    """2: what lies between training and test accuracy?"""
    numbers = [gap_numbers(run, data_root) for run in runs]
    mean = over_runs(numbers)
    changes = over_runs([{b: one[b] - one[a] for a, b in itertools.pairwise(mean)} for one in numbers])
    chart = waterfall_chart({STEPS[name]: mean[name].mean for name in mean}, "test accuracy")
    facts = {"runs": runs, "numbers": numbers, "mean": mean, "changes": changes, "names": STEPS}
    facts["subject"] = recipe(runs[0].summary)
    return Section("gap", facts, {"gap": chart})
