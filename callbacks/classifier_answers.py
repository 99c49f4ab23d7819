"""What runs of the classifier say about the fall of the learning rate, and about train against test accuracy."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]  # the epochs of a run, as in its summary.json

# two-sided 95 % points of Student's t, by degrees of freedom
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """{"values", "mean", "sd", "low", "high"}: Student's 95 % interval of the mean; None where one value has none."""
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return {"values": list(values), "mean": mean, "sd": None, "low": None, "high": None}
    sd = statistics.stdev(values)
    half = _T95.get(n - 1, 1.96) * sd / math.sqrt(n)
    return {"values": list(values), "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def epoch_of_drop(rows: Rows) -> int | None:
    """The place in ``rows`` of the first epoch with a lower rate than the one before it; None without such a fall."""
    return next((i for i in range(1, len(rows)) if rows[i]["lr"] < rows[i - 1]["lr"]), None)


def what_the_drop_did(with_drop: Sequence[Rows], without: Sequence[Rows]) -> dict[str, Any]:
    """Compares runs, paired by seed, that are the same up to the fall of the learning rate.

    Accuracies are validation accuracies, fractions of 1. "change" is the difference between the first epoch after the
    fall and the last before it, "effect" and "final_effect" are with the fall minus without it, in the first epoch
    after and in the last; "change_loss" and "effect_loss" are the same of the loss, in nats. Of "before", "after" and
    "after_without" see ``_wandering``. Empty ``without``: no effects.
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
    """Means over epochs and runs: how much accuracy changes from one epoch to the next, and how the weights move.

    "scatter" is the mean size of that change. "straightness" is the distance that an epoch covers over the length of
    its path, and "signal" the length of its mean gradient over that of its batches' gradients: both 1 for a walk in a
    straight line, both near 1 / sqrt(steps) for a random one. "path" is the mean length of a path.
    """
    steps = [abs(b["val_acc"] - a["val_acc"]) for rows in parts for a, b in zip(rows, rows[1:], strict=False)]
    moved = [row for rows in parts for row in rows if row.get("path")]

    def mean(values: Sequence[float]) -> float | None:
        return statistics.mean(values) if values else None

    return {
        "scatter": mean(steps),
        "straightness": mean([row["displacement"] / row["path"] for row in moved]),
        "signal": mean([row["mean_gradient"] / row["gradient"] for row in moved]),
        "path": mean([row["path"] for row in moved]),
    }


def drop_sentences(answer: Mapping[str, Any], steps_per_epoch: int) -> list[str]:
    """The answer in plain sentences; what the data do not support is said to be so."""
    change, fall = answer["change"], f"{answer['lr_before']:g} to {answer['lr_after']:g}"
    told = [
        f"When the learning rate falls from {fall} (epoch {answer['epoch']}), validation accuracy changes by "
        f"{_points(change)} within one epoch, and the loss by {answer['change_loss']['mean']:+.3f}."
    ]
    if "effect" in answer:
        effect, final = answer["effect"], answer["final_effect"]
        told.append(
            f"The same runs continued at {answer['lr_before']:g} from the same weights change by "
            f"{_points(answer['change_without'])} in that epoch. The fall itself is worth {_points(effect)} at once, "
            f"and {_points(final)} at the end; in the loss {answer['effect_loss']['mean']:+.3f} at once. "
            f"{_verdict(effect)}"
        )
    else:
        told.append("No run was continued without the fall, so how much of this is the fall's doing is not known.")
    before, after = answer["before"], answer["after"]
    without = answer.get("after_without", before)
    if without["scatter"] is not None and after["scatter"] is not None:
        where = "without it, in the same epochs" if "after_without" in answer else "before it"
        told.append(
            f"From one epoch to the next the accuracy moves by {100 * after['scatter']:.2f} points on average after "
            f"the fall, and by {100 * without['scatter']:.2f} {where}."
        )
    if before["straightness"] is not None and after["straightness"] is not None:
        told.append(
            f"Why: in an epoch of {steps_per_epoch} steps at {answer['lr_before']:g} the weights walk a path of length "
            f"{before['path']:.3g} and end {100 * before['straightness']:.0f} % of that away from where they began; a "
            f"straight walk would give 100 %, a random one {100 / math.sqrt(steps_per_epoch):.0f} %. The mean gradient "
            f"of an epoch is {100 * before['signal']:.0f} % as long as a batch's: "
            + ("most of each step is noise of the batch. " if before["signal"] < 0.5 else "the batches largely agree. ")
            + f"At {answer['lr_after']:g} the path is {after['path']:.3g} long."
        )
        if before["signal"] < 0.5 and after["path"] < before["path"]:
            told.append(
                "That fits the picture of a noisy descent: at the larger rate the weights jump to and fro across the "
                "valley that they have found, and shorter steps let them sink into it. It is a picture that these "
                "numbers agree with, not a proof."
            )
    return told


def gap_sentences(parts: Mapping[str, float]) -> list[str]:
    """Takes the gap between the running training accuracy and the test accuracy apart.

    Args:
        parts: accuracies at the end of a run: "running" over the last epoch; on the fixed part of the training images
            "batch_norm" (augmented, batch statistics), "augmented" (augmented, eval mode) and "probe" (plain, eval
            mode); and "test".
    """
    steps = [
        ("learning during the epoch (the end's weights are better than the epoch's average)", "running", "batch_norm"),
        ("batch statistics against running averages in batch normalisation", "batch_norm", "augmented"),
        ("augmentation (cropped and flipped images are harder)", "augmented", "probe"),
        ("generalisation (images seen in training against new ones)", "probe", "test"),
    ]
    told = [
        f"The running training accuracy of the last epoch is {parts['running']:.1%}, the test accuracy "
        f"{parts['test']:.1%}; on the fixed training images, plain and in eval mode, it is {parts['probe']:.1%}. "
        "On the way from the first to the second:"
    ]
    for what, start, end in steps:
        told.append(f"{100 * (parts[end] - parts[start]):+.1f} points: {what}.")
    return told


def _points(value: Mapping[str, Any]) -> str:
    text = f"{100 * value['mean']:+.1f} points"
    if value["low"] is None:
        return f"{text} (one seed)"
    return (
        f"{text} (mean of {len(value['values'])} seeds, 95 % interval {100 * value['low']:+.1f} to "
        f"{100 * value['high']:+.1f})"
    )


def _verdict(effect: Mapping[str, Any]) -> str:
    if effect["low"] is None:
        return "One seed cannot tell this from chance."
    if effect["low"] > 0:
        return "That the fall raises accuracy is shown."
    if effect["high"] < 0:
        return "That the fall lowers accuracy is shown."
    return "That the fall raises accuracy is not shown by these runs."
