"""What runs of the classifier show of the learning-rate drop, and of training against test accuracy."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.statistics import MeanCI, mean_ci

Rows = Sequence[Mapping[str, Any]]  # the epochs of a run, as in its summary.json
Facts = dict[str, Any]  # what a section of the report says; its sentences are in scripts/templates/findings.j2

# the accuracies between the training accuracy of the last epoch and the test accuracy, in this order
GAP = ("epoch_average", "batch_norm", "augmented", "probe", "test")


def epoch_of_drop(rows: Rows) -> int | None:
    """The index in ``rows`` of the first epoch with a lower learning rate than the one before; None without a drop."""
    return next((i for i in range(1, len(rows)) if rows[i]["lr"] < rows[i - 1]["lr"]), None)


def lr_changes(rows: Rows) -> list[tuple[int, float]]:
    """(epoch, new learning rate) of up to three steps; none of a rate that changes all the time, which is no event."""
    changes = [(b["epoch"], b["lr"]) for a, b in itertools.pairwise(rows) if a["lr"] != b["lr"]]
    return changes if len(changes) <= 3 and (len(changes) < len(rows) - 1 or len(changes) == 1) else []


def lr_drop(
    with_drop: Sequence[Rows], without: Sequence[Rows], steps_per_epoch: int, noises: Sequence[float] = ()
) -> Facts:
    """Compares runs, paired by seed, that are the same up to the drop of the learning rate.

    Accuracies are those of each epoch's validation, fractions of 1, losses in nats. "change" is the difference between
    the first epoch after the drop and the last before it; "effect" and "final_effect" are with the drop minus without
    it, in the first epoch after it and in the last. None is what was not measured.

    Args:
        with_drop: the epochs of the runs that drop.
        without: of the same runs, continued at the rate before; may be empty, then there are no effects.
        steps_per_epoch: optimizer steps.
        noises: gradient-noise fractions at the weights before the drop, of the runs for which they are known.

    Raises:
        ValueError: the first run has no drop.
    """
    at = epoch_of_drop(with_drop[0])
    if at is None:
        raise ValueError("these runs have no drop of the learning rate")
    pairs = list(zip(with_drop, without, strict=False))
    before = motion([rows[:at] for rows in with_drop])
    return {
        "epoch": with_drop[0][at]["epoch"],
        "accuracy_before": statistics.mean(rows[at - 1]["val_acc"] for rows in with_drop),
        "accuracy_with": statistics.mean(rows[at]["val_acc"] for rows in with_drop),
        "accuracy_without": statistics.mean(rows[at]["val_acc"] for rows in without) if pairs else None,
        "lr_before": with_drop[0][at - 1]["lr"],
        "lr_after": with_drop[0][at]["lr"],
        "steps_per_epoch": steps_per_epoch,
        "change": _change(with_drop, at, "val_acc"),
        "change_loss": _change(with_drop, at, "val_loss"),
        "change_without": _change(without, at, "val_acc") if pairs else None,
        "effect": _effect(pairs, at, "val_acc"),
        "effect_loss": _effect(pairs, at, "val_loss"),
        "final_effect": _effect(pairs, -1, "val_acc"),
        "before": before,
        "after": motion([rows[at:] for rows in with_drop]),
        "after_without": motion([rows[at:] for rows in without]) if pairs else None,
        "weights": _weights(before["straightness"], steps_per_epoch),
        "gradient_noise": min(1.0, statistics.mean(noises)) if noises else None,  # an estimate may be above 1
        "num_noises": len(noises),
    }


def renewed(runs: Sequence[Mapping[str, float]]) -> Facts | None:
    """What the drop does where no running average lags behind, as ``measure_renewed`` gives it for each run.

    "before", "with" and "without" are mean accuracies, "effect" the difference of the last two. None of no run.
    """
    if not runs:
        return None
    means = {name: statistics.mean(run[name] for run in runs) for name in ("before", "with", "without")}
    return {**means, "batches": runs[0]["batches"], "effect": mean_ci([run["with"] - run["without"] for run in runs])}


def _change(runs: Sequence[Rows], at: int, name: str) -> MeanCI:
    return mean_ci([rows[at][name] - rows[at - 1][name] for rows in runs])


def _effect(pairs: Sequence[tuple[Rows, Rows]], epoch: int, name: str) -> MeanCI | None:
    return mean_ci([a[epoch][name] - b[epoch][name] for a, b in pairs]) if pairs else None


def motion(parts: Sequence[Rows]) -> dict[str, float | None]:
    """How much accuracy varies around its linear trend, and how the weights move; means over runs and epochs.

    "residual_sd" is the standard deviation of an epoch's accuracy around the straight line through the run's epochs;
    None with fewer than three. "straightness" is the distance that the weights cover in an epoch over the length of
    their path: 1 for a straight path, near 1 / sqrt(steps) for independent random steps, less where steps undo each
    other. "path" and "displacement" are the means of both. All are None where the weights were not recorded.
    """
    moved = [row for rows in parts for row in rows if row.get("path")]
    values = {
        "residual_sd": [_residual_sd([row["val_acc"] for row in rows]) for rows in parts if len(rows) > 2],
        "straightness": [row["displacement"] / row["path"] for row in moved],
        **{name: [row[name] for row in moved] for name in ("path", "displacement")},
    }
    return {name: statistics.mean(each) if each else None for name, each in values.items()}


def _residual_sd(values: Sequence[float]) -> float:
    """The standard deviation, with n - 2 degrees of freedom, of what a straight line through the values leaves."""
    slope, intercept = statistics.linear_regression(range(len(values)), values)
    return math.sqrt(sum((y - intercept - slope * x) ** 2 for x, y in enumerate(values)) / (len(values) - 2))


def _weights(straightness: float | None, steps: int) -> str | None:
    """What the weights do in an epoch, judged against independent random steps."""
    if straightness is None:
        return None
    return "oscillate" if straightness < 1 / math.sqrt(steps) else "drift" if straightness < 0.5 else "move on"


def valley(runs: Sequence[Mapping[str, Any]]) -> Facts | None:
    """What the losses along straight lines show, as ``measure_lines`` gives them for each run; None of no run.

    "with_drop" and "without" are the changes of the loss from the weights before the drop to those one epoch later,
    "effect" is their difference. "hills" counts the runs with a higher loss than at both ends on the way with the drop,
    "dips" those with a lower one on the way without it. "crossing" counts the single steps inside which the loss is
    lower than at both ends, by "depth" on average: such a step has crossed a valley. "small_crossing" counts those of
    as many steps at the learning rate after the drop; None where they were not measured.
    """
    if not runs:
        return None
    with_drop = [_ends_and_between(run["along"], run["with"]) for run in runs]
    without = [_ends_and_between(run["along"], run["without"]) for run in runs]
    steps = [_ends_and_between(run["across"], losses) for run in runs for losses in run["steps"]]
    small = [_ends_and_between(run["across"], losses) for run in runs for losses in run.get("small_steps", ())]
    depths = [depth for ends, between in steps if (depth := _depth(ends, between)) > 0]
    changes = [end - start for (start, end), _ in with_drop]
    changes_without = [end - start for (start, end), _ in without]
    return {
        "images": runs[0]["images"],
        "with_drop": mean_ci(changes),
        "without": mean_ci(changes_without),
        "effect": mean_ci([a - b for a, b in zip(changes, changes_without, strict=True)]),
        "hills": sum(max(between) > max(ends) for ends, between in with_drop),
        "dips": sum(_depth(ends, between) > 0 for ends, between in without),
        "num_runs": len(runs),
        "crossing": len(depths),
        "num_steps": len(steps),
        "small_crossing": sum(_depth(ends, between) > 0 for ends, between in small) if small else None,
        "depth": statistics.mean(depths) if depths else 0.0,
    }


def _ends_and_between(at: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """The losses at 0 and at 1, and those between."""
    places = list(zip(at, losses, strict=True))
    return [loss for x, loss in places if x in (0, 1)], [loss for x, loss in places if 0 < x < 1]


def _depth(ends: Sequence[float], between: Sequence[float]) -> float:
    """How far the loss between lies below both ends; not positive where there is no valley."""
    return min(ends) - min(between)


def gap(runs: Sequence[Mapping[str, float]]) -> Facts:
    """Takes the gap between training and test accuracy apart.

    Args:
        runs: of each run the accuracies at its end by their names in GAP, fractions of 1: "epoch_average" over the last
            epoch, each batch scored before learning from it; on the training subset "batch_norm" (augmented, train
            mode: batch statistics), "augmented" (augmented, eval mode) and "probe" (not augmented, eval mode); and
            "test". What one run lacks is left out of all.

    Returns the mean "accuracies" by their names, and the "steps" between them: each a "change", and as "parts" the
    entries of GAP that it brings in.
    """
    names = [name for name in GAP if all(name in run for run in runs)]
    steps = [
        {
            "parts": GAP[GAP.index(start) + 1 : GAP.index(end) + 1],
            "change": mean_ci([run[end] - run[start] for run in runs]),
        }
        for start, end in itertools.pairwise(names)
    ]
    return {"accuracies": {name: statistics.mean(run[name] for run in runs) for name in names}, "steps": steps}
