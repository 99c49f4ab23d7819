"""The questions of both experiments, answered from runs: one self-contained, interactive report.html."""

import scripts  # noqa: F401  (first: all other imports are faster)

# isort: split
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import altair
import torch
import vl_convert
from jsonargparse import Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.curve_animation import fit_animation
from analysis.files import read_json, write_atomically
from analysis.provenance import about
from analysis.report_sections import growths, make_sections
from analysis.runs import Run
from datamodules import CIFAR10DataModule
from scripts.commandline import Parser, default_data_root, main
from scripts.rendering import environment

SCRIPTS = Path(__file__).parent
VEGA_LITE = "6.1"  # 6.4 shows "undefined" for names in the tooltip of the nearest point (vega-lite pull request 9707)
LABS_FUNCTION = "(x+1)**2 + sin(x**2+1) - log(x**2+1)"


def run() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "run_dirs",
        nargs="*",
        type=str,
        help="finished runs, or folders of them; without any, the runs that are missing are made",
    )
    add("--out", type=str, default="report.html", help="where the report goes")
    add("--animation", type=str | None, help="also write a GIF of how the fitted curves of the first fit run grow")
    add("--animation_lr", type=float | None, help="the only learning rate in it")
    add("--quick", type=bool, default=False, help="short runs: 5 minutes on two cores, too few to show much")
    add("--num_seeds", type=int, default=3, help="runs of the classifier, with and without the learning-rate drop")
    add("--data_root", type=str, default=default_data_root(), help="where CIFAR-10 is")
    add("--runs", type=str, default="runs/report", help="the folder of the runs that are made")
    cfg = parser.parse_args()
    out = Path(cfg.out).expanduser()
    if not out.name or out.is_dir():
        raise UsageError(f"--out '{cfg.out}' is no name of a file: give one, such as report.html")
    gif = Path(cfg.animation or "")
    is_animated = (cfg.animation, cfg.animation_lr) != (None, None)
    if is_animated and (gif.suffix.lower() != ".gif" or gif.is_dir()):
        raise UsageError("--animation, needed by --animation_lr too, is the name of a GIF: fit.gif")
    if cfg.num_seeds < 1:
        raise UsageError(f"--num_seeds is {cfg.num_seeds}; it must be at least 1")
    paths = [Path(name).expanduser() for name in cfg.run_dirs] or make_runs(cfg)
    runs = read_all(paths)
    sections = make_sections(runs, cfg.data_root)
    if not sections:
        raise UsageError("these runs answer no question of the experiments: give finished runs of fit.py or cifar.py")
    if is_animated:
        animate(runs, cfg.animation_lr, gif)
    page = environment(autoescape=True).get_template("report.html")
    quick = cfg.quick and not cfg.run_dirs
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", VEGA_LITE)
    html = page.render(
        sections=sections, runs=runs, quick=quick, about=about(torch.device("cpu")), vega=vega, picture=picture
    )
    write_atomically(out, lambda file: file.write(html.encode()))
    print(f"Wrote {cfg.out}, from {len(runs)} runs")


def animate(runs: Sequence[Run], lr: float | None, gif: Path) -> None:
    """Writes the fitted curves of the first run that has any, of learning rate ``lr`` if it is given.

    Raises:
        UsageError: there is none.
    """
    found = [
        (run, growth | {"fits": fits})
        for run in runs
        for growth in growths(run)
        if (fits := [fit for fit in growth["fits"] if lr in (None, fit["lr"])])
    ]
    if not found:
        raise UsageError(
            "no run has curves to animate: give --animation a run of fit.py, and --animation_lr a learning rate of it"
        )
    run, growth = found[0]
    content = fit_animation(growth)
    write_atomically(gif, lambda file: file.write(content))
    print(f"Wrote {gif}, from {run.path}")


def picture(chart: altair.LayerChart) -> str:
    """The chart as SVG, for where no script runs."""
    return vl_convert.vegalite_to_svg(chart.to_dict() | {"width": 640}, vl_version=VEGA_LITE)


