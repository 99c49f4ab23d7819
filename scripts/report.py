"""The questions of both exercises, answered from runs: one self-contained report.html."""

# isort: split
import base64
import io
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.style
import torch
from matplotlib.figure import Figure

from callbacks.atomic import write_atomically
from callbacks.classifier_answers import (
    GAP,
    drop_sentences,
    epoch_of_drop,
    gap_sentences,
    mean_and_interval,
    what_the_drop_did,
)
from callbacks.curve_answers import sentence
from callbacks.figures import drop_figure, gap_figure, quartiles_figure, rates_figure, training_figure
from callbacks.run_page import about
from scripts.cli import Parser, UserError, main
from scripts.measure import measured

SCRIPTS = Path(__file__).parent
LABS_FUNCTION = "(x+1)**2 + sin(x**2+1) - log(x**2+1)"


@dataclass
class Section:
    """A question, its answer in sentences, and the figures and the table that the answer is read off."""

    id: str
    question: str
    answer: list[str]
    figures: list[tuple[str, str, str]] = field(default_factory=list)  # light, dark, what it shows
    table: list[list[str]] = field(default_factory=list)  # the first row is the header


@dataclass(frozen=True)
class Run:
    """A finished run directory."""

    path: Path
    summary: dict[str, Any]

    @property
    def is_curve(self) -> bool:
        return "over_seeds" in self.summary

    @property
    def num_seeds(self) -> int:
        """Of a curve fit."""
        return len({result["seed"] for result in self.summary["results"]})


def run() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("run_dirs", nargs="*", type=str, help="finished runs; without any, the runs that are missing are made")
    add("--out", type=str, default="report.html", help="where the report goes")
    add("--quick", type=bool, default=False, help="short runs: 5 minutes on two cores, too few to show much")
    add("--num_seeds", type=int, default=3, help="runs of the classifier, with and without the fall of the rate")
    add("--data_root", type=str, default=os.environ.get("CIFAR10_ROOT", "data"), help="where CIFAR-10 is")
    add("--runs", type=str, default="runs/report", help="the folder of the runs that are made")
    cfg = parser.parse_args()
    out = Path(cfg.out)
    if not out.name or out.is_dir():
        raise UserError(f"--out '{cfg.out}' is no name of a file: give one, such as report.html")
    if cfg.num_seeds < 1:
        raise UserError(f"--num_seeds is {cfg.num_seeds}; it must be at least 1")
    paths = [Path(name) for name in cfg.run_dirs] or make_runs(cfg)
    runs = [read(path) for path in expand(paths)]
    sections = [*curve_sections(runs), *classifier_sections(runs, cfg.data_root)]
    number_ids(sections)
    if not sections:
        raise UserError("these runs answer no question of the exercises: give finished runs of fit.py or cifar.py")
    html = render(sections, runs, cfg.quick and not cfg.run_dirs)
    write_atomically(out, lambda file: file.write(html.encode()))
    print(f"Wrote {cfg.out}, from {len(runs)} runs")


