"""The charts of the report, in Vega-Lite by Altair: the pointer shows numbers, and inks are those of the page."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from analysis.curves import Growth
from analysis.figures import BLUE, COLOR_OF, COLORS, GREEN, GREY, ORANGE
from analysis.statistics import number

Rows = Sequence[Mapping[str, Any]]

INK = "currentColor"  # of the text around the chart: dark on a light page, light on a dark one
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "text": {"color": INK},
    "rule": {"color": GREY, "strokeDash": [4, 3]},
    "axis": {"labelColor": INK, "titleColor": INK, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY,
             "gridOpacity": 0.25, "labelOverlap": "greedy", "labelSeparation": 6, "labelLimit": 0, "labelFontSize": 12,
             "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {"labelColor": INK, "orient": "bottom", "columns": 1, "labelLimit": 0, "labelFontSize": 12,
               "symbolOpacity": 1},
}  # fmt: skip


def finished(layers: Sequence[alt.Chart], height: int = 260) -> alt.LayerChart:
    """As wide as its place."""
    return alt.LayerChart(layer=list(layers), width="container", height=height).configure(**CONFIG)


def data(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def number_axis(values: Sequence[float], title: str, log: bool = False) -> dict[str, Any]:
    """Axis and scale that these values fill."""
    step = 1 if all(isinstance(value, int) for value in values) else alt.Undefined  # no ticks between two epochs
    scale = alt.Scale(nice=False, type="log") if log else alt.Scale(nice=False, zero=False)
    return {"title": title, "scale": scale, "axis": alt.Axis(format=",.7~g", tickCount=6, tickMinStep=step)}


def color(name: str, colors: Mapping[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    return alt.Color(f"{name}:N", title=None, scale=scale)


def lines_chart(
    rows: Rows, x: str, y: str, log: bool = False, marks: Mapping[float, str] | None = None
) -> alt.LayerChart:
    """Lines and bands, the numbers of each point under the pointer.

    Args:
        rows: at least one, "x", "y" and the name of its "line" each; for a band "low" and "high" too. Lines with the
            same name differ in their "run". On logarithmic axes all numbers are above 0.
        x, y: titles of the axes.
        log: both axes are logarithmic.
        marks: vertical lines, {x: text}.
    """
    xs = sorted(row["x"] for row in rows)
    ys = [row[name] for row in rows for name in ("y", "low", "high") if row.get(name) is not None]
    names = list(dict.fromkeys(row["line"] for row in rows))
    base = data(rows).encode(
        x=alt.X("x:Q", **number_axis(xs, x, log)),
        y=alt.Y("y:Q", **number_axis(ys, y, log)),
        color=color("line", {name: COLOR_OF.get(name, COLORS[i % len(COLORS)]) for i, name in enumerate(names)}),
        detail="run:N",
    )
    titles = {"line": " ", "run": "run", "x": x, "y": y, "low": "band from", "high": "to"}
    tips = {name: title for name, title in titles.items() if any(row.get(name) is not None for row in rows)}
    layers = [base.mark_area(opacity=0.2).encode(y="low:Q", y2="high:Q")] if "low" in tips else []
    middle = math.sqrt(xs[0] * xs[-1]) if log else (xs[0] + xs[-1]) / 2
    for i, (place, text) in enumerate((marks or {}).items()):
        mark = data([{"x": place, "text": text}]).encode(x="x:Q")
        align, dx = ("right", -4) if place > middle else ("left", 4)  # towards the middle, where there is room
        layers += [mark.mark_rule(), mark.mark_text(align=align, dx=dx, y=-8 - 14 * i).encode(text="text:N")]
    return finished([*layers, base.mark_line(), under_pointer(base, tips, ["x", "y"])])


def under_pointer(base: alt.Chart, titles: Mapping[str, str], by: Sequence[Literal["x", "y"]]) -> alt.Chart:
    """The point that is nearest to the pointer along these axes, with its numbers; {field: title}."""
    near = alt.selection_point(nearest=True, on="pointerover", empty=False, encodings=list(by))
    opacity = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    tips = [
        alt.Tooltip(f"{name}:N", title=title)
        if name in ("line", "run")
        else alt.Tooltip(f"{name}:Q", title=title, format=",.4~g")
        for name, title in titles.items()
    ]
    return base.mark_point(filled=True, size=60, clip=True).encode(opacity=opacity, tooltip=tips).add_params(near)


def fits_chart(growth: Growth) -> alt.LayerChart:
    """The fitted curve over the training points and the ground truth, for the chosen epochs and learning rate.

    ``growth`` is the content of a curve fit's curves.json. The fit of the lowest error is chosen first.
    """
    fits = growth["fits"]
    counts, lrs = sorted({fit["epochs"] for fit in fits}), list(dict.fromkeys(fit["lr"] for fit in fits))
    best = min(fits, key=lambda fit: math.inf if fit["true_mse"] is None else fit["true_mse"])
    slider = alt.binding_range(min=0, max=len(counts) - 1, step=1, name="epochs ")
    step = alt.param("step", value=counts.index(best["epochs"]), bind=slider)
    lr = alt.param("lr", value=best["lr"], bind=alt.binding_radio(options=lrs, name="learning rate "))
    label = "learning rate {lr:g}, {epochs:,} epochs, MSE against f: {mse}"
    rows = [
        {**fit, "step": counts.index(fit["epochs"]), "label": label.format(**fit, mse=number(fit["true_mse"]))}
        for fit in fits
    ]
    chosen = data(rows).transform_filter("datum.step == step && datum.lr == lr")
    # The grid is the same for all fits, so the page holds it once: their i-th value belongs to its i-th point.
    truth = enumerate(zip(growth["x"], growth["truth"], strict=True), start=1)
    grid = [{"line": "ground truth f(x)", "i": i, "x": x, "truth": y} for i, (x, y) in truth]
    pairs = zip(growth["points"]["x"], growth["points"]["y"], strict=True)
    points = [{"line": "training points", "x": x, "y": y} for x, y in pairs]
    ys = [*growth["truth"], *growth["points"]["y"]]
    margin = 0.08 * (max(ys) - min(ys)) or 1.0
    at: dict[str, Any] = {
        "x": alt.X("x:Q", **number_axis(growth["x"], "x")),
        "y": alt.Y("y:Q", title="y", scale=alt.Scale(domain=[min(ys) - margin, max(ys) + margin], nice=False)),
        "color": color("line", {"training points": GREY, "ground truth f(x)": ORANGE, "fitted curve": BLUE}),
    }
    curve = (
        chosen.transform_flatten(["fit", "low", "high"])
        .transform_window(i="row_number()")
        .transform_lookup("i", alt.LookupData(alt.InlineData(values=grid), "i", ["x", "truth"]))
        .transform_calculate(y="datum.fit", line="'fitted curve'")
        .encode(**at)
    )
    titles = {"x": "x", "fit": "fitted curve", "low": "quartiles of the seeds", "high": "to", "truth": "ground truth"}
    layers = [
        data(points).mark_point(filled=True, size=14, opacity=0.6, clip=True).encode(**at),
        data(grid).mark_line(strokeDash=[6, 4], clip=True).encode(at["x"], alt.Y("truth:Q"), at["color"]),
        curve.mark_area(opacity=0.25, clip=True).encode(y="low:Q", y2="high:Q"),
        curve.mark_line(clip=True),
        under_pointer(curve, titles, ["x"]),
        chosen.mark_text(align="left", baseline="bottom", x=0, y=-6, fontSize=12).encode(text="label:N"),
    ]
    return finished(layers, height=340).add_params(step, lr)


def waterfall_chart(accuracies: Mapping[str, float], end: str) -> alt.LayerChart:
    """A bar for each step from the first of these percentages to the last, which ``end`` names."""
    values = list(accuracies.items())
    (start, first), (_, last) = values[0], values[-1]
    rows = [{"name": start, "start": first, "end": first, "text": f"{first:.1f} %", "kind": "accuracy"}]
    for (_, a), (name, b) in itertools.pairwise(values):
        kind = "rises" if b > a else "falls"
        rows.append({"name": name, "start": a, "end": b, "text": f"{b - a:+.1f} pp", "kind": kind})
    rows.append({"name": end, "start": last, "end": last, "text": f"{last:.1f} %", "kind": "accuracy"})
    low, high = min(accuracies.values()), max(accuracies.values())
    margin = high - low or 1.0
    scale = alt.Scale(domain=[low - 0.1 * margin, high + 0.4 * margin], nice=False)  # room for the text
    base = data(rows).encode(
        x=alt.X("start:Q", title="accuracy [%]", scale=scale),
        y=alt.Y("name:N", sort=[*accuracies, end], title=None, axis=alt.Axis(labelLimit=0)),
        color=color("kind", {"accuracy": BLUE, "rises": GREEN, "falls": ORANGE}),
    )
    ends = base.transform_filter("datum.kind == 'accuracy'")
    text = base.transform_calculate(right="max(datum.start, datum.end)")
    layers = [
        base.transform_filter("datum.kind != 'accuracy'").mark_bar(size=18).encode(x2="end:Q"),
        # The ends are ticks, not bars: the axis does not begin at zero, and the eye takes bars by their lengths.
        ends.mark_tick(thickness=4, size=24, opacity=1),
        text.mark_text(align="left", dx=6).encode(x="right:Q", text="text:N", color=alt.value(INK)),
    ]
    return finished(layers, height=36 * len(rows))
