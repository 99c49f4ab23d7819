"""The questions of both experiments, answered from runs: one self-contained, interactive report.html."""

import cli  # noqa: F401  (first: all other imports are faster)

# isort: split
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import vl_convert
from jsonargparse import Namespace

from analysis.curves import Growth
from analysis.figures import fit_animation
from analysis.files import read_json, write_atomically
from analysis.provenance import about
from analysis.report import make_sections, render
from analysis.runs import Run
from cli.command import UsageError, main
from cli.parser import Parser, default_data_root
from datamodules import CIFAR10DataModule

VEGA_LITE = "6.1"  # 6.4 shows "undefined" for names in the tooltip of the nearest point (vega-lite pull request 9707)
LABS_FUNCTION = "(x+1)**2 + sin(x**2+1) - log(x**2+1)"


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    text = "finished runs, or folders of them; without any, the runs that are missing are made"
    add("run_dirs", nargs="*", type=str, help=text)
    add("--out", type=str, default="report.html", help="where the report goes")
    add("--animation", type=str | None, help="also write a GIF of how the fitted curves of the first fit run grow")
    add("--animation_lr", type=float | None, help="the only learning rate in it")
    add("--quick", type=bool, default=False, help="short runs: 5 minutes on two cores, too few to show much")
    add("--num_seeds", type=int, default=3, help="runs of the classifier, with and without the learning-rate drop")
    add("--data_root", type=str, default=default_data_root(), help="where CIFAR-10 is")
    add("--runs", type=str, default="runs/report", help="the folder of the runs that are made")
    cfg = parser.parse_args()
    runs = read_runs([Path(name).expanduser() for name in cfg.run_dirs] or make_runs(cfg))
    sections = make_sections(runs, cfg.data_root)
    if not sections:
        raise UsageError("these runs answer no question of the experiments: give finished runs of fit.py or cifar.py")
    if cfg.animation:
        gif = fit_animation(growth_of(runs, cfg.animation_lr))
        write_atomically(Path(cfg.animation).expanduser(), lambda file: file.write(gif))
    html = render(
        sections=sections,
        runs=runs,
        quick=cfg.quick and not cfg.run_dirs,
        about=about(torch.device("cpu")),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", VEGA_LITE),
        picture=lambda chart: vl_convert.vegalite_to_svg(chart.to_dict() | {"width": 640}, vl_version=VEGA_LITE),
    )
    write_atomically(Path(cfg.out).expanduser(), lambda file: file.write(html.encode()))
    print(f"Wrote {cfg.out}, from {len(runs)} runs")


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The finished runs in these folders and below them, no run twice; what is none is skipped with a line on stderr.

    Raises:
        UsageError: there is none in one of the folders.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        files = sorted(folder.glob("**/summary.json"))
        if not files:
            raise UsageError(f"{folder} holds no finished run: there is no summary.json")
        for file in files:
            try:
                summary = read_json(file)
                if "runs" not in summary:  # the summary of several seeds, whose runs are below it
                    summary["settings"]
                    found.setdefault(file.parent.resolve(), Run(file.parent, summary))
            except (ValueError, KeyError, TypeError):
                print(f"skipped: {file} is not the summary of a run", file=sys.stderr)
    return list(found.values())


def growth_of(runs: Sequence[Run], lr: float | None) -> Growth:
    """The fitted curves of the first curve fit that has this learning rate, or of any.

    Raises:
        UsageError: there is none.
    """
    for run in runs:
        if run.is_curve and lr in (None, *run.summary["settings"]["lr"]):
            growth: Growth = read_json(run.path / "curves.json")
            return {**growth, "fits": [fit for fit in growth["fits"] if lr in (None, fit["lr"])]}
    raise UsageError("no run has such curves: give --animation a run of fit.py, --animation_lr a learning rate of it")


def make_runs(cfg: Namespace) -> list[Path]:
    """Makes the runs that are missing in ``cfg.runs`` and resumes those that were interrupted; their directories."""
    folder = Path(cfg.runs + ("_quick" if cfg.quick else ""))
    commands = {**curve_commands(cfg.quick), **classifier_commands(cfg, folder)}
    for name, (script, *flags) in commands.items():
        run_dir = folder / name
        if (run_dir / "summary.json").is_file():
            continue
        if (run_dir / "config.yaml").is_file():
            flags += ["--ckpt_path", "last"]
        command = [str(Path(__file__).with_name(script)), *flags, "--run_dir", str(run_dir)]
        print(f"== {shlex.join(['python', f'scripts/{script}', *command[1:]])}", flush=True)
        if run_child([sys.executable, *command]):
            raise UsageError(f"the run {run_dir} failed, see above; finished runs will not be repeated")
    return [folder / name for name in commands]


def run_child(command: Sequence[str]) -> int:
    """Runs a command to its end and returns its exit code; interrupted, lets it save first."""
    child = subprocess.Popen(command)
    try:
        return child.wait()
    except BaseException as interruption:
        if not isinstance(interruption, KeyboardInterrupt):  # which a terminal sends to both
            child.terminate()
        child.wait()
        raise


def curve_commands(quick: bool) -> dict[str, list[str]]:
    """{name of the run: script and flags}"""
    long = [] if quick else ["50000", "100000"]
    rates = "--num_seeds 8 --lr 1 0.1 0.01 0.001 --epochs 10 50 100 200 500 1000 2000 5000 10000".split()
    own = "--num_seeds 8 --lr 0.01 0.001 --epochs 200 500 1000 2000 3000 3500 4000 auto".split()
    return {"rates": ["fit.py", *rates, *long], "own": ["fit.py", *own, "--function", LABS_FUNCTION]}


def classifier_commands(cfg: Namespace, folder: Path) -> dict[str, list[str]]:
    """{name of the run: script and flags}: of each seed a run with the drop, and its continuation without it."""
    data, prefix = ["--data_root", cfg.data_root], ""
    if not CIFAR10DataModule(cfg.data_root).is_at_hand:
        print(f"CIFAR-10 is not in {cfg.data_root}: the classifier learns the SYNTHETIC images")
        data, prefix = ["--data", "synthetic"], "synthetic_"
    common = ["cifar.py", *data, "--probe_train", "true"]
    if cfg.quick:
        common += "--max_epochs 6 --limit_train_batches 50 --limit_val_batches 10 --limit_test_batches 20".split()
    drop, num_seeds = (3, 1) if cfg.quick else (5, cfg.num_seeds)
    commands = {}
    for seed in range(num_seeds):
        branch = folder / f"{prefix}with_{seed}" / "checkpoints" / f"end_of_epoch{drop - 1}.ckpt"
        flags = [*common, "--seed", str(seed), "--milestones"]
        commands[f"{prefix}with_{seed}"] = [*flags, f"{{{drop}: 0.01}}"]
        # A milestone that changes nothing: the weights one epoch after it are kept, as in the run with the drop.
        commands[f"{prefix}without_{seed}"] = [*flags, f"{{{drop}: 0.1}}", "--ckpt_path", str(branch)]
    return commands


if __name__ == "__main__":
    main(run)
