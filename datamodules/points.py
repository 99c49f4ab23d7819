"""Points of your own: read from a CSV file, whatever separates its cells, and split to train and to validate."""

import csv
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.expression import LARGEST


def read_columns(path: str | Path, names: Sequence[str] | None, default: Sequence[str]) -> tuple[list[str], Tensor]:
    """The titles of columns, and their numbers, (columns, N) float64. Blank lines are skipped.

    Cells are separated by semicolons (numbers may have decimal commas then), tabs, commas, or blanks. The first row is
    a header if no cell of it begins like a number; a # before it is skipped. ``names`` are of the header; without them
    the columns are those named as in ``default``, else the first ones, but an index without a name. Raises OSError
    where there is no such file, and ValueError, with file and line, for an absent column, a cell that is not a finite
    number, or rows of different length.
    """
    try:
        text = Path(path).read_text("utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save the table as CSV in UTF-8") from None
    delimiter = next((mark for mark in ";\t," if mark in text.strip().partition("\n")[0]), " ")
    decimal = "." if delimiter == ";" else ","  # what a comma is read as
    reader = csv.reader((line.strip(" #") for line in text.splitlines()), delimiter=delimiter, skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader if any(map(str.strip, row)))
    numbers = []
    try:
        first = next(rows, [])
        header = [] if any(re.match(r"[-+.\d]", cell) for cell in first) else first
        titles = [(header and cell) or f"column {i}" for i, cell in enumerate(first, 1)]
        index = len(header) > len(default) and not header[0]  # of pandas: a column before the others, without a name
        wanted = names or (default if {*default} <= {*titles} else titles[index : index + len(default)])
        if absent := [name for name in wanted if name not in titles]:
            raise ValueError(f"no column {' or '.join(absent)}; there are: {', '.join(titles)}")
        if len(wanted) < len(default):
            raise ValueError(f"{len(wanted)} of {len(default)} columns; cells are separated by , ; tabs or blanks")
        places = [titles.index(name) for name in wanted]
        for row in itertools.chain([] if header else [first], rows):
            if len(row) != len(first):
                raise ValueError(f"{len(row)} cells, but the first row has {len(first)} (decimals have a point)")
            numbers.append([float(row[place].replace(",", decimal)) for place in places])
            if not all(abs(number) < LARGEST for number in numbers[-1]):
                raise ValueError(f"not finite: {', '.join(row)}")
        if not numbers:
            raise ValueError("there are no numbers")
    except (csv.Error, ValueError) as error:
        remedy = ": correct this row, or leave it out" if numbers else ""
        raise ValueError(f"{path}, line {reader.line_num}: {error}{remedy}") from None
    return list(wanted), torch.tensor(numbers, dtype=torch.float64).T


def split_points(points: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y to train on, and x and y held out, a row for each seed."""
    N = points.shape[1]
    num = max(1, N // 5)  # held out
    orders = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    held_out, train = points[:, orders[:, :num]], points[:, orders[:, num:]]
    return *train, *held_out
