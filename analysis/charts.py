"""The charts of the report, in Vega-Lite by Altair: the pointer shows numbers, and inks are those of the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from analysis.drawing import BLUE, COLOR_OF, COLORS, GREEN, GREY, ORANGE

Rows = Sequence[Mapping[str, Any]]

INK = "currentColor"  # of the text around the chart: dark on a light page, light on a dark one
NUMBER = ",.4~g"
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


def finished(layers: Sequence[alt.Chart], caption: str, height: int = 260) -> alt.LayerChart:
    """As wide as its place; the caption is its description too, for those who cannot see it."""
    chart = alt.LayerChart(layer=list(layers), width="container", height=height, description=caption)
    return chart.configure(**CONFIG)


def number_axis(values: Sequence[float], title: str, log: bool = False) -> dict[str, Any]:
    """Scale and axis for these values; a logarithmic axis writes all its numbers alike, 1,000 or 1e+3."""
    low, high = min(values), max(values)
    whole = all(value == int(value) for value in values)  # epochs: none between them
    axis = alt.Axis(format=",.7~g", tickCount=5, tickMinStep=1 if whole else alt.Undefined)
    if log:
        axis = alt.Axis(format="~e" if low < 1e-4 or high > 1e6 else ",.7~g", values=log_ticks(low, high))
    return {
        "title": title.split("\n"),
        "axis": axis,
        "scale": alt.Scale(nice=False, **({"type": "log"} if log else {"zero": False})),
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``; where these are few, 1, 2, 5 times them, or 1 to 9, or 1.0 to 9.9."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((10,), (10, 20, 50), range(10, 100, 10), range(10, 100)):
        ticks = [digit * 10.0 ** (power - 1) for power in powers for digit in digits]
        if len(found := [tick for tick in ticks if low <= tick <= high]) >= 3:
            return found
    return sorted({low, high})


def lines_chart(rows: Rows, x: str, y: str, log: bool = False, band: str = "", marks: Rows = ()) -> alt.LayerChart:
    """Lines, the numbers of each point under the pointer.

    Args:
        rows: at least one, "x", "y" and the name of its "line" each; for a band "low" and "high" too. Lines of the same
            name and color differ in their "run". On logarithmic axes all numbers are above 0.
        x, y: titles of the axes, one line or more.
        log: both axes are logarithmic.
        band: what lies between "low" and "high".
        marks: vertical lines at "x", with a "text" each.
    """
    edges = [row[name] for row in rows for name in ("low", "high") if row.get(name) is not None]
    names = list(dict.fromkeys(row["line"] for row in rows))
    inks = [COLOR_OF.get(name, COLORS[i % len(COLORS)]) for i, name in enumerate(names)]
    color = alt.Color("line:N", title=None, scale=alt.Scale(domain=names, range=inks))
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(
        x=alt.X("x:Q", **number_axis([row["x"] for row in rows], x, log)),
        y=alt.Y("y:Q", **number_axis([*edges, *(row["y"] for row in rows)], y, log)),
        color=color,
        detail="run:N",
    )
    tips = [alt.Tooltip("line:N", title=" ")]
    tips += [alt.Tooltip("run:N")] if any("run" in row for row in rows) else []
    tips += [alt.Tooltip("x:Q", title=x.replace("\n", " "), format=NUMBER), alt.Tooltip("y:Q", title=y, format=NUMBER)]
    if edges:
        tips += [alt.Tooltip("low:Q", title=f"{band} from", format=NUMBER)]
        tips += [alt.Tooltip("high:Q", title="to", format=NUMBER)]
    layers = [base.mark_area(opacity=0.2).encode(y="low:Q", y2="high:Q")] if edges else []
    xs = sorted(row["x"] for row in rows)
    middle = math.sqrt(xs[0] * xs[-1]) if log else (xs[0] + xs[-1]) / 2
    for i, mark in enumerate(marks):
        place = alt.Chart(alt.InlineData(values=[mark])).encode(x="x:Q")
        side = ("right", -4) if mark["x"] > middle else ("left", 4)  # towards the middle, where there is room
        text = place.mark_text(align=side[0], dx=side[1], y=-8 - 14 * i).encode(text="text:N")  # above
        layers += [place.mark_rule(), text]
    caption = f"{y} over {x}".replace("\n", " ") + (f"; bands: {band}" if edges else "")
    return finished([*layers, base.mark_line(), under_pointer(base, tips)], caption)


def under_pointer(
    base: alt.Chart, tips: Sequence[alt.Tooltip], by: Sequence[Literal["x", "y"]] = ("x", "y")
) -> alt.Chart:
    """The point of ``base`` that is nearest to the pointer, with its numbers; ``by`` says along which axes."""
    near = alt.selection_point(nearest=True, on="pointerover", empty=False, encodings=list(by))
    opacity = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    return base.mark_point(filled=True, size=60, clip=True).encode(opacity=opacity, tooltip=tips).add_params(near)


def chosen_fit(fits: Rows) -> tuple[alt.Chart, list[alt.Parameter]]:
    """The fit of the chosen epochs and learning rate, first the one of the lowest error; and the two to choose by."""
    counts, lrs = sorted({fit["epochs"] for fit in fits}), list(dict.fromkeys(fit["lr"] for fit in fits))
    best = min(fits, key=lambda fit: math.inf if fit["true_mse"] is None else fit["true_mse"])
    slider = alt.binding_range(min=0, max=len(counts) - 1, step=1, name="epochs ")
    step = alt.param("step", value=counts.index(best["epochs"]), bind=slider)
    lr = alt.param("lr", value=best["lr"], bind=alt.binding_radio(options=lrs, name="learning rate "))
    rows = [{**fit, "step": counts.index(fit["epochs"]), "label": fit_label(fit)} for fit in fits]
    chart = alt.Chart(alt.InlineData(values=rows)).transform_filter("datum.step == step && datum.lr == lr")
    return chart.transform_calculate(line="'fitted curve'"), [step, lr]


def fits_chart(growth: Mapping[str, Any]) -> alt.LayerChart:
    """The fitted curve over the training points and the ground truth, for the chosen epochs and learning rate.

    ``growth`` is the content of a curve fit's curves.json.
    """
    chosen, params = chosen_fit(growth["fits"])
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
    }
    colors = {"training points": GREY, "ground truth f(x)": ORANGE, "fitted curve": BLUE}
    at["color"] = alt.Color("line:N", title=None, scale=alt.Scale(domain=list(colors), range=list(colors.values())))
    curve = (
        chosen.transform_flatten(["fit", "low", "high"])
        .transform_window(i="row_number()")
        .transform_lookup("i", alt.LookupData(alt.InlineData(values=grid), "i", ["x", "truth"]))
        .transform_calculate(y="datum.fit")
        .encode(**at)
    )
    names = {"x": "x", "fit": "fitted curve", "low": "quartiles of the seeds", "high": "to", "truth": "ground truth"}
    tips = [alt.Tooltip(f"{name}:Q", title=title, format=NUMBER) for name, title in names.items()]
    layers = [
        alt.Chart(alt.InlineData(values=points)).mark_point(filled=True, size=14, opacity=0.6, clip=True)
        .encode(**at, tooltip=["x:Q", "y:Q"]),
        alt.Chart(alt.InlineData(values=grid)).mark_line(strokeDash=[6, 4], clip=True)
        .encode(at["x"], alt.Y("truth:Q"), at["color"]),
        curve.mark_area(opacity=0.25, clip=True).encode(y="low:Q", y2="high:Q"),
        curve.mark_line(clip=True),
        under_pointer(curve, tips, by=["x"]),
        chosen.mark_text(align="left", baseline="bottom", fontSize=12)
        .encode(text="label:N", x=alt.value(0), y=alt.value(-6)),
    ]  # fmt: skip
    caption = "the first seed's fitted curve, for the chosen epochs and learning rate; band: quartiles of the seeds"
    return finished(layers, caption, height=340).add_params(*params)


def fit_label(fit: Mapping[str, Any]) -> str:
    error = "diverged" if fit["true_mse"] is None else f"MSE against f {fit['true_mse']:.3g}"
    return f"LR {fit['lr']:g}, {fit['epochs']:,} epoch{'s' if fit['epochs'] > 1 else ''}: {error}"


def waterfall_chart(steps: Rows) -> alt.LayerChart:
    """From the training accuracy to the test accuracy, a bar for each step up or down on the way.

    ``steps``: "name", "start" and "end" in percent, and the "text" to show; at both ends start and end are equal.
    """
    values = [step[name] for step in steps for name in ("start", "end")]
    margin = 0.4 * (max(values) - min(values)) or 1.0  # room for the text
    kinds = {"accuracy": BLUE, "rises": GREEN, "falls": ORANGE}
    rows = [{**step, "at": max(step["start"], step["end"]), "kind": kind_of(step)} for step in steps]
    scale = alt.Scale(domain=[min(values) - margin / 4, max(values) + margin], nice=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("start:Q", title="accuracy [%]", scale=scale),
        y=alt.Y("name:N", sort=[step["name"] for step in steps], title=None),
        tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("text:N", title="accuracy")],
    )
    color = alt.Color("kind:N", title=None, scale=alt.Scale(domain=list(kinds), range=list(kinds.values())))
    is_end = "datum.kind == 'accuracy'"
    layers = [
        base.transform_filter(f"!({is_end})").mark_bar(size=18).encode(x2="end:Q", color=color),
        # The ends are ticks, not bars: the axis does not begin at zero, and the eye takes bars by their lengths.
        base.transform_filter(is_end).mark_tick(thickness=4, size=24, opacity=1).encode(color=color),
        base.mark_text(align="left", dx=6).encode(x="at:Q", text="text:N"),
    ]
    return finished(layers, "from training to test accuracy, step by step", height=36 * len(rows))


def kind_of(step: Mapping[str, Any]) -> str:
    return "accuracy" if step["start"] == step["end"] else "rises" if step["end"] > step["start"] else "falls"
