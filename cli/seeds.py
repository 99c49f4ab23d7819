"""Several seeds by one command: an ordinary run for each, one after the other, and the summary of them all."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from analysis.figures import save_png, training_figure
from analysis.files import write_json
from cli import START
from cli.command import UsageError, is_rank_zero
from cli.parser import Parser
from cli.run import plain_settings, write_settings


def train_seeds(
    parser: Parser, cfg: Namespace, top: Path, train: Callable[[Namespace, Path, Path, float], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The summaries of ``train(cfg, folder, top, start)`` for seed, seed+1, ..., in sub-folders of ``top``."""
    if cfg.ckpt_path not in (None, "last"):
        raise UsageError("--ckpt_path PATH resumes one run: leave out --num_seeds; with it, 'last' resumes all")
    resumes = cfg.ckpt_path and (top / f"seed{cfg.seed}" / "config.yaml").exists()
    if (top / "config.yaml").exists() and not resumes:
        raise UsageError(f"{top} holds a run already: resume it by its own command, or choose another --run_dir")
    summaries: list[dict[str, Any]] = []
    for seed in range(cfg.seed, cfg.seed + cfg.num_seeds):
        folder = top / f"seed{seed}"
        ckpt_path = "last" if cfg.ckpt_path and (folder / "config.yaml").exists() else None
        own = Namespace({**cfg, "seed": seed, "num_seeds": 1, "ckpt_path": ckpt_path})
        summaries.append(train(own, folder, top, time.perf_counter() if summaries else START))
    if is_rank_zero():
        write_settings(top, plain_settings(parser, cfg))
        write_json(top / "summary.json", summary_of_all(summaries))
        if all(summary["epochs"] for summary in summaries):
            epochs, tested = ([summary[name] for summary in summaries] for name in ("epochs", "test_acc"))
            save_png(training_figure(epochs, tested, summaries[0]["measured_on"]), top / "training.png")
    return summaries


def summary_of_all(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Each seed's results, their means and standard deviations."""
    content = {name: summaries[0][name] for name in ("recipe", "data")}
    tested = [name for name in summaries[0] if name.startswith("test_")]
    for name in tested:
        values = [summary[name] for summary in summaries if summary[name] is not None]
        if values:
            content[f"{name}_mean"] = statistics.mean(values)
            content[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    content["runs"] = [{name: s[name] for name in ("seed", *tested, "epochs")} for s in summaries]
    return content | {"seconds": {name: sum(s["seconds"][name] for s in summaries) for name in ("train", "total")}}