def make_runs(cfg: Any) -> list[Path]:
    """Makes the runs that are missing in ``cfg.runs``, goes on with those that were interrupted; their directories."""
    folder = Path(cfg.runs + ("_quick" if cfg.quick else ""))
    epochs = ["10", "50", "100", "200", "500", "1000", "2000", "5000", "10000", "50000", "100000"]
    epochs = epochs[:-2] if cfg.quick else epochs
    curve = ["fit.py", "--num_seeds", "8"]
    by_hand = ["200", "500", "1000", "2000", "3000", "3500", "4000"]
    own = ["--function", LABS_FUNCTION, "--lr", "0.01", "0.001", "--epochs", *by_hand, "auto"]
    data = ["--data_root", cfg.data_root]
    if not (Path(cfg.data_root) / "cifar-10-batches-py").is_dir():
        print(f"CIFAR-10 is not in {cfg.data_root}: the classifier learns the SYNTHETIC images")
        data = ["--data", "synthetic"]
    short = ["--max_epochs", "6", "--limit_train_batches", "50"] if cfg.quick else []
    short += ["--limit_val_batches", "10", "--limit_test_batches", "20"] if cfg.quick else []
    step, seeds = ("{3: 0.01}", 1) if cfg.quick else ("{5: 0.01}", cfg.num_seeds)
    classifier = ["cifar.py", *data, "--probe_train", "true", *short]
    wanted = {
        "rates": [*curve, "--lr", "1", "0.1", "0.01", "0.001", "--epochs", *epochs],
        "own": [*curve, *own],
        **{f"alone_{lr}": ["fit.py", "--epochs", "1000", "--lr", lr] for lr in ("1", "0.1", "0.01", "0.001")},
    }
    for seed in map(str, range(seeds)):
        with_drop = folder / f"with_{seed}"
        branch = with_drop / "checkpoints" / f"end_of_epoch{int(step[1]) - 1}.ckpt"
        wanted[with_drop.name] = [*classifier, "--seed", seed, "--milestones", step]
        wanted[f"without_{seed}"] = [*classifier, "--seed", seed, "--milestones", "{}", "--ckpt_path", str(branch)]
    for name, (script, *flags) in wanted.items():
        run_dir = folder / name
        if (run_dir / "summary.json").is_file():
            continue
        if (run_dir / "config.yaml").is_file():
            flags += ["--ckpt_path", "last"]
        command = [sys.executable, str(SCRIPTS / script), *flags, "--run_dir", str(run_dir)]
        print(f"== {shlex.join(['python', 'scripts/' + script, *command[2:]])}", flush=True)
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"the run {run_dir} failed, see above; what is done already will not be done again")
    return [folder / name for name in wanted]


def expand(paths: Sequence[Path]) -> list[Path]:
    """A run of several seeds as the runs that it holds, by their numbers; no run twice."""
    found: dict[Path, Path] = {}
    for path in paths:
        seeds = [p for p in path.glob("seed*") if p.is_dir() and p.name[4:].isdecimal()]
        for p in sorted(seeds, key=lambda p: int(p.name[4:])) or [path]:
            found.setdefault(p.resolve(), p)
    return list(found.values())


