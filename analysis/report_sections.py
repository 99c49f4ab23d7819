"""The sections of the report: which runs belong together, and the numbers, tables and figures of each question.

The sentences are in scripts/templates/findings.j2: a section's ``kind`` and ``facts`` are what they are written from.
"""

import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.classifier_figures import gap_figure, lr_drop_figure, training_figure
from analysis.classifier_findings import epoch_of_drop, gap, lr_drop
from analysis.classifier_measurements import measured
from analysis.curve_figures import errors_figure, lr_figure
from analysis.drawing import light_and_dark
from analysis.statistics import mean_ci, number

# settings that say where a run's files are, how it is shown and how often it is saved, not what it learns
NEUTRAL = {"config", "run_dir", "ckpt_path", "data_root", "download"}
NEUTRAL |= {"num_seeds", "save_every_n_steps", "enable_progress_bar"}
LENGTH = {"max_epochs", "max_steps", "max_time"}
# settings of the classifier that decide what a training step does; with these alike two runs differ by their rate only
TRAINING = "batch_size momentum nesterov weight_decay precision image_sizes max_shift alternate_flips".split()
TRAINING += "limit_train_batches accumulate_grad_batches gradient_clip_val".split()
GAP_COLUMNS = {
    "epoch_average": "training accuracy (epoch average)",
    "batch_norm": "training subset, augmented, train mode",
    "augmented": "training subset, augmented, eval mode",
    "probe": "training subset, eval mode",
    "test": "test accuracy",
}


@dataclass(frozen=True)
class Picture:
    """PNG files for light and for dark ground, and what they show."""

    light: bytes
    dark: bytes
    text: str


@dataclass
class Section:
    """A question of the ``kind`` and the ``facts`` that answer it, with the table and the pictures to read them off."""

    kind: str
    id: str
    facts: Mapping[str, Any]
    table: list[list[str]]  # the first row is the header
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and its summary.json."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def is_curve(self) -> bool:
        return "over_seeds" in self.summary

    @property
    def num_seeds(self) -> int:
        """Of a curve fit."""
        return len({result["seed"] for result in self.summary["results"]})

    @property
    def measured_on(self) -> str:
        """Of a classifier: "test" or "validation", which older summaries call "held-out"."""
        return "test" if self.summary["measured_on"] == "test" else "validation"

    def settings(self, but: Collection[str] = ()) -> str:
        """What is comparable of the settings: all but the neutral ones and those of these names."""
        return comparable(self.summary["settings"], but)

    def origin(self, but: Collection[str] = ()) -> tuple[str, int] | None:
        """Settings of the run with whose checkpoint this one began, and the epochs that it had done; None without."""
        origin = self.summary["origin"]
        return None if origin is None else (comparable(origin["settings"], but), origin["epochs"])


def comparable(settings: Mapping[str, Any], but: Collection[str] = ()) -> str:
    return json.dumps({k: v for k, v in settings.items() if k not in NEUTRAL and k not in but}, sort_keys=True)


def make_sections(runs: Sequence[Run], data_root: str) -> list[Section]:
    """The sections that the runs have something for, each with an id of its own; no run counts twice."""
    distinct: dict[tuple[object, ...], Run] = {}
    for run in runs:
        seeds = (run.summary["seed"], run.num_seeds if run.is_curve else 1)
        distinct.setdefault((run.is_curve, seeds, run.settings(), run.origin()), run)
    runs = list(distinct.values())
    sections = [*curve_sections(runs), *classifier_sections(runs, data_root)]
    number_ids(sections)
    return sections


def number_ids(sections: Sequence[Section]) -> None:
    """Gives each section an id of its own: the first of a name keeps it, the others are numbered."""
    used: set[str] = set()
    for section in sections:
        ids = itertools.chain([section.id], (f"{section.id}-{n}" for n in itertools.count(2)))
        section.id = next(id for id in ids if id not in used)
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
    header = ["learning rate", "epochs", "training MSE", "MSE against the noise-free f"]
    header += ["interquartile range (IQR) of the seeds", "R²"]
    table = [
        [f"{row['lr']:g}", f"{row['epochs']:,}", number(row["train_mse"]["median"]), number(row["true_mse"]["median"]),
         iqr(run, row), number(row["r2"]["median"], no_r2(row))]
        for row in rows
    ]  # fmt: skip
    facts = {
        "function": run.summary["function"],
        "num_seeds": run.num_seeds,
        "more_training": [
            {**part, "overfits": overfits([row for row in rows if row["lr"] == part["lr"]])}
            for part in run.summary["more_training"]
        ],
    }
    text = "training MSE and MSE against the noise-free f over epochs, for each learning rate"
    picture = drawn(lambda: errors_figure(rows), text)
    return Section("epochs", f"epochs-{run.path.name}", facts, [header, *table], [picture])


