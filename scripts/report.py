"""The questions of both experiments, answered from runs: one self-contained, interactive report.html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)

# isort: split
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence

import vl_convert
from jsonargparse import Namespace

from analysis.curves import Growth
from analysis.figures import fit_animation
from analysis.files import read_json, write_atomically
from analysis.provenance import about
from analysis.report import make_sections, render
from analysis.runs import FinishedRun
from cli.command import UsageError, main
from cli.parser import Parser

VEGA_LITE = "6.1"  # 6.4 shows "undefined" for names in the tooltip of the nearest point (vega-lite pull request 9707)
RATES = "fit.py --num_seeds 8 --lr 1 0.1 0.01 0.001 --epochs 10 50 100 200 500 1000 2000 5000 10000"
OWN = "fit.py --num_seeds 8 --lr 0.01 0.001 --epochs 200 500 1000 2000 3000 3500 4000 auto --function "
OWN += "'(x+1)**2 + sin(x**2+1) - log(x**2+1)'"
QUICK = " --max_epochs 8 --limit_train_batches 50 --limit_val_batches 10 --limit_test_batches 20"


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run_dirs", nargs="*", type=Path, help="finished runs, or folders of them; without any, missing runs are made")
    add("--out", type=Path, default=Path("report.html"), help="where the report goes")
    add("--animation", type=Path | None, help="also write a GIF of how the fitted curves of the first fit run grow")
    add("--animation_lr", type=float | None, help="the only learning rate in it")
    add("--quick", type=bool, default=False, help="short runs: 5 minutes on two cores, too few to show much")
    add("--num_seeds", type=int, default=3, help="runs of the classifier, with and without the learning-rate drop")
    add("--data_root", type=str | None, help="where CIFAR-10 is; default $CIFAR10_ROOT, data")
    add("--runs", type=str, default="runs/report", help="the folder of the runs that are made")
    cfg = parser.parse_args()
    runs = read_runs(cfg.run_dirs or make_runs(cfg))
    if cfg.animation:
        gif = fit_animation(growth_of(runs, cfg.animation_lr))
        write_atomically(cfg.animation, lambda file: file.write(gif))
    html = render(
        sections=make_sections(runs, cfg.data_root),
        runs=runs,
        quick=cfg.quick and not cfg.run_dirs,
        about=about(),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", VEGA_LITE),
        picture=lambda chart: vl_convert.vegalite_to_svg(chart.to_dict() | {"width": 640}, vl_version=VEGA_LITE),
    )
    write_atomically(cfg.out, lambda file: file.write(html.encode()))
    print(f"Wrote {cfg.out}, from {len(runs)} runs")


def read_runs(folders: Iterable[Path]) -> list[FinishedRun]:
    """The finished runs in these folders and below them, no run twice. Raises UsageError where a folder has none."""
    runs: dict[Path, FinishedRun] = {}
    for folder in folders:
        tree = os.walk(folder, followlinks=True)
        files = sorted(Path(root, "summary.json") for root, _, names in tree if "summary.json" in names)
        if not files:
            raise UsageError(f"{folder} holds no finished run: there is no summary.json")
        for file in files:
            try:
                summary = read_json(file)
            except ValueError as error:
                raise UsageError(f"{file} is damaged ({error}): remove it, and run its command again") from None
            if "settings" in summary:  # else it is of several seeds, whose runs are below it
                runs.setdefault(file.resolve(), FinishedRun(file.parent, summary))
    return list(runs.values())


def growth_of(runs: Sequence[FinishedRun], lr: float | None) -> Growth:
    """The fitted curves of the first curve fit that has this learning rate, or any. Raises UsageError without one."""
    for run in runs:
        if run.is_curve and lr in (None, *run.summary["settings"]["lr"]):
            growth: Growth = read_json(run.path / "curves.json")
            return {**growth, "fits": [fit for fit in growth["fits"] if lr in (None, fit["lr"])]}
    raise UsageError("no run has such curves: give --animation a run of fit.py, --animation_lr a learning rate of it")


def make_runs(cfg: Namespace) -> list[Path]:
    """Makes the runs that are missing in ``cfg.runs`` and resumes those that were interrupted; their directories."""
    folder = Path(cfg.runs + "_quick" * cfg.quick)
    commands = {folder / "rates": RATES + " 50000 100000" * (not cfg.quick), folder / "own": OWN}
    for seed in range(1 if cfg.quick else cfg.num_seeds):
        where = f"--data_root {shlex.quote(cfg.data_root)} " if cfg.data_root else ""
        flags = f"{where}--probe_train true{QUICK * cfg.quick} --seed {seed}"
        commands[folder / f"with_{seed}"] = f"cifar.py {flags} --milestones '{{5: 0.01}}'"
        branch = shlex.quote(f"{folder}/with_{seed}/checkpoints/end_of_epoch4.ckpt")
        # A milestone that changes nothing: the weights one epoch after it are kept, as in the run with the drop.
        commands[folder / f"without_{seed}"] = f"cifar.py {flags} --milestones '{{5: 0.1}}' --ckpt_path {branch}"
    for run_dir, command in commands.items():
        if not (run_dir / "summary.json").exists():
            last = " --ckpt_path last" if (run_dir / "config.yaml").exists() else ""
            command += f"{last} --run_dir {shlex.quote(str(run_dir))}"
            print(f"== python scripts/{command}")
            script, *arguments = shlex.split(command)
            if run_child([sys.executable, str(Path(__file__).with_name(script)), *arguments]):
                raise UsageError(f"the run {run_dir} failed, see above; finished runs will not be repeated")
    return list(commands)


def run_child(command: Sequence[str]) -> int:
    """Runs a command to its end and returns its exit code; interrupted, lets it save first."""
    with subprocess.Popen(command) as child:
        try:
            return child.wait()
        except SystemExit:  # SIGTERM came to this process alone; Ctrl-C comes to both
            child.terminate()
            raise


if __name__ == "__main__":
    main(run)
