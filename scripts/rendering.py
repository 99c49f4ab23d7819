"""The words of the findings: numbers from analysis/ put into the sentences of templates/, for a page or a terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from analysis.curve_findings import METRICS
from analysis.statistics import number

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
    env.filters |= {"number": number, "count": "{:,}".format, "g": "{:g}".format, "paragraphs": paragraphs}
    env.tests["finite"] = is_finite
    return env


def is_finite(value: float | None) -> bool:
    """Whether it is a number: what diverged is None in JSON and nan or infinite in Python."""
    return value is not None and math.isfinite(value)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of what a macro gives, each on one line; escaped ones stay so."""
    lines = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [type(text)(line) for line in lines if line]


def sentences(macro: str, *facts: object) -> list[str]:
    """The paragraphs of a macro of findings.j2, as plain text."""
    return paragraphs(getattr(environment(autoescape=False).get_template("findings.j2").module, macro)(*facts))


def fit_text(summary: Mapping[str, Any]) -> str:
    """The results of a curve fit for the terminal, from the content of its summary.json: a table, then sentences."""
    settings = summary["settings"]
    num_seeds = settings["num_seeds"]
    suffix = "" if num_seeds == 1 else " [quartiles]"
    names = [f"{name.replace('_max_abs', ' max')}{suffix}".replace("_", " ") for name in METRICS]
    rows = [["lr", "epochs", *names], *(cells(row, num_seeds) for row in summary["over_seeds"])]
    complete = {"not_measured": [], "auto": [], **summary}
    return "\n".join([table(rows), *sentences("fit", complete, len(set(settings["lr"])) * num_seeds, num_seeds)])


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
        spread = ", ".join(f"{edge:.3g}" if is_finite(edge) else "diverged" for edge in edges)
        texts.append(text if num_seeds == 1 else f"{text} [{spread}]")
    return texts


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, right-aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
