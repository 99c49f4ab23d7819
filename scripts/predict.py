"""What a trained network says: to picture files if it is a classifier, to numbers if it has learnt a curve."""

# isort: split
import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from callbacks.atomic import write_atomically
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
        UserError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: give another --ckpt_path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        settings = content.get("hyper_parameters", {})
        if "measure_at" in settings:
            model = FunctionRegressor(**settings)
            model.load_state_dict(content["state_dict"])
            return CurvePredictor(model).eval()
        net = ResNet20()
        net.load_weights(content.get("state_dict", content))
        if "CIFAR10DataModule" in content:
            data = content["CIFAR10DataModule"]
            return PictureClassifier(net, data["mean"], data["std"], data["classes"]).eval()
        return PictureClassifier(net, *IMAGENET, CLASSES).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} holds no network of this program ({type(error).__name__}: {reason})") from None


def run() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="*", type=str, help="picture files, folders of them, or patterns such as 'cats/*.png'")
    add("--ckpt_path", required=True, type=str, help="a run's checkpoint, or public weights of the same ResNet-20")
    add("--sheet", type=str, default="predictions.png", help="where the contact sheet of the pictures goes")
    add("--x", type=float, nargs="+", help="for a curve: numbers at which to say its value")
    add("--csv", type=str | None, help="for a curve: a CSV file with a column of such numbers")
    add("--column", type=str, default="x", help="the name of that column")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--export", type=str | None, help="write the network as FILE.onnx, or FILE.pt2 (torch.export)")
    cfg = parser.parse_args()
    network = load(Path(cfg.ckpt_path))
    numbers = [*(cfg.x or []), *(read_column(Path(cfg.csv), cfg.column) if cfg.csv else [])]
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
    """Prints the best classes of each picture and draws the contact sheet; broken pictures are told and passed over.

    Raises:
        UserError: not one picture could be read.
    """
    pictures: dict[Path, Tensor] = {}
    try:
        for path in find_pictures(names):
            try:
                pictures[path] = read_picture(path)
            except PictureError as error:
                print(f"passed over {path}: {error}", file=sys.stderr)
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
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        width = max(len(answer["file"]) for answer in answers)
        for answer in answers:
            told = (f"{n:>10} {p:6.1%}" for n, p in zip(answer["classes"], answer["probabilities"], strict=True))
            print(f"{answer['file']:<{width}}  {'  '.join(told)}")
    pixels = pixels_of(contact_sheet([p.numpy() for p in pictures.values()], answers))
    write_atomically(sheet, lambda file: Image.fromarray(pixels).save(file, "png"))
    print(f"The pictures as the network saw them are in {sheet}", file=sys.stderr)


def tell_curve(network: CurvePredictor, numbers: list[float], as_json: bool) -> None:
    """Prints the value at each number, a column for each learning rate and seed."""
    model = network.model
    members = [{"lr": lr, "seed": seed} for lr in model.lrs for seed in model.seeds]
    values = network(torch.tensor(numbers, dtype=torch.float64)).T.tolist()
    if as_json:
        print(json.dumps({"x": numbers, "members": members, "y": values}, indent=2))
        return
    print("\t".join(["x", *(f"lr {m['lr']:g} seed {m['seed']}" for m in members)]))
    for x, row in zip(numbers, values, strict=True):
        print("\t".join([f"{x:g}", *(f"{y:.6g}" for y in row)]))


def read_column(path: Path, column: str) -> list[float]:
    """Raises UserError unless the file is a CSV file and every row of it has a number in this column."""
    numbers = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins its UTF-8 with a mark
            rows = csv.DictReader(file)
            if column not in (rows.fieldnames or []):
                raise UserError(f"{path} has no column {column}, but: {', '.join(rows.fieldnames or [])}")
            for row in rows:
                try:
                    numbers.append(float(row[column]))
                except (TypeError, ValueError):
                    raise UserError(f"{path}, line {rows.line_num}: {row[column]!r} is not a number") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} is no CSV file in UTF-8: save it as one, in Excel as 'CSV UTF-8'") from None
    return numbers


def export(network: PictureClassifier | CurvePredictor, path: Path) -> None:
    """Writes the network for use without this program, any number of inputs at once, and compares its outputs.

    Raises:
        UserError: the suffix is unknown, or a package is missing.
        RuntimeError: the written network computes something else.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--export writes .onnx or .pt2, not {path.name}")
    if isinstance(network, CurvePredictor):
        example, name = torch.linspace(-3, 3, 7, dtype=torch.float64), "x"
    else:
        example, name = torch.rand(3, 3, 32, 32), "images"
    expected = network(example)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    if path.suffix == ".pt2":
        write_atomically(path, lambda file: torch.export.save(program, file))
        outputs = torch.export.load(path).module()(example)
    else:
        try:
            import onnxruntime  # type: ignore[import-untyped]

            onnx = torch.onnx.export(program, input_names=[name], verbose=False)
        except ImportError as error:
            raise UserError(f"--export FILE.onnx needs {error.name}: pip install 'litlab[export]'") from None
        assert onnx is not None
        content = onnx.model_proto.SerializeToString()
        write_atomically(path, lambda file: file.write(content))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main(run, files="--csv, --sheet, --export")
