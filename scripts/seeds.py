"""Several seeds by one command: a run each, in its own sub-folder, and the summary of them all."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.figures import pixels_of, save_png, training_figure
from analysis.files import read_json, write_json
from scripts.run_dir import changed_settings


def seed_runs(cfg: Namespace, top: Path) -> list[tuple[Namespace, Path]]:
    """Settings and folder of each seed's run; of a single one they are its own."""
    if cfg.num_seeds == 1:
        return [(cfg, top)]
    seeds = range(cfg.seed, cfg.seed + cfg.num_seeds)
    return [(Namespace({**cfg, "seed": seed, "num_seeds": 1}), top / f"seed{seed}") for seed in seeds]


def finished_summary(run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of a seed's run that is as long as asked for, and so need not be resumed.

    Raises:
        UsageError: it was trained with other settings than these, or is longer.
    """
    path = run_dir / "summary.json"
    if not path.exists():
        return None
    summary: dict[str, Any] = read_json(path)
    done, asked = summary["settings"], json.loads(json.dumps(settings))

    def limit(name: str, of: Mapping[str, Any]) -> float:
        return math.inf if of[name] in (None, -1) else of[name]

    lengths = ("max_epochs", "max_steps")
    if asked["max_time"] != done["max_time"] or any(limit(name, asked) > limit(name, done) for name in lengths):
        return None
    longer = [name for name in lengths if limit(name, asked) < limit(name, done)]
    if changed := [*changed_settings(done, asked), *longer]:
        raise UsageError(f"{run_dir} is finished, with another {' '.join(changed)}: start anew in another --run_dir")
    return summary


def write_summary_of_all(summaries: Sequence[Mapping[str, Any]], top: Path) -> None:
    """The top figure, and summary.json: each seed's results, their means and standard deviations."""
    tested = [summary["test_acc"] for summary in summaries]
    if all(summary["epochs"] for summary in summaries):
        figure = training_figure([summary["epochs"] for summary in summaries], tested, summaries[0]["measured_on"])
        save_png(pixels_of(figure), top / "training.png")
    spread: dict[str, float | None] = {}
    for name in ("test_acc", "test_loss"):
        values = [summary[name] for summary in summaries if summary[name] is not None]
        if values:
            spread[f"{name}_mean"] = statistics.mean(values)
            spread[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    content = {
        **{name: summaries[0][name] for name in ("recipe", "data")},
        **spread,
        "runs": [{name: s[name] for name in ("seed", "test_acc", "test_loss", "epochs")} for s in summaries],
        "seconds": {name: sum(summary["seconds"][name] for summary in summaries) for name in ("train", "total")},
    }
    write_json(top / "summary.json", content)
