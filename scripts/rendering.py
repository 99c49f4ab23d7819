"""The words of the findings: numbers from analysis/ put into the sentences of templates/, for a page or a terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from analysis.curve_findings import METRICS, best_setting
from analysis.statistics import number

HEADERS = ("lr", "epochs", "train mse", "mse against f", "max error", "r2")  # of METRICS
TEMPLATES = Path(__file__).parent / "templates"


def environment(autoescape: bool) -> jinja2.Environment:
    """The templates, with HTML's special characters escaped or not: macros follow who imports them in nothing else."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": number, "count": "{:,}".format, "g": "{:g}".format}
    env.filters |= {"epochs": epochs, "paragraphs": paragraphs}
    env.tests["finite"] = is_finite
    return env


def is_finite(value: float | None) -> bool:
    """Whether it is a number: what diverged is None in JSON and nan or infinite in Python."""
    return value is not None and math.isfinite(value)


def epochs(count: int) -> str:
    return f"{count:,} epoch" + "s" * (count != 1)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of what a macro gives, each on one line; escaped ones stay so."""
    lines = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [type(text)(line) for line in lines if line]


def sentences(macro: str, *facts: object) -> list[str]:
    """The paragraphs of a macro of findings.j2, as plain text."""
    return paragraphs(getattr(environment(autoescape=False).get_template("findings.j2").module, macro)(*facts))


def fit_text(summary: Mapping[str, Any]) -> str:
    """The results of a curve fit for the terminal, from the content of its summary.json: a table, then sentences."""
    settings, over_seeds = summary["settings"], summary["over_seeds"]
    num_seeds, num_lrs = settings["num_seeds"], len(set(settings["lr"]))
    suffix = "" if num_seeds == 1 else " [quartiles]" if num_seeds >= 4 else " [range]"
    rows = [[*HEADERS[:2], *(name + suffix for name in HEADERS[2:])], *(cells(row, num_seeds) for row in over_seeds)]
    best = best_setting(over_seeds) if over_seeds and (num_lrs > 1 or "auto" in summary) else None
    complete = {"auto": [], **summary, "best": best}
    return "\n".join([table(rows), *sentences("fit", complete, num_lrs * num_seeds, num_seeds)])


def cells(row: Mapping[str, Any], num_seeds: int) -> list[str]:
    """A row of the table: an entry of the summary's "over_seeds"."""
    texts = [f"{row['lr']:g}", f"{row['epochs']:,}"]
    fitted = is_finite(row["train_mse"]["median"]) and is_finite(row["true_mse"]["median"])
    for name in METRICS:
        median, *edges = (row[name][q] for q in ("median", "q25", "q75"))
        if fitted and not is_finite(median):  # a constant function has no r2, however well it is fitted
            texts.append("-")
            continue
        text = f"{median:.4g}" if is_finite(median) else "diverged"
        spread = ", ".join(map(number, edges))
        texts.append(text if num_seeds == 1 else f"{text} [{spread}]")
    return texts


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, right-aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
