"""What a trained network says: to picture files if it is a classifier, to numbers if it has learnt a curve."""

# isort: split
import csv
import io
import logging
import math
import pickle
import re
import sys
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from callbacks.atomic import standard_json, write_atomically
from callbacks.figures import contact_sheet, pixels_of
from datamodules.cifar10 import CLASSES
from datamodules.pictures import PictureError, find_pictures, read_picture
from lit_models import FunctionRegressor, ResNet20
from scripts.cli import Parser, UserError, main

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that public weights are trained with
BEST = 3


class PictureClassifier(nn.Module):
    """(N, 3, 32, 32) float32 RGB from 0 to 1 -> (N, 10) logits; the normalisation is inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: ResNet20, mean: Any, std: Any, classes: Any) -> None:
        super().__init__()
        self.net, self.classes = net, list(classes)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images - self.mean) / self.std)


class CurvePredictor(nn.Module):
    """(N,) float64 -> (M, N) float64, one row for each learning rate and seed."""

    def __init__(self, model: FunctionRegressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def load(path: Path) -> PictureClassifier | CurvePredictor:
    """The network of a run's checkpoint, or ResNet-20 from public weights (akamaster/pytorch_resnet_cifar10).

    Raises:
        UserError: there is no such file, it is neither, or a classifier's weights are not finite.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: give another --ckpt_path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}, not a dictionary of weights")
        settings = content.get("hyper_parameters") or {}
        if "measure_at" in settings:
            model = FunctionRegressor(**settings)
            model.load_state_dict(content["state_dict"])
            return CurvePredictor(model).eval()
        net = ResNet20()
        net.load_weights(content.get("state_dict", content))
        if "CIFAR10DataModule" in content:
            data = content["CIFAR10DataModule"]
            network = PictureClassifier(net, data["mean"], data["std"], data["classes"]).eval()
        else:
            network = PictureClassifier(net, *IMAGENET, CLASSES).eval()
    except Exception as error:
        reason = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run the code in the file
            reason = "it is not a file of torch.save"
            if "GLOBAL" in str(error):  # what torch calls a class or function
                reason = "it holds more than tensors and plain values: save its state_dict alone with torch.save"
        raise UserError(f"{path} holds no network of this program ({reason})") from None
    if not all(weights.isfinite().all() for weights in network.state_dict().values()):
        raise UserError(f"{path} has weights that are nan or infinite: its training diverged; give another --ckpt_path")
    return network


def run() -> None:
    parser = Parser(description=__doc__)
    parser._negative_number_matcher = re.compile(r"-(\.?\d|inf)")  # argparse takes -1e-3 for a flag
    add = parser.add_argument
    add("images", nargs="*", type=str, default=[], help="picture files, folders, or patterns such as 'cats/*.png'")
    add("--ckpt_path", required=True, type=str, help="a run's checkpoint, or public weights of the same ResNet-20")
    add("--sheet", type=str, default="predictions.png", help="where the contact sheet of the pictures goes")
    add("--x", type=str, nargs="+", metavar="NUMBER", help="for a curve: numbers at which to say its value")
    add("--csv", type=str | None, help="for a curve: a CSV file with a column of such numbers")
    add("--column", type=str, default="x", help="the name of that column")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--export", type=str | None, help="write the network as FILE.onnx, or FILE.pt2 (torch.export)")
    cfg = parser.parse_args()
    if cfg.images and not Path(cfg.sheet).name:
        raise UserError(f"--sheet {cfg.sheet!r} names no file: give one such as predictions.png")
    network = load(Path(cfg.ckpt_path))
    numbers = [finite_number(text, "--x") for text in cfg.x or []]
    numbers += read_column(Path(cfg.csv), cfg.column) if cfg.csv else []
    is_curve = isinstance(network, CurvePredictor)
    if not (cfg.export or cfg.images or numbers):
        raise UserError(f"nothing to predict: give {'--x or --csv' if is_curve else 'picture files'}")
    if (numbers and not is_curve) or (cfg.images and is_curve):
        raise UserError(f"{cfg.ckpt_path} is of {'a curve: give --x or --csv' if is_curve else 'a picture classifier'}")
    if cfg.export:
        export(network, Path(cfg.export))
        print(f"Wrote {cfg.export}; its outputs are those of PyTorch", file=sys.stderr)
    with torch.inference_mode():
        if isinstance(network, CurvePredictor):
            if numbers:
                tell_curve(network, numbers, cfg.json)
        elif cfg.images:
            tell_pictures(network, cfg.images, Path(cfg.sheet), cfg.json)


