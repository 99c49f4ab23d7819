"""The questions of both experiments, answered from runs: one self-contained, interactive report.html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)
import os
import re
from collections.abc import Iterable

import vl_convert
from altair import LayerChart

from analysis.files import read_json, write_atomically
from analysis.report import make_sections, render
from analysis.runs import FinishedRun
from cli.command import UsageError, main
from cli.parser import Parser

VEGA_LITE = "6.1"  # 6.4 shows "undefined" for names in the tooltip of the nearest point (vega-lite pull request 9707)


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run_dirs", nargs="*", type=Path, default=[Path("runs")], help="finished runs, or folders of them (runs/)")
    add("--out", type=Path, default=Path("report.html"), help="where the report goes")
    add("--data_root", type=str | None, help="where CIFAR-10 is; default $CIFAR10_ROOT, data")
    cfg = parser.parse_args()
    runs = read_runs(cfg.run_dirs)
    sections = make_sections(runs, cfg.data_root)
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", VEGA_LITE)
    html = render(sections=sections, runs=runs, vega=vega, picture=picture)
    write_atomically(cfg.out, lambda file: file.write(html.encode()))
    print(f"Wrote {cfg.out}, from {len(runs)} runs")


def picture(chart: LayerChart) -> str:
    """The chart as SVG, for those who run no scripts, without the points that only a pointer shows."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict() | {"width": 640}, vl_version=VEGA_LITE)
    return re.sub(r'<path[^>]* opacity="0"/>', "", svg)


def read_runs(folders: Iterable[Path]) -> list[FinishedRun]:
    """The finished runs in these folders and below them, no run twice. Raises UsageError where a folder has none."""
    runs: dict[Path, FinishedRun] = {}
    for folder in folders:
        tree = os.walk(folder, followlinks=True)
        files = sorted(Path(root, "summary.json") for root, _, names in tree if "summary.json" in names)
        if not files:
            raise UsageError(f"{folder} holds no finished run: there is no summary.json")
        for file in files:
            summary = read_json(file)
            # Without settings it is of several seeds, whose runs are below it.
            if isinstance(summary, dict) and "settings" in summary:
                runs.setdefault(file.resolve(), FinishedRun(file.parent, summary))
    return list(runs.values())


if __name__ == "__main__":
    main(run)
