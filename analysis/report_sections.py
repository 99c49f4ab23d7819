"""The sections of the report: the numbers, tables and charts of each question.

The sentences are in scripts/templates/findings.j2: a section's ``kind`` and ``facts`` are what they are written from.
"""

import contextlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt

from analysis.charts import fits_chart, lines_chart, waterfall_chart
from analysis.classifier_findings import Rows, gap, lr_changes, lr_drop, renewed, valley
from analysis.classifier_measurements import measured
from analysis.curve_findings import best_setting, error_of, lowest_rows, or_infinity
from analysis.files import read_json
from analysis.runs import LENGTH, Run, distinct, drops_once, is_branch
from analysis.statistics import mean_ci, number
from datamodules import CIFAR10DataModule

GAP_COLUMNS = {
    "epoch_average": "training accuracy (epoch average)",
    "batch_norm": "training subset, augmented, train mode",
    "augmented": "training subset, augmented, eval mode",
    "probe": "training subset, eval mode",
    "test": "test accuracy",
}
GAP_STEPS = {  # to each of the accuracies from the one before it
    "batch_norm": "final weights, train mode",
    "augmented": "eval mode",
    "probe": "not augmented",
    "test": "test images",
}
EPOCH = "epoch (counted from 0)"
MSE = "MSE against the noise-free f [y²]"


@dataclass
class Section:
    """A question of the ``kind``, the ``facts`` that answer it, and the table and charts to read them off."""

    kind: str
    id: str
    facts: Mapping[str, Any]
    table: list[dict[str, str]]  # {header: cell} of each row
    charts: list[alt.LayerChart] = field(default_factory=list)


def make_sections(runs: Sequence[Run], data_root: str) -> list[Section]:
    """The sections that the runs have something for, each with an id of its own; no run counts twice."""
    runs = distinct(runs)
    sections = [*curve_sections(runs), *classifier_sections(runs, data_root)]
    number_ids(sections)
    return sections


def number_ids(sections: Sequence[Section]) -> None:
    """Gives each section an id of its own: the first of a name keeps it, the others are numbered."""
    used: set[str] = set()
    for section in sections:
        name, n = section.id, 1
        while section.id in used:
            n += 1
            section.id = f"{name}-{n}"
        used.add(section.id)


# Exercise 1


def curve_sections(runs: Sequence[Run]) -> list[Section]:
    """A run of one setting beside a study of the same problem only gives its time; alone it gets its section."""

    def problem(run: Run) -> str:
        return run.settings(but={"epochs", "lr", "seed"} | LENGTH)

    curves = [run for run in runs if run.is_curve and run.summary["over_seeds"]]
    single = [run for run in curves if len(run.summary["over_seeds"]) == 1 and "auto" not in run.summary]
    studies = [run for run in curves if run not in single]
    studied = {problem(run) for run in studies}
    sections = []
    for run in [*studies, *(run for run in single if problem(run) not in studied)]:
        sections.append(epochs_section(run))
        if len({row["lr"] for row in run.summary["over_seeds"]}) > 1:
            alone = [r.summary for r in single if problem(r) == problem(run) and len(r.summary["results"]) == 1]
            firsts = [(summary["results"][0], summary["seconds"]["train"]) for summary in alone]
            sections.append(lr_section(run, {one["lr"]: s for one, s in firsts if one["epochs"] == 1000}))
        if "auto" in run.summary:
            sections.append(settings_section(run))
    return sections


def epochs_section(run: Run) -> Section:
    """1A: what do more epochs do?"""
    rows = run.summary["over_seeds"]
    table = [
        {
            "learning rate": f"{row['lr']:g}",
            "epochs": f"{row['epochs']:,}",
            "training MSE": number(row["train_mse"]["median"]),
            "MSE against the noise-free f": number(row["true_mse"]["median"]),
            "interquartile range (IQR) of the seeds": iqr(run, row),
            # A constant function has no R², however well it is fitted.
            "R²": number(row["r2"]["median"], "diverged" if row["true_mse"]["median"] is None else "-"),
        }
        for row in rows
    ]
    parts = [{**part, "overfits": overfits(rows, part["lr"])} for part in run.summary["more_training"]]
    charts = list(map(fits_chart, growths(run)))
    charts += mse_chart(run, "epochs", "training MSE, on the noisy points [y²]", "train_mse")
    charts += mse_chart(run, "epochs", MSE)
    return Section("epochs", f"epochs-{run.path.name}", common_facts(run) | {"more_training": parts}, table, charts)


