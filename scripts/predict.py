"""Predicts with a trained network: the classes of picture files, or the values of a fitted curve at numbers."""

import cli  # noqa: F401  (first: all other imports are faster)

# isort: split
import csv
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jsonargparse import Namespace
from matplotlib.figure import Figure

from analysis.figures import pictures_figure, pixels_of, save_png
from analysis.files import standard_json, write_atomically
from cli.command import UsageError, main
from cli.parser import Parser
from cli.weights import SHIPPED, PictureClassifier, load
from datamodules.pictures import read_pictures
from lit_models import FunctionRegressor

MOST_SHOWN = 100


class Prediction(TypedDict):
    """The best classes of a picture file and their probabilities, best first."""

    file: str
    classes: list[str]
    probabilities: list[float]


def run() -> None:
    cfg = parse()
    network = load(Path(cfg.ckpt_path).expanduser())
    if cfg.export:
        export(network, Path(cfg.export).expanduser())
        print(f"Wrote {cfg.export}; its outputs are those of PyTorch", file=sys.stderr)
    if isinstance(network, FunctionRegressor):
        if cfg.images:
            raise UsageError(f"{cfg.ckpt_path} is of a curve: give --x or --csv")
        numbers = (cfg.x or []) + (read_column(Path(cfg.csv).expanduser(), cfg.column) if cfg.csv else [])
        if numbers:
            print_curve(network, numbers, cfg.json)
    elif cfg.x or cfg.csv:
        raise UsageError(f"{cfg.ckpt_path} is of a picture classifier: --x and --csv are for curves")
    elif cfg.images:
        print_pictures(network, cfg.images, Path(cfg.sheet).expanduser(), cfg.json)


def parse() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", nargs="*", type=str, default=[], help="picture files, folders, or patterns such as 'cats/*.png'")
    add("--ckpt_path", type=str, default=str(SHIPPED), help="a run's checkpoint, or weights of the same ResNet-20")
    add("--sheet", type=str, default="predictions.png", help="where the contact sheet of the pictures goes")
    add("--x", type=float, nargs="+", metavar="NUMBER", help="for a curve: numbers at which to evaluate it")
    add("--csv", type=str | None, help="for a curve: a CSV file with a column of such numbers")
    add("--column", type=str, default="x", help="the name of that column")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--export", type=str | None, help="write the network as FILE.onnx, or FILE.pt2 (torch.export)")
    cfg = parser.parse_args()
    if not (cfg.images or cfg.x or cfg.csv or cfg.export):
        raise UsageError("nothing to predict: give picture files, or for a curve --x or --csv")
    if cfg.export and Path(cfg.export).suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--export writes .onnx or .pt2, not {cfg.export}")
    return cfg


def print_pictures(network: PictureClassifier, names: Sequence[str], sheet: Path, as_json: bool) -> None:
    """Prints which files are skipped, draws the others, and prints the three most probable classes of each."""
    pictures, skipped = read_pictures(names)
    for path, reason in skipped.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if not pictures:
        raise UsageError("none of these pictures could be read")
    probabilities = network.logits(torch.stack(list(pictures.values()))).softmax(1)
    predictions: list[Prediction] = []
    for path, row in zip(pictures, probabilities, strict=True):
        best = row.argsort(descending=True)[:3]
        classes = [network.classes[place] for place in best.tolist()]
        predictions.append({"file": str(path), "classes": classes, "probabilities": row[best].tolist()})
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such as a Chinese file name's
    save_png(pixels_of(contact_sheet([p.numpy() for p in pictures.values()], predictions)), sheet)
    if as_json:
        print(standard_json(predictions))
    else:
        width = max(len(prediction["file"]) for prediction in predictions)
        for prediction in predictions:
            answers = zip(prediction["classes"], prediction["probabilities"], strict=True)
            words = [f"{name:>10} {probability:6.1%}" for name, probability in answers]
            print("  ".join([prediction["file"].ljust(width), *words]))
    print(f"The pictures as the network saw them are in {sheet}", file=sys.stderr)


def contact_sheet(pictures: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> Figure:
    """The first 100 (H, W, 3) pictures, each under its file's name and best classes."""
    titles = []
    for prediction in predictions[:MOST_SHOWN]:
        name = Path(prediction["file"]).name
        best = zip(prediction["classes"], prediction["probabilities"], strict=True)
        lines = [name if len(name) <= 16 else "..." + name[-13:], *(f"{label} {p:.0%}" for label, p in best)]
        titles.append("\n".join(lines))
    return pictures_figure(pictures[:MOST_SHOWN], titles)


@torch.inference_mode()
def print_curve(network: FunctionRegressor, numbers: Sequence[float], as_json: bool) -> None:
    """Prints the value at each number, a column for each learning rate and seed."""
    members = [{"lr": lr, "seed": seed} for lr in network.lrs for seed in network.seeds]
    values = network(torch.tensor(numbers, dtype=torch.float64)).T.tolist()
    if as_json:
        print(standard_json({"x": numbers, "members": members, "y": values}))
        return
    print("\t".join(["x", *(f"lr {m['lr']:g} seed {m['seed']}" for m in members)]))
    for x, row in zip(numbers, values, strict=True):
        print("\t".join([repr(x).removesuffix(".0"), *(f"{y:.6g}" for y in row)]))


def read_column(path: Path, column: str) -> list[float]:
    """The numbers in a CSV file's column. Raises UsageError, with the line, where it is no such file."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins its UTF-8 with a mark
        rows = csv.DictReader(file, restval="", skipinitialspace=True)
        numbers = []
        try:
            if column not in (rows.fieldnames or []):
                raise ValueError(f"no column {column} in {rows.fieldnames}")
            for row in rows:
                if any(row.pop(None, [])):
                    raise ValueError("more cells than columns; a decimal point is '.'")
                numbers.append(float(row[column]))
        except (ValueError, csv.Error) as error:  # of which some are of text that is not UTF-8
            raise UsageError(f"{path}, line {rows.line_num}: {error}") from None
    return numbers


def export(network: PictureClassifier | FunctionRegressor, path: Path) -> None:
    """Writes the network as .onnx or .pt2, for any number of inputs at once, if it computes what PyTorch does."""
    if isinstance(network, FunctionRegressor):
        name, example = "x", network.x_mean + network.x_scale * torch.linspace(-2, 2, 7, dtype=torch.float64)
    else:
        name, example = "images", torch.rand(3, 3, 32, 32)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    if path.suffix == ".pt2":
        torch.export.save(program, file := io.BytesIO())
        content = file.getvalue()
        outputs = torch.export.load(io.BytesIO(content)).module()(example)
    else:
        try:
            logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs what it did not optimize
            onnx = torch.onnx.export(program, input_names=[name], verbose=False)
            assert onnx is not None
            content, (outputs,) = onnx.model_proto.SerializeToString(), onnx(example)
        except ImportError as error:
            raise UsageError(f"--export FILE.onnx needs {error.name}: pip install 'litlab[export]'") from None
    expected = network(example)
    # Each row by its own scale, as a function may reach 1e40; a curve whose training diverged is nan in both.
    scale = expected.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(outputs / scale, expected / scale, rtol=1e-4, atol=1e-4, equal_nan=True)
    write_atomically(path, lambda file: file.write(content))


if __name__ == "__main__":
    main(run)