def read(path: Path) -> Run:
    """The finished run in ``path``. Raises UserError where there is none."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        if isinstance(summary, dict) and ("over_seeds" in summary or "epochs" in summary):
            return Run(path, summary)
    except (OSError, ValueError):
        pass
    raise UserError(f"{path} holds no finished run: its summary.json is missing or broken")


# Exercise 1


def curve_sections(runs: Sequence[Run]) -> list[Section]:
    """A run of one setting beside others of the same function only tells its time; alone it gets its section."""
    curves = [r for r in runs if r.is_curve and r.summary["over_seeds"]]
    single = [r for r in curves if len(r.summary["over_seeds"]) == 1 and "auto" not in r.summary]
    studies = [r for r in curves if r not in single]
    studied = {r.summary["function"] for r in studies}
    sections = []
    for run in [*studies, *(r for r in single if r.summary["function"] not in studied)]:
        rows = run.summary["over_seeds"]
        sections.append(epochs_section(run))
        if len({row["lr"] for row in rows}) > 1:
            same = [r.summary for r in single if r.summary["function"] == run.summary["function"]]
            alone = [(s["results"][0], s["seconds"]["train"]) for s in same if len(s["results"]) == 1]
            sections.append(rates_section(run, {one["lr"]: s for one, s in alone if one["epochs"] == 1000}))
        if "auto" in run.summary:
            sections.append(settings_section(run))
    return sections


def epochs_section(run: Run) -> Section:
    """1A: what do more epochs do?"""
    rows, function = run.summary["over_seeds"], run.summary["function"]
    header = ["learning rate", "epochs", "training error", "true error", "middle half of the seeds", "R²"]
    table = [
        [f"{row['lr']:g}", f"{row['epochs']:,}", number(row["train_mse"]["median"]), number(row["true_mse"]["median"]),
         middle_half(run, row), number(row["r2"]["median"], no_r2(row))]
        for row in rows
    ]  # fmt: skip
    told = [sentence(part["lr"], part, run.num_seeds) for part in run.summary["more_training"]]
    answer = told or ["One measured epoch count says nothing about more epochs."]
    figure = drawn(lambda: quartiles_figure(rows), "training and true error against epochs, for each learning rate")
    return Section(
        f"epochs-{run.path.name}", f"What do more epochs do? f(x) = {function}", answer, [figure], [header, *table]
    )


def middle_half(run: Run, row: Mapping[str, Any]) -> str:
    """The quartiles of the true error over the seeds, of which fewer than four have no middle half."""
    return " to ".join(number(row["true_mse"][q]) for q in ("q25", "q75")) if run.num_seeds >= 4 else "-"


def no_r2(row: Mapping[str, Any]) -> str:
    """What a missing R² means: a constant function has none, however well it is learnt."""
    return "diverged" if row["true_mse"]["median"] is None else "-"


def rates_section(run: Run, alone: Mapping[float, float]) -> Section:
    """1B: what does the learning rate do to error and time? ``alone``: {rate: seconds of 1,000 epochs by themselves}"""
    rows = run.summary["over_seeds"]
    by_lr: dict[float, list[Any]] = {}
    for row in rows:
        by_lr.setdefault(row["lr"], []).append(row)
    at = 1000 if any(row["epochs"] == 1000 for row in rows) else max(row["epochs"] for row in rows)
    best = {lr: min(part, key=lambda row: finite(row["true_mse"]["median"])) for lr, part in by_lr.items()}
    target = 1.5 * min(finite(row["true_mse"]["median"]) for row in rows)
    reached = {
        lr: next((row["epochs"] for row in part if finite(row["true_mse"]["median"]) <= target < math.inf), None)
        for lr, part in by_lr.items()
    }
    header = ["learning rate", f"true error at {at:,} epochs", "least true error", "at epochs"]
    header += ["first measured within 1.5 times the least of all", "seconds of 1,000 epochs alone"]
    table = []
    for lr, part in by_lr.items():
        here = next((row for row in part if row["epochs"] == at), None)
        seconds = f"{alone[lr]:.2f}" if alone.get(lr) else "-"
        errors = [number(row["true_mse"]["median"]) if row else "-" for row in (here, best[lr])]
        reach = f"{reached[lr]:,}" if reached[lr] else "never"
        table.append([f"{lr:g}", *errors, f"{best[lr]['epochs']:,}", reach, seconds])
    at_best = min((row for row in rows if row["epochs"] == at), key=lambda row: finite(row["true_mse"]["median"]))
    least = number(at_best["true_mse"]["median"])
    answer = [f"At {at:,} epochs learning rate {at_best['lr']:g} has the least true error, {least}."]
    if least == "diverged":
        answer = [f"At {at:,} epochs every learning rate had diverged."]
    told = [f"{lr:g}: {f'{epochs:,} epochs' if epochs else 'never'}" for lr, epochs in reached.items()]
    if target < math.inf:
        answer.append(f"A true error within 1.5 times the least of all is first measured at {'; '.join(told)}.")
    times = [alone[lr] for lr in by_lr if alone.get(lr)]  # an older run's are 0 if it was stopped before it was told
    if len(times) > 1:
        factor = max(times) / min(times)
        answer.append(
            f"1,000 epochs alone took {min(times):.2f} to {max(times):.2f} s, a factor of {factor:.2f}: "
            + (
                "an epoch costs the same at every rate but for the noise of so short a measurement. A smaller rate "
                "costs more only by the epochs that it needs."
                if factor < 1.5
                else "too noisy to say that an epoch costs the same at every rate, as its arithmetic does."
            )
        )
    figure = drawn(lambda: rates_figure(rows), "true error against the learning rate, for each number of epochs")
    return Section(
        f"rates-{run.path.name}",
        f"What does the learning rate do? f(x) = {run.summary['function']}",
        answer,
        [figure],
        [header, *table],
    )


def settings_section(run: Run) -> Section:
    """1C: which settings fit this function best?"""
    header = ["learning rate", "best epochs", "true error", "middle half of the seeds"]
    header += ["epochs that held-out points choose", "true error there"]
    rows = {(row["lr"], row["epochs"]): row for row in run.summary["over_seeds"]}
    table = [
        [f"{row['lr']:g}", f"{row['best_epochs']:,}", number(row["best_true_mse"]),
         middle_half(run, rows[row["lr"], row["best_epochs"]]),
         f"{row['held_out_epochs']:,}", number(row["held_out_true_mse"])]
        for row in run.summary["auto"]
    ]  # fmt: skip
    best = min(run.summary["auto"], key=lambda row: finite(row["best_true_mse"]))
    if best["best_true_mse"] is None:
        answer = ["With every setting that was tried the training diverged."]
    else:
        answer = settings_answer(best)
    figures = []
    if (run.path / "curves.png").is_file():
        address = png_address((run.path / "curves.png").read_bytes())
        figures.append((address, address, "the curves that were learnt"))
    return Section(
        f"settings-{run.path.name}",
        f"Which settings fit best? f(x) = {run.summary['function']}",
        answer,
        figures,
        [header, *table],
    )


def settings_answer(best: Mapping[str, Any]) -> list[str]:
    """1C in sentences: ``best`` is the entry of the summary's "auto" with the least true error."""
    error, held_out = best["best_true_mse"], best["held_out_true_mse"]
    told = [
        f"The best setting found is learning rate {best['lr']:g} and {best['best_epochs']:,} epochs, with a true error "
        f"of {number(error)}, the median of the same seeds that chose it."
    ]
    if held_out is not None:
        told.append(
            f"Who does not know f and stops by a held-out noisy sample takes {best['held_out_epochs']:,} epochs and "
            f"gets {number(held_out)} (medians over the seeds)"
            + (f", {held_out / error:.2f} times that." if error else ".")
        )
    return told