def tell_pictures(network: PictureClassifier, names: list[str], sheet: Path, as_json: bool) -> None:
    """Draws the contact sheet and prints the best classes of each picture; broken pictures are told and passed over.

    A picture that is named twice gets one row.

    Raises:
        UserError: not one picture could be read.
        OSError: the sheet cannot be written; nothing has been printed.
    """
    pictures: dict[Path, Tensor] = {}
    try:
        for path in find_pictures(names):
            try:
                pictures[path] = read_picture(path)
            except PictureError as error:
                print(f"passed over {printable(path)}: {error}", file=sys.stderr)
    except PictureError as error:
        raise UserError(str(error)) from None
    if not pictures:
        raise UserError("none of these pictures could be read")
    images = torch.stack(list(pictures.values())).permute(0, 3, 1, 2) / 255
    probabilities = torch.cat([network(part).softmax(1) for part in images.split(500)])
    answers = []
    for path, row in zip(pictures, probabilities, strict=True):
        best = row.topk(BEST)
        classes = [network.classes[i] for i in best.indices]
        answers.append({"file": str(path), "classes": classes, "probabilities": best.values.tolist()})
    shown = [{**answer, "file": printable(answer["file"])} for answer in answers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        pixels = pixels_of(contact_sheet([p.numpy() for p in pictures.values()], shown))
    write_atomically(sheet, lambda file: Image.fromarray(pixels).save(file, "png"))
    if as_json:
        print(standard_json(answers))
    else:
        width = max(len(answer["file"]) for answer in shown)
        for answer in shown:
            told = (f"{n:>10} {p:6.1%}" for n, p in zip(answer["classes"], answer["probabilities"], strict=True))
            print(f"{answer['file']:<{width}}  {'  '.join(told)}")
    print(f"The pictures as the network saw them are in {sheet}", file=sys.stderr)


def printable(name: object) -> str:
    """A file's name on one line, whatever is in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def tell_curve(network: CurvePredictor, numbers: list[float], as_json: bool) -> None:
    """Prints the value at each number, a column for each learning rate and seed."""
    model = network.model
    members = [{"lr": lr, "seed": seed} for lr in model.lrs for seed in model.seeds]
    values = network(torch.tensor(numbers, dtype=torch.float64)).T.tolist()
    if as_json:
        print(standard_json({"x": numbers, "members": members, "y": values}))
        return
    print("\t".join(["x", *(f"lr {m['lr']:g} seed {m['seed']}" for m in members)]))
    for x, row in zip(numbers, values, strict=True):
        print("\t".join([repr(x).removesuffix(".0"), *(f"{y:.6g}" for y in row)]))


def finite_number(text: str, where: str) -> float:
    """Raises UserError, which says where it is, for any other text."""
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise UserError(f"{where}: {text!r} is not a finite number")


def read_column(path: Path, column: str) -> list[float]:
    """Raises UserError unless the file is a CSV file with rows, and each has a finite number in this column."""
    numbers = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins its UTF-8 with a mark
            rows = csv.DictReader(file, restval="")
            rows.fieldnames = names = [name.strip() for name in rows.fieldnames or []]
            if not names:
                raise UserError(f"{path} is empty, or its first line is: that line must name the columns")
            if column not in names:
                raise UserError(f"{path} has no column {column}, but: {', '.join(names)}")
            for row in rows:
                numbers.append(finite_number(row[column], f"{path}, line {rows.line_num}"))
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} is no CSV file in UTF-8: save it as one, in Excel as 'CSV UTF-8'") from None
    if not numbers:
        raise UserError(f"{path} names its columns, but has no rows")
    return numbers


def export(network: PictureClassifier | CurvePredictor, path: Path) -> None:
    """Writes the network for use without this program, any number of inputs at once, once its outputs are compared.

    Raises:
        UserError: the suffix is unknown, or a package is missing.
        AssertionError: the exported network computes something else; nothing is written.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--export writes .onnx or .pt2, not {path.name}")
    if isinstance(network, CurvePredictor):
        model, name = network.model, "x"
        example = model.x_mean + model.x_scale * torch.linspace(-2, 2, 7, dtype=torch.float64)
    else:
        example, name = torch.rand(3, 3, 32, 32), "images"
    expected = network(example)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    if path.suffix == ".pt2":
        torch.export.save(program, whole := io.BytesIO())
        content = whole.getvalue()
        outputs = torch.export.load(io.BytesIO(content)).module()(example)
    else:
        try:
            import onnxruntime  # type: ignore[import-untyped]

            logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it did not optimize
            onnx = torch.onnx.export(program, input_names=[name], verbose=False)
        except ImportError as error:
            raise UserError(f"--export FILE.onnx needs {error.name}: pip install 'litlab[export]'") from None
        assert onnx is not None
        content = onnx.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0])
    # Each row by its own scale, as a function may reach 1e40; a curve whose training diverged is nan in both.
    scale = expected.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(outputs / scale, expected / scale, rtol=1e-4, atol=1e-4, equal_nan=True)
    write_atomically(path, lambda file: file.write(content))


if __name__ == "__main__":
    main(run, files="--csv, --sheet, --export")