def make_runs(cfg: Namespace) -> list[Path]:
    """Makes the runs that are missing in ``cfg.runs`` and resumes those that were interrupted; their directories."""
    folder = Path(cfg.runs + ("_quick" if cfg.quick else ""))
    wanted = {**curve_commands(cfg.quick), **classifier_commands(cfg, folder)}
    for name, (script, *flags) in wanted.items():
        run_dir = folder / name
        if (run_dir / "summary.json").is_file():
            continue
        if (run_dir / "config.yaml").is_file():
            flags += ["--ckpt_path", "last"]
        command = [sys.executable, str(SCRIPTS / script), *flags, "--run_dir", str(run_dir)]
        print(f"== {shlex.join(['python', 'scripts/' + script, *command[2:]])}", flush=True)
        if run_child(command):
            raise UsageError(f"the run {run_dir} failed, see above; finished runs will not be repeated")
    return [folder / name for name in wanted]


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
    lrs, long = ["1", "0.1", "0.01", "0.001"], [] if quick else ["50000", "100000"]
    rates = "--num_seeds 8 --epochs 10 50 100 200 500 1000 2000 5000 10000".split()
    own = "--num_seeds 8 --lr 0.01 0.001 --epochs 200 500 1000 2000 3000 3500 4000 auto".split()
    return {
        "rates": ["fit.py", *rates, *long, "--lr", *lrs],
        "own": ["fit.py", *own, "--function", LABS_FUNCTION],
        **{f"alone_{lr}": ["fit.py", "--epochs", "1000", "--lr", lr] for lr in lrs},
    }


def classifier_commands(cfg: Namespace, folder: Path) -> dict[str, list[str]]:
    """{name of the run: script and flags}: of each seed a run with the drop, and its continuation without it."""
    data = ["--data_root", cfg.data_root]
    name = ""
    if not CIFAR10DataModule(cfg.data_root).is_at_hand:
        print(f"CIFAR-10 is not in {cfg.data_root}: the classifier learns the SYNTHETIC images")
        data, name = ["--data", "synthetic"], "synthetic_"
    short = ["--max_epochs", "6", "--limit_train_batches", "50"] if cfg.quick else []
    short += ["--limit_val_batches", "10", "--limit_test_batches", "20"] if cfg.quick else []
    common = ["cifar.py", *data, "--probe_train", "true", *short]
    drop, num_seeds = (3, 1) if cfg.quick else (5, cfg.num_seeds)
    commands = {}
    for seed in range(num_seeds):
        branch = folder / f"{name}with_{seed}" / "checkpoints" / f"end_of_epoch{drop - 1}.ckpt"
        flags = [*common, "--seed", str(seed), "--milestones"]
        commands[f"{name}with_{seed}"] = [*flags, f"{{{drop}: 0.01}}"]
        # A milestone that changes nothing: the weights one epoch after it are kept, as in the run with the drop.
        commands[f"{name}without_{seed}"] = [*flags, f"{{{drop}: 0.1}}", "--ckpt_path", str(branch)]
    return commands


def read_all(paths: Sequence[Path]) -> list[Run]:
    """Runs, of several seeds by their numbers, and of a folder the finished ones in it; no run twice.

    Raises:
        UsageError: a path holds none. In a folder of several what is no run is skipped, and a line on stderr says why.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        is_run = (path / "summary.json").is_file() or seeds_of(path)
        inside = [] if is_run else sorted(file.parent for file in path.glob("**/summary.json"))
        for run_dir in inside or [path]:
            for p in seeds_of(run_dir) or [run_dir]:
                if p.resolve() in found:
                    continue
                try:
                    found[p.resolve()] = read(p)
                except UsageError as error:
                    if not inside:
                        raise
                    print(f"skipped: {error}", file=sys.stderr)
    return list(found.values())


def seeds_of(run_dir: Path) -> list[Path]:
    seeds = [p for p in run_dir.glob("seed*") if p.is_dir() and p.name[4:].isdecimal()]
    return sorted(seeds, key=lambda p: int(p.name[4:]))


def read(path: Path) -> Run:
    """The finished run in ``path``.

    Raises:
        UsageError: there is none.
    """
    try:
        summary = read_json(path / "summary.json")
        if isinstance(summary, dict) and "settings" in summary and ("over_seeds" in summary or "epochs" in summary):
            return Run(path, summary)
    except (OSError, ValueError):
        pass
    raise UsageError(f"{path} holds no finished run: its summary.json is missing or broken")


if __name__ == "__main__":
    main(run, files="--out, --animation, --runs, --data_root")