# Exercise 2


def classifier_sections(runs: Sequence[Run], data_root: str) -> list[Section]:
    """Of each recipe its seeds together; a run that left another one before its rate fell is told beside that one."""
    classifiers = [r for r in runs if not r.is_curve and r.summary["epochs"]]
    groups: dict[Any, list[Run]] = {}
    for run in classifiers:
        group = groups.setdefault(settings_of(run), [])
        if all(run.summary["epochs"][0]["train_loss"] != r.summary["epochs"][0]["train_loss"] for r in group):
            group.append(run)  # the same seed again would count as another one
    with_drop = [run for group in groups.values() if falls_once(group[0]) for run in group]
    branches = [next((b for b in classifiers if is_branch(a, b)), None) for a in with_drop]
    pairs = [(a, b) for a, b in zip(with_drop, branches, strict=True) if b]
    sections: list[Section] = []
    for group in groups.values():
        if any(b in group for _, b in pairs):
            continue
        sections.append(curve_section(group))
        if group[0] in with_drop:
            sections.append(drop_section(group, [(a, b) for a, b in pairs if a in group], data_root))
        last = group[0].summary["epochs"][-1]
        if last.get("probe_acc") is not None and all(r.summary["test_acc"] is not None for r in group):
            sections.append(gap_section(group, data_root))
    return sections


def falls_once(run: Run) -> bool:
    """Whether the learning rate is one number, then a smaller one, and each epoch was measured."""
    rows = run.summary["epochs"]
    at = epoch_of_drop(rows)
    if at is None or any(row["val_acc"] is None for row in rows):
        return False
    return {row["lr"] for row in rows[:at]} == {rows[0]["lr"]} and {row["lr"] for row in rows[at:]} == {rows[at]["lr"]}


