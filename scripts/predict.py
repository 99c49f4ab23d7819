"""Predicts with a trained network: the classes of picture files, or the values of a fitted curve at numbers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)
import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.figures import pictures_figure, save_png
from analysis.files import standard_json, write_atomically
from cli.command import UsageError, main
from cli.parser import Parser, build
from cli.weights import SHIPPED, PictureClassifier, load
from datamodules.pictures import read_pictures
from datamodules.points import read_columns
from lit_models import FunctionRegressor


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", nargs="*", type=str, help="picture files, folders, or patterns such as 'cats/*.png'")
    add("--ckpt_path", type=Path, default=SHIPPED, help="a run's checkpoint, or weights of the same ResNet-20")
    add("--sheet", type=Path, default=Path("predictions.png"), help="where the contact sheet of the pictures goes")
    add("--x", type=float, nargs="+", default=[], metavar="NUMBER", help="for a curve: numbers at which to evaluate it")
    add("--csv", type=Path | None, help="for a curve: a CSV file with a column of such numbers")
    add("--column", type=str, nargs=1, metavar="NAME", help="the name of that column; default x, else the first")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--export", type=Path | None, help="write the network as FILE.onnx, or FILE.pt2 (torch.export)")
    cfg = parser.parse_args()
    if not (cfg.images or cfg.x or cfg.csv or cfg.export):
        raise UsageError("nothing to predict: give picture files, or for a curve --x or --csv")
    if cfg.export:
        export(load(cfg.ckpt_path, nn.Module), cfg.export)
    if cfg.images:
        print_pictures(load(cfg.ckpt_path, PictureClassifier), cfg.images, cfg.sheet, cfg.json)
    if cfg.x or cfg.csv:
        read = build(read_columns, cfg, path=cfg.csv, names=cfg.column, default=["x"]) if cfg.csv else None
        print_curve(load(cfg.ckpt_path, FunctionRegressor), cfg.x + (read[1][0].tolist() if read else []), cfg.json)


def print_pictures(network: PictureClassifier, names: Sequence[str], sheet: Path, as_json: bool) -> None:
    """Prints the three most probable classes of each picture, and draws the first 100 pictures on a contact sheet."""
    pictures, _ = read_pictures(names)
    if not pictures:
        raise UsageError("none of these pictures could be read")
    pixels = torch.stack(list(pictures.values()))
    best = network.logits(pixels).softmax(1).topk(min(3, len(network.classes)))
    rows, titles = [], []
    for path, probabilities, places in zip(pictures, best.values.tolist(), best.indices.tolist(), strict=True):
        classes = [network.classes[place] for place in places]
        rows.append({"file": str(path), "classes": classes, "probabilities": probabilities})
        answers = [f"{name} {probability:.1%}" for name, probability in zip(classes, probabilities, strict=True)]
        titles.append("\n".join([path.name[-16:], *answers]))
        if not as_json:
            print(path, *answers, sep="\t")
    if as_json:
        print(standard_json(rows))
    save_png(pictures_figure(list(pixels[:100].numpy()), titles[:100]), sheet)
    print(f"The pictures as the network saw them are in {sheet}", file=sys.stderr)


@torch.inference_mode()
def print_curve(network: FunctionRegressor, numbers: Sequence[float], as_json: bool) -> None:
    """Prints the value at each number, a column for each learning rate and seed."""
    members = members_of(network)
    values = network(torch.tensor(numbers, dtype=torch.float64)).T.tolist()
    middle, half = network.x_mean, 5 * network.x_scale  # see CurveDataModule.scale
    if outside := [x for x in numbers if abs(x - middle) > half * (1 + 1e-9)]:
        interval = f"trained on x from {middle - half:g} to {middle + half:g}"
        print(f"Extrapolated: {len(outside)} of {len(numbers)}, for the curve was {interval}", file=sys.stderr)
    if as_json:
        print(standard_json({"x": numbers, "members": members, "y": values}))
        return
    print("x", *map("lr {lr:g} seed {seed}".format_map, members), sep="\t")
    for x, row in zip(numbers, values, strict=True):
        print(x, *(f"{y:.6g}" for y in row), sep="\t")


def members_of(network: FunctionRegressor) -> list[dict[str, float]]:
    return [{"lr": lr, "seed": seed} for lr in network.lrs for seed in network.seeds]


class Curves(nn.Module):
    """(N, 1) float32 x -> (N, M) float32 y, by operations that every reader of ONNX knows."""

    def __init__(self, network: FunctionRegressor) -> None:
        super().__init__()
        self.x_mean, self.x_scale = network.x_mean, network.x_scale
        self.y_mean, self.y_scale = network.y_mean[:, 0].float(), network.y_scale[:, 0].float()
        layers = network.net.layers(network.net.theta.detach())
        self.members = [[(w[m], b[m, :, 0]) for w, b in layers] for m in range(len(self.y_mean))]

    def forward(self, x: Tensor) -> Tensor:
        columns = []
        for *hidden, (weight, bias) in self.members:
            column = (x - self.x_mean) / self.x_scale
            for w, b in hidden:
                column = F.linear(column, w, b).relu()
            columns.append(F.linear(column, weight, bias))
        return torch.cat(columns, dim=1) * self.y_scale + self.y_mean


def export(network: nn.Module, path: Path) -> None:
    """Writes the network as .onnx or .pt2, for any number of inputs at once. Raises UsageError where it cannot."""
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--export writes .onnx or .pt2, not {path}")
    is_onnx, example = path.suffix == ".onnx", torch.zeros(3, 3, 32, 32)
    if isinstance(network, FunctionRegressor):
        facts = {"x": "(N, 1) float32", "y": "(N, M) float32, a column for each of the members"}
        facts["members"] = json.dumps(members_of(network))
        example = torch.linspace(-1.5, 1.5, 99).double() * network.x_scale + network.x_mean
        if is_onnx:
            values, middle, least = network(example).T, network.y_mean[0], 1e-3 * float(network.y_scale.max())
            network, example = Curves(network), example.float()[:, None]
            if not torch.allclose(network(example).double() - middle, values - middle, atol=least, equal_nan=True):
                raise UsageError("float32, which FILE.onnx takes, cannot hold this curve: --export FILE.pt2")
    else:
        facts = {"images": "(N, 3, 32, 32) float32, RGB from 0 to 1", "logits": "(N, C); their softmax: probabilities"}
        facts["classes"] = json.dumps(network.classes)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
    if is_onnx:
        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs what it did not optimize
        inputs, outputs, *_ = ([name] for name in facts)
        names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": ({0: "N"},)}
        try:
            onnx: Any = torch.onnx.export(program, **names, verbose=False)
        except ImportError as error:
            raise UsageError(f"--export FILE.onnx needs {error.name}: pip install 'litlab[export]'") from None
        onnx.model.metadata_props.update(facts)
        write_atomically(path, lambda file: file.write(onnx.model_proto.SerializeToString()))
    else:
        write_atomically(path, lambda file: torch.export.save(program, file))
    print(f"Wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main(run)