def growths(run: Run) -> list[Any]:
    """The content of the run's curves.json; none of an older run, or where no fit is finite."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        growth = read_json(run.path / "curves.json")
        return [growth] if any(fit["fit"] for fit in growth["fits"]) else []
    return []


def common_facts(run: Run) -> dict[str, Any]:
    return {"function": run.summary["function"], "num_seeds": run.num_seeds}


def mse_chart(
    run: Run, x: Literal["epochs", "lr"], title: str, metric: str = "true_mse", marks: Rows = ()
) -> list[alt.LayerChart]:
    """Medians and quartiles over the seeds: over the epochs for each learning rate, or the other way round.

    What diverged or is 0 has no logarithm and is left out; no chart where no line is left.
    """
    rows = run.summary["over_seeds"]
    counts = sorted({row["epochs"] for row in rows})
    counts = counts if x == "epochs" else counts[:: math.ceil(len(counts) / 6)]  # six lines can be distinguished
    points = [
        {
            "line": f"learning rate {row['lr']:g}" if x == "epochs" else f"{row['epochs']:,} epochs",
            "x": row[x],
            "y": row[metric]["median"],
            **({"low": row[metric]["q25"] or None, "high": row[metric]["q75"]} if run.num_seeds >= 4 else {}),
        }
        for row in sorted(rows, key=lambda row: (row["epochs"], row["lr"]) if x == "lr" else 0)
        if row[metric]["median"] and row["epochs"] in counts
    ]
    name = "learning rate" if x == "lr" else x
    if len({point["x"] for point in points}) < 2:
        return []
    return [lines_chart(points, name, title, log=True, band="quartiles", marks=marks)]


def overfits(rows: Rows, lr: float) -> bool:
    """Whether the median training MSE is lower at the last epoch count than at that of the lowest error."""
    best, last = lowest_rows(rows)[lr], [row for row in rows if row["lr"] == lr][-1]
    return or_infinity(last["train_mse"]["median"]) < or_infinity(best["train_mse"]["median"])


def iqr(run: Run, row: Mapping[str, Any]) -> str:
    """The quartiles of the error over the seeds, of which fewer than four have no interquartile range."""
    return " to ".join(number(row["true_mse"][q]) for q in ("q25", "q75")) if run.num_seeds >= 4 else "-"


def lr_section(run: Run, alone: Mapping[float, float]) -> Section:
    """1B: what does the learning rate do to error and time? ``alone``: {rate: seconds of 1,000 epochs by themselves}"""
    rows = run.summary["over_seeds"]
    at = 1000 if any(row["epochs"] == 1000 for row in rows) else max(row["epochs"] for row in rows)
    here = {row["lr"]: row for row in rows if row["epochs"] == at}
    target = 1.5 * min(map(error_of, rows))
    reached, table = {}, []
    for lr, lowest in lowest_rows(rows).items():
        reached[lr] = next((r["epochs"] for r in rows if r["lr"] == lr and error_of(r) <= target < math.inf), None)
        table.append(
            {
                "learning rate": f"{lr:g}",
                f"MSE against the noise-free f at {at:,} epochs": number(here[lr]["true_mse"]["median"]),
                "lowest of the listed epochs": number(lowest["true_mse"]["median"]),
                "at epochs": f"{lowest['epochs']:,}",
                "first at most 1.5 times the best of any rate": f"{reached[lr]:,}" if reached[lr] else "never",
                "seconds of 1,000 epochs alone": f"{alone[lr]:.2f}" if alone.get(lr) else "-",
            }
        )
    best = min(here.values(), key=error_of)
    times = [seconds for lr in reached if (seconds := round(alone.get(lr, 0), 2))]
    facts = common_facts(run) | {
        "at": at,
        "best_lr": best["lr"],
        "best_mse": best["true_mse"]["median"],
        "reached": reached if target < math.inf else {},
        "seconds": (min(times), max(times)) if len(times) > 1 else None,
    }
    return Section("lr", f"rates-{run.path.name}", facts, table, mse_chart(run, "lr", MSE))


def settings_section(run: Run) -> Section:
    """1C: which settings fit this function best?"""
    rows = {(row["lr"], row["epochs"]): row for row in run.summary["over_seeds"]}
    table = [
        {
            "learning rate": f"{row['lr']:g}",
            "best epochs": f"{row['best_epochs']:,}",
            "MSE against the noise-free f": number(row["best_true_mse"]),
            "interquartile range (IQR) of the seeds": iqr(run, rows[row["lr"], row["best_epochs"]]),
            "epochs chosen by a validation sample": f"{row['held_out_epochs']:,}",
            "MSE against the noise-free f there": number(row["held_out_true_mse"]),
        }
        for row in run.summary["auto"]
    ]
    best, auto = best_setting(run.summary["over_seeds"]), run.summary["auto"]
    stopped = next(row["held_out_epochs"] for row in auto if row["lr"] == best["lr"])
    marks = [
        {"x": best["epochs"], "text": f"lowest, at learning rate {best['lr']:g}"},
        {"x": stopped, "text": "early stopping there"},
    ]
    charts = mse_chart(run, "epochs", MSE, marks=marks) or list(map(fits_chart, growths(run)))
    return Section(
        "settings", f"settings-{run.path.name}", common_facts(run) | {"best": best, "auto": auto}, table, charts
    )


# Exercise 2


def classifier_sections(runs: Sequence[Run], data_root: str) -> list[Section]:
    """Runs that differ by their seeds only together; one that continued another without its drop beside that one."""
    classifiers = [run for run in runs if not run.is_curve and run.summary["epochs"]]
    groups: dict[tuple[str, tuple[str, int] | None], list[Run]] = {}
    for run in classifiers:
        groups.setdefault((run.settings(but={"seed"}), run.origin(but={"seed"})), []).append(run)
    with_drop = [run for run in classifiers if drops_once(run)]
    branches = {a.path: next((b for b in classifiers if is_branch(a, b)), None) for a in with_drop}
    sections: list[Section] = []
    for group in groups.values():
        if any(run in branches.values() for run in group):
            continue
        sections.append(training_section(group))
        dropped = [run for run in group if run in with_drop]
        if dropped:
            sections.append(drop_section(dropped, [(a, b) for a in dropped if (b := branches[a.path])], data_root))
        ends = [(run.summary["epochs"][-1].get("probe_acc"), run.summary["test_acc"]) for run in group]
        if all(None not in end for end in ends):
            sections.append(gap_section(group, data_root))
    return sections


def training_section(runs: Sequence[Run]) -> Section:
    """2: accuracy and loss over the epochs, means over runs that differ by their seeds only."""
    summary = runs[0].summary
    measured_on = summary["measured_on"]
    # A time limit ends runs of the same settings in different epochs.
    epochs = list(zip(*(run.summary["epochs"] for run in runs), strict=False))
    titles = {
        "train_loss": "train loss",
        "train_acc": "train accuracy (epoch average)",
        "val_loss": f"{measured_on} loss",
        "val_acc": f"{measured_on} accuracy",
    }
    columns = {
        name: title for name, title in titles.items() if any(row[name] is not None for row in itertools.chain(*epochs))
    }
    table = [
        {"epoch": str(rows[0]["epoch"]), "learning rate": f"{rows[0]['lr']:.3g}"}
        | {title: spread([row[name] for row in rows], name.endswith("acc")) for name, title in columns.items()}
        for rows in epochs
    ]
    tested = [run.summary["test_acc"] for run in runs]
    facts = {name: summary[name] for name in ("recipe", "data", "train_batches")}
    facts |= {"runs": [run.path.name for run in runs], "is_cut": summary["train_batches"] < batches_of_all(summary)}
    facts["test_acc"] = None if None in tested else mean_ci(tested)
    marks = lr_marks(summary["epochs"])
    charts = []
    for kind, title, scale in (("acc", "accuracy [%]", 100), ("loss", "cross-entropy loss [nats]", 1)):
        names = {"train": "train (epoch average)", "probe": "training subset, eval mode", "val": measured_on}
        lines = [mean_line(epochs, f"{name}_{kind}", line, scale) for name, line in names.items()]
        charts.append(lines_chart([*itertools.chain(*lines)], EPOCH, title, band="mean ± SD", marks=marks))
    return Section("training", "curve", facts, table, charts)


def lr_marks(epochs: Rows) -> list[dict[str, Any]]:
    """A vertical line of a chart at each epoch in which the learning rate became another."""
    return [{"x": epoch - 0.5, "text": f"learning rate {lr:g}"} for epoch, lr in lr_changes(epochs)]


def batches_of_all(summary: Mapping[str, Any]) -> int:
    """Training batches of an epoch that no flag cuts."""
    settings = summary["settings"]
    return CIFAR10DataModule(
        batch_size=settings["batch_size"], val_size=settings["val_size"], dataset=summary["data"]
    ).num_batches["train"]


def mean_line(epochs: Iterable[Rows], name: str, line: str, scale: float) -> list[dict[str, Any]]:
    """Mean and standard deviation over the runs, of each epoch in which all have a value."""
    found = []
    for rows in epochs:
        values = [scale * row[name] for row in rows if row.get(name) is not None]
        if len(values) == len(rows):
            mean, sd = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
            band = {} if sd is None else {"low": mean - sd, "high": mean + sd}
            found.append({"line": line, "x": rows[0]["epoch"], "y": mean, **band})
    return found


def drop_section(runs: Sequence[Run], pairs: Sequence[tuple[Run, Run]], data_root: str) -> Section:
    """2: what did the learning-rate drop do? ``pairs``: those of the runs that were continued without it, and how."""
    runs, others = [run for run, _ in pairs] or runs, [other for _, other in pairs]
    noises = [measured("noise", data_root, run) for run in runs]
    lines = [{"run": r.path.name, **line} for r, o in pairs if (line := measured("lines", data_root, r, o))]
    anew = [measured("renewed", data_root, r, o) for r, o in pairs]
    found = lr_drop(
        [run.summary["epochs"] for run in runs],
        [other.summary["epochs"] for other in others],
        math.ceil(runs[0].summary["train_batches"] / runs[0].summary["settings"].get("accumulate_grad_batches", 1)),
        [noise["noise"] for noise in noises if "noise" in noise],
    )
    columns = {
        "change at the drop [pp]": found["change"],
        "change without it [pp]": found["change_without"],
        "effect at once [pp]": found["effect"],
        "effect at the end [pp]": found["final_effect"],
    }
    table = [
        {"run": run.path.name}
        | {name: f"{100 * value['values'][i]:+.2f}" if value else "-" for name, value in columns.items()}
        for i, run in enumerate(runs)
    ]
    points = [
        {"line": name, "run": run.path.name, "x": row["epoch"], "y": 100 * row["val_acc"]}
        for name, part in (("without the drop", others), ("with the drop", runs))
        for run in part
        for row in run.summary["epochs"]
    ]
    measured_on = runs[0].summary["measured_on"]
    facts = {
        **found,
        "measured_on": measured_on,
        "valley": valley(lines),
        "renewed": renewed(anew if all(anew) else ()),
    }
    marks = lr_marks(runs[0].summary["epochs"])
    charts = [lines_chart(points, EPOCH, f"{measured_on} accuracy [%]", marks=marks), *valley_charts(lines)]
    return Section("drop", "drop", facts, table, charts)


def valley_charts(lines: Sequence[Mapping[str, Any]]) -> list[alt.LayerChart]:
    """The training loss along straight lines between weights, of each seed."""
    ways = [{"without the drop": line["without"], "with the drop": line["with"]} for line in lines]
    steps = [{f"step {i}": losses for i, losses in enumerate(line["steps"], start=1)} for line in lines]
    charts = []
    for at, losses_of_seeds, title in (
        ("along", ways, "the way from the weights before the drop (0)\nto those one epoch later (1)"),
        ("across", steps, "a single step from the weights before it (0)\nto those after it (1)"),
    ):
        points = [
            {"line": name, "run": line["run"], "x": x, "y": loss}
            for line, losses_of_lines in zip(lines, losses_of_seeds, strict=True)
            for name, losses in losses_of_lines.items()
            for x, loss in zip(line[at], losses, strict=True)
        ]
        if points:
            marks = [{"x": 0, "text": ""}, {"x": 1, "text": ""}]
            charts.append(lines_chart(points, title, "training loss [nats]", marks=marks))
    return charts


def gap_section(runs: Sequence[Run], data_root: str) -> Section:
    """2: what lies between training and test accuracy?"""
    each = []
    for run in runs:
        last = run.summary["epochs"][-1]
        known = {"epoch_average": last["train_acc"], "probe": last["probe_acc"], "test": run.summary["test_acc"]}
        each.append(known | measured("gap", data_root, run))
    found = gap(each)
    table = [
        {"run": run.path.name, **{GAP_COLUMNS[name]: f"{100 * one[name]:.2f} %" for name in found["accuracies"]}}
        for run, one in zip(runs, each, strict=True)
    ]
    return Section("gap", "gap", found, table, [waterfall_chart(waterfall(found["accuracies"]))])


def waterfall(accuracies: Mapping[str, float]) -> list[dict[str, Any]]:
    """From the training accuracy (epoch average) to the test accuracy, and the steps between them, in percent."""
    percent = {name: 100 * value for name, value in accuracies.items()}
    bars = [
        {"name": GAP_STEPS[name], "start": start, "end": end, "text": f"{end - start:+.1f} pp"}
        for (_, start), (name, end) in itertools.pairwise(percent.items())
    ]
    first, last = (
        {"name": name, "start": value, "end": value, "text": f"{value:.1f} %"}
        for name, value in (("training accuracy", percent["epoch_average"]), ("test accuracy", percent["test"]))
    )
    return [first, *bars, last]


# Numbers


def spread(values: Sequence[float | None], percent: bool) -> str:
    """Mean ± standard deviation of those that are known."""
    scale, digits, unit = (100, 2, " %") if percent else (1, 3, "")
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}{unit}"