def settings_of(run: Run) -> tuple[Any, ...]:
    """What runs have in common that differ by their seeds only."""
    epochs = run.summary["epochs"]
    names = ("recipe", "data", "measured_on", "train_batches", "val_batches", "batch_size")
    known = (run.summary.get(name) for name in names)
    return (*known, *((row["lr"], row["val_acc"] is None, row.get("probe_acc") is None) for row in epochs))


def is_branch(run: Run, other: Run) -> bool:
    """Whether ``other`` is the same run up to the fall of the rate, and went on without it as long, measured alike."""
    rows, its = run.summary["epochs"], other.summary["epochs"]
    at = epoch_of_drop(rows) or 0
    return (
        all(run.summary.get(name) == other.summary.get(name) for name in ("measured_on", "val_batches"))
        and [row["train_loss"] for row in rows[:at]] == [row["train_loss"] for row in its[:at]]
        and len(rows) == len(its)
        and all(row["lr"] == rows[0]["lr"] and row["val_acc"] is not None for row in its)
    )


def curve_section(runs: Sequence[Run]) -> Section:
    """2: the course of the training, means over runs that differ by their seeds."""
    epochs = [r.summary["epochs"] for r in runs]
    measured_on = runs[0].summary["measured_on"]
    header = ["epoch", "learning rate", "train loss", "train accuracy (running)"]
    header += [f"{measured_on} loss", f"{measured_on} accuracy"]
    names = ("train_loss", "train_acc", "val_loss", "val_acc")
    table = [
        [str(rows[0]["epoch"]), f"{rows[0]['lr']:g}", *(spread([r[n] for r in rows], n.endswith("acc")) for n in names)]
        for rows in zip(*epochs, strict=True)
    ]
    data = "CIFAR-10" if runs[0].summary["data"] == "cifar10" else "the SYNTHETIC stand-in for CIFAR-10"
    recipe, tested = runs[0].summary["recipe"], [r.summary["test_acc"] for r in runs]
    if None in tested:
        answer = [f"Recipe {recipe} on {data} was not tested."]
    else:
        final = mean_and_interval(tested)
        deviation = "" if final["sd"] is None else f", standard deviation {final['sd']:.2%} over {len(runs)} seeds"
        answer = [f"Recipe {recipe} on {data} ends at {final['mean']:.2%} test accuracy{deviation}."]
    if runs[0].summary["train_batches"] < 300:
        answer.append(
            f"Each epoch had only {runs[0].summary['train_batches']} batches: a demonstration, not the exercise."
        )
    figure = drawn(lambda: training_figure(epochs, tested, measured_on), "accuracy and loss")
    return Section("curve", f"What does recipe {recipe} do, epoch by epoch?", answer, [figure], [header, *table])


def drop_section(runs: Sequence[Run], pairs: Sequence[tuple[Run, Run]], data_root: str) -> Section:
    """2: what did the fall of the rate do? ``pairs``: of these runs those that were continued without it, and how."""
    rows = [a.summary["epochs"] for a, _ in pairs] or [r.summary["epochs"] for r in runs]
    without = [b.summary["epochs"] for _, b in pairs]
    answer = what_the_drop_did(rows, without)
    columns = ("change at the fall", "change without it", "effect at once", "effect at the end")
    header = ["run", *(f"{column} [points]" for column in columns)]
    names = ["change", "change_without", "effect", "final_effect"]
    shown = [a for a, _ in pairs] or list(runs)
    noises = [measured(run.path, run.summary, "noise", data_root).get("noise") for run in shown]
    table = [
        [shown[i].path.name, *(points(answer[n]["values"][i]) if n in answer else "-" for n in names)]
        for i in range(len(rows))
    ]
    steps, measured_on = runs[0].summary["train_batches"], runs[0].summary["measured_on"]
    figure = drawn(lambda: drop_figure(rows, without, measured_on), "accuracy with and without the fall of the rate")
    question = "What happens to accuracy when the learning rate falls, and why?"
    told = drop_sentences(answer, steps, measured_on, [noise for noise in noises if noise is not None])
    return Section("drop", question, told, [figure], [header, *table])


