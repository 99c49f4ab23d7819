"""The charts of the report, in Vega-Lite by Altair; report.html sets the color of texts."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from analysis.curves import Growth, error_name
from analysis.figures import GREY, counts_and_lrs
from analysis.runs import Rows

WHOLE, TIP = ",.7~g", ",.3~g"  # of epochs and points; of all other numbers, as in the text
TRUTH = "#9467bd"  # f; not a learning rate's color
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "numberFormat": ",.4~g",
    "view": {"stroke": None},
    "axis": {"gridColor": GREY, "gridOpacity": 0.25, "tickCount": 6, "labelOverlap": "greedy", "labelSeparation": 6,
             "labelLimit": 0, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {"orient": "bottom", "columns": 1, "labelLimit": 0, "labelFontSize": 12, "symbolOpacity": 1},
}  # fmt: skip


def finished(layers: list[alt.Chart], height: int = 260) -> alt.LayerChart:
    return alt.LayerChart(layer=layers, width="container", height=height).configure(**CONFIG)


def data(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def under_pointer(base: alt.Chart, tips: list[Any]) -> alt.Chart:
    """The point nearest to the pointer, with its numbers."""
    near = alt.selection_point(nearest=True, on="pointerover", empty=False, encodings=["x", "y"])
    points = base.mark_point(filled=True, size=60, clip=True).add_params(near)
    return points.encode(opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=tips)


def lines_chart(
    lines: Rows, x: str, y: str, marks: Sequence[tuple[float, str]] = (), ticks: Sequence[int] = (), log: bool = False
) -> alt.LayerChart:
    """``lines``, at least one, have the names "line" and "run", the "color" of all of this name, and lists "x" and "y";
    for a band also lists "lower quartile" and "upper quartile". ``x`` and ``y`` are titles of axes; ``marks`` are
    vertical lines, x and text."""
    scale = alt.Scale(nice=False, padding=6, **({"type": "log"} if log else {"zero": False}))
    axis = alt.Axis(format=WHOLE, values=[*ticks], tickCount=len(ticks)) if ticks else alt.Axis()  # all of them
    each: list[Any] = [name for name in lines[0] if name not in ("line", "run", "color")]
    axes = alt.X("x:Q", title=x, scale=scale, axis=axis), alt.Y("y:Q", title=y, scale=scale)
    colors = {line["line"]: line["color"] for line in lines}
    color = alt.Color("line:N", title=None, scale=alt.Scale(domain=[*colors], range=[*colors.values()]))
    base = data(lines).transform_flatten(each).encode(*axes, color, detail="run:N")
    is_curve = any(len(line["x"]) > 1 for line in lines)
    layers = [base.mark_line(point={"size": 14 if is_curve else 90})]
    if "lower quartile" in each:
        band = base.mark_area(opacity=0.2) if is_curve else base.mark_rule(opacity=0.4, strokeWidth=4)
        layers.append(band.encode(y="lower quartile:Q", y2="upper quartile:Q"))
    for place, text in marks:
        mark = data([{"x": place}]).encode(x="x:Q")
        layers += [mark.mark_rule(color=GREY, strokeDash=[4, 3]), mark.mark_text(text=text, align="right", dx=-4, y=8)]
    tips = ["line:N", "run:N", alt.Tooltip("x:Q", title=x, format=WHOLE), alt.Tooltip("y:Q", title=y, format=TIP)]
    tips += [alt.Tooltip(f"{name}:Q", format=TIP) for name in each[2:]]
    return finished([*layers, under_pointer(base, tips)])


def fits_chart(growth: Growth, colors: Mapping[float, str]) -> alt.LayerChart:
    """The fitted curve for the chosen epochs and learning rate, those of the lowest error first."""
    fits = [{**fit, "color": colors[fit["lr"]]} for fit in growth["fits"]]
    points, error, (counts, lrs) = growth["points"], error_name(growth["truth"]), counts_and_lrs(growth)
    best = min(fits, key=lambda fit: fit[error] or math.inf)
    slider = alt.binding_range(min=0, max=len(counts) - 1, step=1, name="epochs ")
    params = [
        alt.param("step", value=counts.index(best["epochs"]), bind=slider),
        alt.param("lr", value=best["lr"], bind=alt.binding_radio(options=lrs, name="learning rate ")),
        alt.param("counts", value=counts),
        alt.param("grid", value=growth["x"]),  # once for all fits
        alt.param("truth", value=growth["truth"]),
    ]
    chosen = data(fits).transform_filter("datum.epochs == counts[step] && datum.lr == lr")
    where = "against f" if growth["truth"] else "on held-out points"
    value = f"(datum.{error} == null ? 'diverged' : format(datum.{error}, '.3~g'))"
    label = f"'lr ' + lr + ', ' + format(datum.epochs, ',') + ' epochs, MSE {where}: ' + {value}"
    ys = [*(growth["truth"] or growth["held_out"]["y"]), *points["y"]]
    y = alt.Y("fitted curve:Q", title="y", scale=alt.Scale(domain=[min(ys), max(ys)], nice=True))
    names = ["x", "fitted curve", "ground truth f(x)", "lower quartile", "upper quartile"]
    on_grid = chosen.transform_calculate(x="grid", truth="truth")
    curve = on_grid.transform_flatten(["x", "fit", "truth", "low", "high"], as_=names)
    curve = curve.encode(alt.X("x:Q", scale=alt.Scale(zero=False, nice=False)), y)
    held_out = [] if growth["truth"] else [{"line": "held-out points", **growth["held_out"]}]
    drawn = data([{"line": "training points", **points}, *held_out]).transform_flatten(["x", "y"])
    order = ["held-out points" if held_out else names[2], "training points"]
    color = alt.Color("line:N", title=None, scale=alt.Scale(domain=order, range=[TRUTH, GREY]))
    stroke, fill = alt.Stroke("color:N", scale=None), alt.Fill("color:N", scale=None)  # of the learning rate
    tips = [alt.Tooltip(f"{name}:Q", format=WHOLE) for name in names if growth["truth"] or name != names[2]]
    layers = [
        drawn.mark_point(filled=True, size=14, opacity=0.6).encode(x="x:Q", y="y:Q", color=color),
        curve.mark_line(strokeDash=[6, 4]).encode(alt.Y(f"{names[2]}:Q"), alt.ColorDatum(order[0])),
        curve.mark_area(opacity=0.25, clip=True).encode(fill, y="lower quartile:Q", y2="upper quartile:Q"),
        curve.mark_line(clip=True).encode(stroke),
        under_pointer(curve.encode(fill), tips),
        chosen.transform_calculate(label=label).mark_text(align="left", x=0, y=-10, fontSize=12).encode(text="label:N"),
    ]
    return finished(layers, height=340).add_params(*params)


def waterfall_chart(accuracies: Mapping[str, float], end: str) -> alt.LayerChart:
    """A bar for each step from the first of these percentages to the last, which ``end`` names."""
    values, names, rows = [*accuracies.values()], [*accuracies, end], []
    for name, (a, b) in zip(names, itertools.pairwise([values[0], *values, values[-1]]), strict=True):
        text = f"{b:.1f} %" if name in (names[0], end) else f"{b - a:+.1f} pp"
        rows.append({"name": name, "start": a, "end": b, "text": text})
    return bars_chart(rows, height=36 * len(rows))


def bars_chart(rows: Rows, height: int) -> alt.LayerChart:
    """A bar from "start" to "end", each in percent, for each "name", with its "text"."""
    values = [row[end] for row in rows for end in ("start", "end")]
    low, high = min(values), max(values)
    scale = alt.Scale(domain=[1.1 * low - 0.1 * high, 1.6 * high - 0.6 * low], nice=False)  # room for the text
    y = alt.Y("name:N", sort=[row["name"] for row in rows], title=None)
    base = data(rows).encode(alt.X("start:Q", title="accuracy [%]", scale=scale), y, alt.ColorValue(GREY))
    bars = base.mark_bar(size=18).encode(x2="end:Q")
    # Ticks, not bars from zero: the axis does not begin there, and the eye takes bars by their lengths.
    ticks = base.mark_tick(thickness=4, size=32, opacity=1).encode(x="end:Q")
    texts = base.transform_calculate(right="max(datum.start, datum.end)").mark_text(align="left", dx=6)
    return finished([bars, ticks, texts.encode(x="right:Q", text="text:N")], height)
