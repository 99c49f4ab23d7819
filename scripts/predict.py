"""Predicts with a trained network: the classes of picture files, or the values of a fitted curve at numbers."""

import scripts  # noqa: F401  (first: all other imports are faster)

# isort: split
import csv
import io
import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError
from torch import Tensor

from analysis.classifier_figures import Prediction, contact_sheet
from analysis.drawing import pixels_of, save_png
from analysis.files import standard_json, write_atomically
from lit_models import FunctionRegressor
from scripts.commandline import Parser, main
from scripts.networks import SHIPPED, PictureClassifier, load, printable, read_all

BEST = 3


def run() -> None:
    cfg = parse()
    network = load(Path(cfg.ckpt_path).expanduser())
    numbers = [finite_number(text.strip(), "--x") for text in cfg.x or []]
    numbers += read_column(Path(cfg.csv).expanduser(), cfg.column) if cfg.csv else []
    is_curve = isinstance(network, FunctionRegressor)
    if not (cfg.export or cfg.images or numbers):
        raise UsageError(f"nothing to predict: give {'--x or --csv' if is_curve else 'picture files'}")
    if (numbers and not is_curve) or (cfg.images and is_curve):
        kind = "a curve: give --x or --csv" if is_curve else "a picture classifier: --x and --csv are for curves"
        raise UsageError(f"{cfg.ckpt_path} is of {kind}")
    if cfg.export:
        export(network, Path(cfg.export).expanduser())
        print(f"Wrote {cfg.export}; its outputs are those of PyTorch", file=sys.stderr)
    if numbers and isinstance(network, FunctionRegressor):
        print_curve(network, numbers, cfg.json)
    if cfg.images and isinstance(network, PictureClassifier):
        print_pictures(network, cfg.images, Path(cfg.sheet).expanduser(), cfg.json)


def parse() -> Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="*", type=str, default=[], help="picture files, folders, or patterns such as 'cats/*.png'")
    add("--ckpt_path", type=str, default=str(SHIPPED), help="a run's checkpoint, or weights of the same ResNet-20")
    add("--sheet", type=str, default="predictions.png", help="where the contact sheet of the pictures goes")
    add("--x", type=str, nargs="+", metavar="NUMBER", help="for a curve: numbers at which to evaluate it")
    add("--csv", type=str | None, help="for a curve: a CSV file with a column of such numbers")
    add("--column", type=str, default="x", help="the name of that column")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--export", type=str | None, help="write the network as FILE.onnx, or FILE.pt2 (torch.export)")
    cfg = parser.parse_args()
    if cfg.images and not Path(cfg.sheet).name:
        raise UsageError(f"--sheet {cfg.sheet!r} names no file: give one such as predictions.png")
    return cfg


def print_pictures(network: PictureClassifier, names: Sequence[str], sheet: Path, as_json: bool) -> None:
    """Draws the contact sheet and prints the most probable classes of each picture; unreadable ones are skipped.

    A picture that is named twice gets one row.

    Raises:
        UsageError: not one picture could be read.
        OSError: the sheet cannot be written; nothing has been printed.
    """
    pictures, _ = read_all(names)
    if not pictures:
        raise UsageError("none of these pictures could be read")
    predictions = predict_pictures(network, pictures)
    shown: list[Prediction] = [{**prediction, "file": printable(prediction["file"])} for prediction in predictions]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn for it
        save_png(pixels_of(contact_sheet([p.numpy() for p in pictures.values()], shown)), sheet)
    if as_json:
        print(standard_json(predictions))
    else:
        width = max(len(prediction["file"]) for prediction in shown)
        for prediction in shown:
            best = zip(prediction["classes"], prediction["probabilities"], strict=True)
            print(f"{prediction['file']:<{width}}  {'  '.join(f'{name:>10} {p:6.1%}' for name, p in best)}")
    print(f"The pictures as the network saw them are in {sheet}", file=sys.stderr)


def predict_pictures(network: PictureClassifier, pictures: Mapping[Path, Tensor]) -> list[Prediction]:
    """The most probable classes of each (32, 32, 3) uint8 picture, in order."""
    probabilities = network.logits(torch.stack(list(pictures.values()))).softmax(1)
    values, indices = (top.tolist() for top in probabilities.topk(min(BEST, probabilities.shape[1])))
    return [
        {"file": str(path), "classes": [network.classes[i] for i in best], "probabilities": row}
        for path, best, row in zip(pictures, indices, values, strict=True)
    ]


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


def finite_number(text: str, where: str) -> float:
    """Raises UsageError, which says where it is, for any other text."""
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise UsageError(f"{where}: {text!r} is not a finite number")


def read_column(path: Path, column: str) -> list[float]:
    """Raises UsageError unless it is a CSV file with rows, all with a finite number in this column."""
    numbers = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins its UTF-8 with a mark
            rows = csv.DictReader(file, restval="")
            rows.fieldnames = names = [name.strip() for name in rows.fieldnames or []]
            if not names:
                raise UsageError(f"{path} is empty, or its first line is: that line must name the columns")
            if column not in names:
                raise UsageError(f"{path} has no column {column}, but: {', '.join(names)}")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if any(row.pop(None, [])):
                    raise UsageError(f"{where} has more cells than columns; a decimal point is '.'")
                numbers.append(finite_number(row[column], where))
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"{path} is no CSV file in UTF-8: save it as one, in Excel as 'CSV UTF-8'") from None
    if not numbers:
        raise UsageError(f"{path} names its columns, but has no rows")
    return numbers


def export(network: PictureClassifier | FunctionRegressor, path: Path) -> None:
    """Writes the network for use without this program, any number of inputs at once, once its outputs are compared.

    Raises:
        UsageError: the suffix is unknown, or a package is missing.
        AssertionError: the exported network computes something else; nothing is written.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--export writes .onnx or .pt2, not {path.name}")
    if isinstance(network, FunctionRegressor):
        name, example = "x", network.x_mean + network.x_scale * torch.linspace(-2, 2, 7, dtype=torch.float64)
    else:
        name, example = "images", torch.rand(3, 3, 32, 32)
    expected = network(example)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    if path.suffix == ".pt2":
        torch.export.save(program, file := io.BytesIO())
        content = file.getvalue()
        outputs = torch.export.load(io.BytesIO(content)).module()(example)
    else:
        content, outputs = to_onnx(program, name, example)
    # Each row by its own scale, as a function may reach 1e40; a curve whose training diverged is nan in both.
    scale = expected.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(outputs / scale, expected / scale, rtol=1e-4, atol=1e-4, equal_nan=True)
    write_atomically(path, lambda file: file.write(content))


def to_onnx(program: torch.export.ExportedProgram, name: str, example: Tensor) -> tuple[bytes, Tensor]:
    """The ONNX file's content, whose input has this name, and what onnxruntime computes with it for the example."""
    try:
        import onnxruntime  # type: ignore[import-untyped]

        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs what it did not optimize
        onnx = torch.onnx.export(program, input_names=[name], verbose=False)
    except ImportError as error:
        raise UsageError(f"--export FILE.onnx needs {error.name}: pip install 'litlab[export]'") from None
    assert onnx is not None
    content = onnx.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, torch.from_numpy(session.run(None, {name: example.numpy()})[0])


if __name__ == "__main__":
    main(run, files="--csv, --sheet, --export")
