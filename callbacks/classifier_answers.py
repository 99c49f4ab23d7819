"""What runs of the classifier say about the fall of the learning rate, and about train against test accuracy."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]  # the epochs of a run, as in its summary.json

# two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """{"values", "mean", "sd", "low", "high"}: Student's 95 % interval of the mean; None where one value has none."""
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return {"values": list(values), "mean": mean, "sd": None, "low": None, "high": None}
    sd = statistics.stdev(values)
    half = _T95[min(n - 1, len(_T95)) - 1] * sd / math.sqrt(n)
    return {"values": list(values), "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def epoch_of_drop(rows: Rows) -> int | None:
    """The place in ``rows`` of the first epoch with a lower rate than the one before it; None without such a fall."""
    return next((i for i in range(1, len(rows)) if rows[i]["lr"] < rows[i - 1]["lr"]), None)


def what_the_drop_did(with_drop: Sequence[Rows], without: Sequence[Rows]) -> dict[str, Any]:
    """Compares runs, paired by seed, that are the same up to the fall of the learning rate.

    Accuracies are those of each epoch's validation, fractions of 1. "change" is the difference between the first epoch
    after the fall and the last before it, "effect" and "final_effect" are with the fall minus without it, in the first
    epoch after and in the last; "change_loss" and "effect_loss" are the same of the loss, in nats. Of "before", "after"
    and "after_without" see ``_wandering``. Empty ``without``: no effects.
    """
    at = epoch_of_drop(with_drop[0])
    assert at is not None, "these runs have no fall of the learning rate"

    def change(rows: Rows, name: str = "val_acc") -> float:
        return rows[at][name] - rows[at - 1][name]

    answer: dict[str, Any] = {
        "epoch": with_drop[0][at]["epoch"],
        "lr_before": with_drop[0][at - 1]["lr"],
        "lr_after": with_drop[0][at]["lr"],
        "change": mean_and_interval([change(rows) for rows in with_drop]),
        "change_loss": mean_and_interval([change(rows, "val_loss") for rows in with_drop]),
        "before": _wandering([rows[:at] for rows in with_drop]),
        "after": _wandering([rows[at:] for rows in with_drop]),
    }
    pairs = list(zip(with_drop, without, strict=False))
    if pairs:
        answer["change_without"] = mean_and_interval([change(b) for _, b in pairs])
        answer["effect"] = mean_and_interval([a[at]["val_acc"] - b[at]["val_acc"] for a, b in pairs])
        answer["effect_loss"] = mean_and_interval([a[at]["val_loss"] - b[at]["val_loss"] for a, b in pairs])
        answer["after_without"] = _wandering([b[at:] for _, b in pairs])
        answer["final_effect"] = mean_and_interval([a[-1]["val_acc"] - b[-1]["val_acc"] for a, b in pairs])
    return answer


def _wandering(parts: Sequence[Rows]) -> dict[str, float | None]:
    """Means over runs: how much accuracy wanders about its trend, and over epochs too: how the weights move.

    "scatter" is the standard deviation of an epoch's accuracy about the straight line through the run's epochs; None
    with fewer than three. "straightness" is the distance that an epoch covers over the length of its path: 1 for a walk
    in a straight line, near 1 / sqrt(steps) for independent random steps, less where steps undo each other. "path" is
    the mean length of a path.
    """
    moved = [row for rows in parts for row in rows if row.get("path")]

    def mean(values: Sequence[float]) -> float | None:
        return statistics.mean(values) if values else None

    return {
        "scatter": mean([_about_its_line([row["val_acc"] for row in rows]) for rows in parts if len(rows) > 2]),
        "straightness": mean([row["displacement"] / row["path"] for row in moved]),
        "path": mean([row["path"] for row in moved]),
    }


def _about_its_line(values: Sequence[float]) -> float:
    """The standard deviation, with n - 2 degrees of freedom, of what a straight line through the values leaves."""
    slope, intercept = statistics.linear_regression(range(len(values)), values)
    return math.sqrt(sum((y - intercept - slope * x) ** 2 for x, y in enumerate(values)) / (len(values) - 2))


def drop_sentences(
    answer: Mapping[str, Any], steps_per_epoch: int, measured_on: str = "test", noises: Sequence[float] = ()
) -> list[str]:
    """The answer in plain sentences, ``measured_on`` test or held-out images; what is not shown is said to be so.

    ``noises``: of runs where it is known, the part of a batch's gradient, by squared length, that is noise, at the
    weights before the fall.
    """
    change, fall = answer["change"], f"{answer['lr_before']:g} to {answer['lr_after']:g}"
    told = [
        f"When the learning rate falls from {fall} (epoch {answer['epoch']}), {measured_on} accuracy changes by "
        f"{_points(change)} within one epoch, and the loss by {answer['change_loss']['mean']:+.3f}."
    ]
    if "effect" in answer:
        effect, final = answer["effect"], answer["final_effect"]
        told.append(
            f"The same runs continued at {answer['lr_before']:g} from the same weights change by "
            f"{_points(answer['change_without'])} in that epoch. The fall itself is worth {_points(effect)} at once, "
            f"and {_points(final)} at the end; in the loss {answer['effect_loss']['mean']:+.3f} at once. "
            f"{_verdict('At once', effect)} {_verdict('At the end', final)}"
        )
    else:
        told.append("No run was continued without the fall, so how much of this is the fall's doing is not known.")
    before, after = answer["before"], answer["after"]
    without = answer.get("after_without", before)
    if without["scatter"] is not None and after["scatter"] is not None:
        where = "without it, in the same epochs" if "after_without" in answer else "before it"
        told.append(
            f"About its trend the accuracy scatters from epoch to epoch with a standard deviation of "
            f"{100 * after['scatter']:.2f} points after the fall, and of {100 * without['scatter']:.2f} {where}."
        )
    if before["straightness"] is None or after["straightness"] is None:
        told.append("Why was not measured: --probe_train true records how the weights move.")
        return told
    random = 1 / math.sqrt(steps_per_epoch)
    is_undone = before["straightness"] < random
    told.append(
        f"In an epoch of {steps_per_epoch} steps at {answer['lr_before']:g} the weights walk a path of length "
        f"{before['path']:.3g} and end {100 * before['straightness']:.1f} % of that away from where they began; a "
        f"straight walk would give 100 %, one of independent random steps {100 * random:.1f} %. "
        + (
            "So the steps undo each other: the weights move to and fro. "
            if is_undone
            else "So the weights move like random steps with a drift. "
            if before["straightness"] < 0.5
            else "So the weights move mostly onwards. "
        )
        + f"At {answer['lr_after']:g} the path is {after['path']:.3g} long, its end "
        f"{100 * after['straightness']:.1f} % of that away."
    )
    share = min(1.0, statistics.mean(noises)) if noises else 0.0  # an estimate may be above 1
    if noises:
        told.append(
            f"At the weights before the fall, {100 * share:.0f} % of a batch's gradient, by squared length, is noise, "
            f"which other batches do not share ({_seeds(len(noises))})."
        )
    worth = answer.get("effect", change)
    if is_undone and (worth["mean"] if worth["low"] is None else worth["low"]) > 0:
        told.append(
            ("So most of a gradient is chance, and later steps undo it. " if share > 0.5 else "")
            + "That fits the picture of a valley: at the larger rate the weights jump to and fro across it; shorter "
            "steps let them sink into it. It is a picture that these numbers agree with, not a proof"
            + ("." if noises else "; how much of a gradient is the batch's noise was not measured.")
        )
    return told


# the accuracies between the running training accuracy and the test accuracy, and what leads to each
GAP = {
    "running": "",
    "batch_norm": "the end's weights instead of those of the whole epoch, on this part of the images",
    "augmented": "running averages instead of the batch's own in batch normalisation",
    "probe": "images as they are instead of cropped and flipped",
    "test": "new images instead of those of the training (generalisation)",
}


def gap_sentences(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Takes the gap between the running training accuracy and the test accuracy apart.

    Args:
        runs: of each run the accuracies at its end: "running" over the last epoch; on the fixed part of the training
            images "batch_norm" (augmented, batch statistics), "augmented" (augmented, eval mode) and "probe" (plain,
            eval mode); and "test". The second and third may be missing.
    """
    names = list(GAP)
    mean = {name: statistics.mean(run[name] for run in runs) for name in GAP if all(name in run for run in runs)}
    told = [
        f"The running training accuracy of the last epoch is {mean['running']:.1%}, the test accuracy "
        f"{mean['test']:.1%}; on the fixed training images, plain and in eval mode, it is {mean['probe']:.1%}. "
        "On the way from the first to the second:"
    ]
    for start, end in itertools.pairwise(mean):
        parts = names[names.index(start) + 1 : names.index(end) + 1]
        change = mean_and_interval([run[end] - run[start] for run in runs])
        shown = "" if change["low"] is None or change["low"] > 0 or change["high"] < 0 else " The interval holds 0."
        told.append(f"{_points(change)}: {', and '.join(GAP[name] for name in parts)}.{shown}")
    return told


def _points(value: Mapping[str, Any]) -> str:
    text = f"{100 * value['mean']:+.1f} points"
    if value["low"] is None:
        return f"{text} (one seed)"
    return (
        f"{text} (mean of {len(value['values'])} seeds, 95 % interval {100 * value['low']:+.1f} to "
        f"{100 * value['high']:+.1f})"
    )


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"mean of {n} seeds"


def _verdict(when: str, effect: Mapping[str, Any]) -> str:
    if effect["low"] is None:
        return f"{when}: one seed cannot tell this from chance."
    if effect["low"] > 0:
        return f"{when}: that the fall raises accuracy is shown."
    if effect["high"] < 0:
        return f"{when}: that the fall lowers accuracy is shown."
    return f"{when}: that the fall raises accuracy is not shown by these runs."