def gap_section(runs: Sequence[Run], data_root: str) -> Section:
    """2: what lies between train and test accuracy?"""
    gaps = [gap_parts(run, data_root) for run in runs]
    names = [name for name in GAP if all(name in parts for parts in gaps)]
    mean = {name: sum(parts[name] for parts in gaps) / len(runs) for name in names}
    table = [[run.path.name, *(f"{parts[name]:.2%}" for name in names)] for run, parts in zip(runs, gaps, strict=True)]
    answer = gap_sentences(gaps)
    if len(names) < len(GAP):
        is_fast = runs[0].summary["recipe"] == "fast"
        why = "recipe fast augments in its own way" if is_fast else "that needs the runs' checkpoints and images"
        answer.append(f"The first step is not taken apart: {why}.")
    figure = drawn(lambda: gap_figure(mean), "from the running training accuracy to the test accuracy, step by step")
    return Section("gap", "How do train and test accuracy relate?", answer, [figure], [["run", *names], *table])


def gap_parts(run: Run, data_root: str) -> dict[str, float]:
    """Accuracies of a run's end, as ``gap_sentences`` takes them."""
    last = run.summary["epochs"][-1]
    parts = {"running": last["train_acc"], "probe": last["probe_acc"], "test": run.summary["test_acc"]}
    return parts | measured(run.path, run.summary, "gap", data_root)


# The page


def drawn(make: Callable[[], Figure], text: str) -> tuple[str, str, str]:
    """The figure as data addresses, on light and on dark ground."""
    addresses = []
    for style in ("default", "dark_background"):
        with matplotlib.style.context(style), matplotlib.rc_context({"savefig.transparent": True}):
            file = io.BytesIO()
            make().savefig(file, format="png", dpi=110)
        addresses.append(png_address(file.getvalue()))
    return addresses[0], addresses[1], text


def png_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def finite(value: float | None) -> float:
    """Infinity for what diverged, null in a summary."""
    return math.inf if value is None else value


def number(value: float | None, missing: str = "diverged") -> str:
    """Three digits of it."""
    return missing if value is None else f"{value:.3g}"


def points(value: float) -> str:
    """A difference of accuracies, in percent."""
    return f"{100 * value:+.2f}"


def spread(values: Sequence[float | None], percent: bool) -> str:
    """Mean ± standard deviation of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    shown = mean_and_interval(known)
    form = (lambda x: f"{100 * x:.2f}") if percent else (lambda x: f"{x:.3f}")
    return (
        form(shown["mean"]) + (f" ± {form(shown['sd'])}" if shown["sd"] is not None else "") + (" %" if percent else "")
    )


def number_ids(sections: Sequence[Section]) -> None:
    """Gives each section an id of its own: the first of a name keeps it, the others are numbered."""
    used: set[str] = set()
    for section in sections:
        ids = itertools.chain([section.id], (f"{section.id}-{n}" for n in itertools.count(2)))
        section.id = next(id for id in ids if id not in used)
        used.add(section.id)


def render(sections: Sequence[Section], runs: Sequence[Run], quick: bool) -> str:
    """The page: the sections, then the machine and the commands behind them."""
    facts = about(torch.device("cpu"))
    lines = {name: [line.removeprefix("- ") for line in facts[name].split("\n")] for name in ("versions", "machine")}
    commands = [f"{run.path}: {run.summary.get('command', 'see its config.yaml')}" for run in runs]
    lead = "Every number here is computed from the runs that are listed at the end."
    if quick:
        lead += " These were short runs: they show what the report looks like, and little else."
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((SCRIPTS / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title="Two first experiments of deep learning",
        lead=lead, sections=sections, about=list(lines.items()), commands=commands,
    )  # fmt: skip


if __name__ == "__main__":
    main(run, files="--out, --runs, --data_root")
