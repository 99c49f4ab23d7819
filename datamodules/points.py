"""read_columns: numbers from a CSV file, with a header or without, whatever separates its cells."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.expression import LARGEST


def read_columns(path: str | Path, names: Sequence[str] | None, default: Sequence[str]) -> tuple[list[str], Tensor]:
    """The titles of columns, and their numbers, (columns, N) float64. Blank lines count for nothing.

    Cells are separated by semicolons (numbers may have decimal commas then), tabs, commas, or blanks. The first row is
    a header if none of its cells is a number. ``names`` are of the header; without them the columns are those that are
    named as in ``default``, else the first ones. Raises OSError where there is no such file, and ValueError, with the
    file and the line, where a column is missing, a cell is no finite number, or rows differ in length.
    """
    try:
        text = Path(path).read_text("utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save the table as CSV in UTF-8") from None
    delimiter = next((mark for mark in ";\t," if mark in text.strip().partition("\n")[0]), " ")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader if any(map(str.strip, row)))
    numbers: list[list[float]] = []
    try:
        first = next(rows, [])
        header = first if all(math.isnan(number_in(cell, delimiter)) for cell in first) else []
        titles = header or [f"column {i}" for i in range(1, len(first) + 1)]
        places = find(names, header) if names else find_default(default, titles)
        for row in itertools.chain([] if header else [first], rows):
            if len(row) != len(first):
                raise ValueError(f"{len(row)} cells, not {len(first)} as in the first row (decimals have a point)")
            numbers.append([number_in(row[i], delimiter) for i in places])
            if bad := [i for i, value in zip(places, numbers[-1], strict=True) if math.isnan(value)]:
                raise ValueError(f"{row[bad[0]]!r} in {titles[bad[0]]} is no finite number: correct or delete the line")
        if not numbers:
            raise ValueError("there are no numbers")
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return [titles[i] for i in places], torch.tensor(numbers, dtype=torch.float64).T


def number_in(cell: str, delimiter: str) -> float:
    """nan where there is none, or an infinite or very large one."""
    try:
        value = float(cell.replace(",", ".") if delimiter == ";" else cell)
    except ValueError:
        return math.nan
    return value if abs(value) < LARGEST else math.nan


def find(names: Sequence[str], header: Sequence[str]) -> list[int]:
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"there is no column {missing[0]!r} in the header ({', '.join(header) or 'there is none'})")
    return [header.index(name) for name in names]


def find_default(names: Sequence[str], titles: Sequence[str]) -> list[int]:
    lower = [title.lower() for title in titles]
    if len(titles) < len(names):
        raise ValueError(f"{len(titles)} column, not {len(names)}: separate cells by commas, semicolons or tabs")
    return [lower.index(name) for name in names] if {*names} <= {*lower} else [*range(len(names))]