def overfits(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the median training MSE is lower at the last epoch count than at that of the lowest error."""
    best = min(rows, key=lambda row: finite(row["true_mse"]["median"]))
    return finite(rows[-1]["train_mse"]["median"]) < finite(best["train_mse"]["median"])


def iqr(run: Run, row: Mapping[str, Any]) -> str:
    """The quartiles of the error over the seeds, of which fewer than four have no interquartile range."""
    return " to ".join(number(row["true_mse"][q]) for q in ("q25", "q75")) if run.num_seeds >= 4 else "-"


def no_r2(row: Mapping[str, Any]) -> str:
    """What a missing R² means: a constant function has none, however well it is fitted."""
    return "diverged" if row["true_mse"]["median"] is None else "-"


def lr_section(run: Run, alone: Mapping[float, float]) -> Section:
    """1B: what does the learning rate do to error and time? ``alone``: {rate: seconds of 1,000 epochs by themselves}"""
    rows = run.summary["over_seeds"]
    by_lr: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_lr.setdefault(row["lr"], []).append(row)
    at = 1000 if any(row["epochs"] == 1000 for row in rows) else max(row["epochs"] for row in rows)
    target = 1.5 * min(map(error_of, rows))
    reached = {
        lr: next((row["epochs"] for row in part if error_of(row) <= target < math.inf), None)
        for lr, part in by_lr.items()
    }
    header = ["learning rate", f"MSE against the noise-free f at {at:,} epochs", "lowest", "at epochs"]
    header += ["first measured within 1.5 times the lowest of all", "seconds of 1,000 epochs alone"]
    table = []
    for lr, part in by_lr.items():
        best, here = min(part, key=error_of), next((row for row in part if row["epochs"] == at), None)
        errors = [number(row["true_mse"]["median"]) if row else "-" for row in (here, best)]
        reach = f"{reached[lr]:,}" if reached[lr] else "never"
        seconds = f"{alone[lr]:.2f}" if alone.get(lr) else "-"
        table.append([f"{lr:g}", *errors, f"{best['epochs']:,}", reach, seconds])
    best = min((row for row in rows if row["epochs"] == at), key=error_of)
    times = [alone[lr] for lr in by_lr if alone.get(lr)]
    facts = {
        "function": run.summary["function"],
        "num_seeds": run.num_seeds,
        "at": at,
        "best_lr": best["lr"],
        "best_mse": best["true_mse"]["median"],
        "reached": reached if target < math.inf else {},
        "seconds": (min(times), max(times)) if len(times) > 1 else None,
    }
    picture = drawn(lambda: lr_figure(rows), "MSE against the noise-free f over the learning rate")
    return Section("lr", f"rates-{run.path.name}", facts, [header, *table], [picture])


def settings_section(run: Run) -> Section:
    """1C: which settings fit this function best?"""
    header = ["learning rate", "best epochs", "MSE against the noise-free f", "interquartile range (IQR) of the seeds"]
    header += ["epochs chosen by a validation sample", "MSE against the noise-free f there"]
    rows = {(row["lr"], row["epochs"]): row for row in run.summary["over_seeds"]}
    table = [
        [f"{row['lr']:g}", f"{row['best_epochs']:,}", number(row["best_true_mse"]),
         iqr(run, rows[row["lr"], row["best_epochs"]]),
         f"{row['held_out_epochs']:,}", number(row["held_out_true_mse"])]
        for row in run.summary["auto"]
    ]  # fmt: skip
    best = min(run.summary["auto"], key=lambda row: finite(row["best_true_mse"]))
    facts = {"function": run.summary["function"], "num_seeds": run.num_seeds, "best": best}
    pictures = []
    if (run.path / "curves.png").is_file():
        png = (run.path / "curves.png").read_bytes()
        pictures.append(Picture(png, png, "the fitted curves"))
    return Section("settings", f"settings-{run.path.name}", facts, [header, *table], pictures)


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


def drops_once(run: Run) -> bool:
    """Whether the milestones make the learning rate one number, then a smaller one, and each epoch was measured."""
    rows = run.summary["epochs"]
    at = epoch_of_drop(rows) if run.summary["settings"].get("milestones") else None
    if at is None or any(row["val_acc"] is None for row in rows):
        return False
    return {row["lr"] for row in rows[:at]} == {rows[0]["lr"]} and {row["lr"] for row in rows[at:]} == {rows[at]["lr"]}


def is_branch(run: Run, other: Run) -> bool:
    """Whether ``other`` continued ``run`` from just before its drop, without it, as long and measured alike."""
    rows, its = run.summary["epochs"], other.summary["epochs"]
    settings, its_settings = run.summary["settings"], other.summary["settings"]
    return (
        other.origin(but=LENGTH) == (run.settings(but=LENGTH), epoch_of_drop(rows))
        and other.summary["seed"] == run.summary["seed"]
        and all(settings.get(name) == its_settings.get(name) for name in TRAINING)
        and other.measured_on == run.measured_on
        and other.summary.get("val_batches") == run.summary.get("val_batches")
        and len(its) == len(rows)
        and all(row["lr"] == rows[0]["lr"] and row["val_acc"] is not None for row in its)
    )


def training_section(runs: Sequence[Run]) -> Section:
    """2: accuracy and loss over the epochs, means over runs that differ by their seeds only."""
    epochs, measured_on = [run.summary["epochs"] for run in runs], runs[0].measured_on
    header = ["epoch", "learning rate", "train loss", "train accuracy (epoch average)"]
    header += [f"{measured_on} loss", f"{measured_on} accuracy"]
    names = ("train_loss", "train_acc", "val_loss", "val_acc")
    table = [
        [str(rows[0]["epoch"]), f"{rows[0]['lr']:g}", *(spread([r[n] for r in rows], n.endswith("acc")) for n in names)]
        for rows in zip(*epochs, strict=False)  # a time limit ends runs of the same settings in different epochs
    ]
    tested = [run.summary["test_acc"] for run in runs]
    facts = {
        "recipe": runs[0].summary["recipe"],
        "data": runs[0].summary["data"],
        "test_acc": None if None in tested else mean_ci(tested),
        "train_batches": runs[0].summary["train_batches"],
    }
    picture = drawn(lambda: training_figure(epochs, tested, measured_on), "accuracy and loss over epochs")
    return Section("training", "curve", facts, [header, *table], [picture])


def drop_section(runs: Sequence[Run], pairs: Sequence[tuple[Run, Run]], data_root: str) -> Section:
    """2: what did the learning-rate drop do? ``pairs``: those of the runs that were continued without it, and how."""
    runs = [run for run, _ in pairs] or runs
    epochs, without = [run.summary["epochs"] for run in runs], [other.summary["epochs"] for _, other in pairs]
    noises = [measured(run.path, run.summary, "noise", data_root).get("noise") for run in runs]
    steps, measured_on = runs[0].summary["train_batches"], runs[0].measured_on
    found = lr_drop(epochs, without, steps, [noise for noise in noises if noise is not None])
    columns = {
        "change at the drop [pp]": found["change"],
        "change without it [pp]": found["change_without"],
        "effect at once [pp]": found["effect"],
        "effect at the end [pp]": found["final_effect"],
    }
    table = [
        [run.path.name, *(points(value["values"][i]) if value else "-" for value in columns.values())]
        for i, run in enumerate(runs)
    ]
    text = f"{measured_on} accuracy with and without the learning-rate drop"
    picture = drawn(lambda: lr_drop_figure(epochs, without, measured_on), text)
    return Section("drop", "drop", {**found, "measured_on": measured_on}, [["run", *columns], *table], [picture])


def gap_section(runs: Sequence[Run], data_root: str) -> Section:
    """2: what lies between training and test accuracy?"""
    each = []
    for run in runs:
        last = run.summary["epochs"][-1]
        known = {"epoch_average": last["train_acc"], "probe": last["probe_acc"], "test": run.summary["test_acc"]}
        each.append(known | measured(run.path, run.summary, "gap", data_root))
    found = gap(each)
    names = list(found["accuracies"])
    table = [
        [run.path.name, *(f"{100 * one[name]:.2f} %" for name in names)] for run, one in zip(runs, each, strict=True)
    ]
    header = ["run", *(GAP_COLUMNS[name] for name in names)]
    text = "from the training accuracy (epoch average) to the test accuracy, step by step"
    picture = drawn(lambda: gap_figure(found["accuracies"]), text)
    return Section("gap", "gap", found, [header, *table], [picture])


# Numbers and pictures


def drawn(draw: Callable[[], Figure], text: str) -> Picture:
    return Picture(*light_and_dark(draw), text)


def finite(value: float | None) -> float:
    """Infinity for what diverged, null in a summary."""
    return math.inf if value is None else value


def error_of(row: Mapping[str, Any]) -> float:
    """The median MSE against the noise-free f."""
    return finite(row["true_mse"]["median"])


def points(value: float) -> str:
    """A difference of accuracies, in percentage points."""
    return f"{100 * value:+.2f}"


def spread(values: Sequence[float | None], percent: bool) -> str:
    """Mean ± standard deviation of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    scale, digits = (100, 2) if percent else (1, 3)
    shown = mean_ci([scale * value for value in known])
    deviation = "" if shown["sd"] is None else f" ± {shown['sd']:.{digits}f}"
    return f"{shown['mean']:.{digits}f}{deviation}{' %' if percent else ''}"
