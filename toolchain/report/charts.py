"""The trade-off charts, as Vega-Lite through altair: perplexity against what a model costs."""

import math
from collections.abc import Sequence
from typing import Any

from toolchain.report.join import Row
from toolchain.report.tables import conditions, fronts
from toolchain.report.units import mb, ms, three

Chart = Any  # one of altair's chart classes; altair is imported when something is drawn
TEACHER = "#7c8591"
# Middle tones, told apart on white and on near-black paper alike.
COLOURS = (
    "#e4572e",
    "#2a9d8f",
    "#3f7fe0",
    "#a863d4",
    "#c98b00",
    "#d6457f",
    "#5a9e3a",
    "#0f8fb3",
    "#a0684a",
    "#7a6ff0",
)
# Vega's point shapes, and the same in a box from -6 to 6 for the legend that the page draws itself.
PATHS = {
    "circle": "M5,0A5,5,0,1,1,-5,0A5,5,0,1,1,5,0Z",
    "square": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "triangle-up": "M0,-5L5.5,4.5H-5.5Z",
    "diamond": "M0,-6L5,0L0,6L-5,0Z",
    "cross": "M-5,-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
    "triangle-down": "M0,5L5.5,-4.5H-5.5Z",
}
SHAPES = tuple(PATHS)
# cost column: axis title, factor to the shown unit, columns of the spread drawn as a bar
COSTS: dict[str, tuple[str, float, tuple[str, str] | None]] = {
    "token_s_median": ("time per token, ms", 1e3, ("token_s_p25", "token_s_p75")),
    "peak_rss_bytes_median": ("peak memory, MB", 1e-6, ("peak_rss_bytes_p25", "peak_rss_bytes_p75")),
    "file_bytes": ("file size, MB", 1e-6, None),
}
TOOLTIP = ("student", "weights", "perplexity", "time per token", "first token", "peak memory", "file")
LABEL_WIDTH = 26  # characters of a student's name on one line beside the plot
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def drawable(rows: list[Row], cost: str) -> list[Row]:
    """The artifacts that have both this cost and a perplexity."""
    return [
        r for r in rows if r["subject"] == "artifact" and r[cost] is not None and r["perplexity"] is not None
    ]


def palette(rows: list[Row], teachers: set[str]) -> dict[str, str]:
    """A colour for each student, the teacher's a grey; colours repeat after ten students."""
    names = list(dict.fromkeys(r["student"] for r in rows))
    grey = {r["student"] for r in rows if r["checkpoint_sha256"] in teachers}
    rest = [name for name in names if name not in grey]
    return {n: TEACHER if n in grey else COLOURS[rest.index(n) % len(COLOURS)] for n in names}


def shapes(rows: list[Row]) -> dict[str, str]:
    """A point shape for each recipe."""
    recipes = list(dict.fromkeys(r["recipe"] or "" for r in rows if r["subject"] == "artifact"))
    return {recipe: SHAPES[i % len(SHAPES)] for i, recipe in enumerate(recipes)}


def panel(
    rows: list[Row],
    cost: str,
    *,
    colours: dict[str, str],
    teachers: set[str],
    ink: str,
    height: int,
    labels: bool,
) -> Chart:
    """Perplexity (log) against one cost: points, spread, a line through each student's recipes, the front.

    `rows` are one setting's, `ink` the colour of text and rules ("currentColor" inside a page). With
    `labels`, each student is named to the right of the plot, in its colour, where it cannot cover a point.
    """
    import altair as alt

    title, factor, spread = COSTS[cost]
    able = drawable(rows, cost)
    points = [_point(r, cost, factor, spread) for r in able]
    low, high = _domain([r["perplexity"] for r in rows if r["perplexity"] is not None])
    top = max(p["x_high"] for p in points) * 1.06
    by_student = alt.Scale(domain=list(colours), range=list(colours.values()))
    colour = alt.Color("student:N", scale=by_student, legend=None)
    fill = alt.Fill("student:N", scale=by_student, legend=None)
    forms = shapes(rows)
    shape = alt.Shape(
        "weights:N", scale=alt.Scale(domain=list(forms), range=list(forms.values())), legend=None
    )
    x = alt.X("x:Q", title=title, scale=alt.Scale(domain=[0, top], nice=False), axis=alt.Axis(tickCount=6))
    axis = alt.Axis(values=ticks(low, high), format=",~g")
    y = alt.Y(
        "y:Q",
        title="perplexity (log), lower is better",
        scale=alt.Scale(type="log", domain=[low, high]),
        axis=axis,
    )
    base = alt.Chart(alt.InlineData(values=points))
    edge = [{"x": r[cost] * factor, "y": r["perplexity"]} for r in fronts(rows, cost)]
    edge = [{"x": edge[0]["x"], "y": high}, *edge, {"x": top, "y": edge[-1]["y"]}]
    layers: list[Any] = [
        *_reference(rows, teachers, y, ink, named=labels),
        alt.Chart(alt.InlineData(values=edge))
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.3, color=ink, opacity=0.55)
        .encode(x=x, y=y, order="x:Q"),
        base.mark_line(strokeWidth=1.5, opacity=0.45).encode(x=x, y=y, color=colour, order="x:Q"),
        base.mark_rule(strokeWidth=3, opacity=0.28, strokeCap="round").encode(
            x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=colour
        ),
        # Seen through, with an outline: recipes that cost nearly the same lie over one another.
        base.mark_point(size=110, opacity=1, fillOpacity=0.5, strokeWidth=1.6).encode(
            x=x,
            y=y,
            color=colour,
            fill=fill,
            shape=shape,
            tooltip=[alt.Tooltip(f"{name}:N") for name in TOOLTIP],
        ),
    ]
    if labels:
        names = {p["student"] for p in points}
        height = max(height, sum(label_height(wrap(name, LABEL_WIDTH)) for name in names))
        layers += _labels(points, (low, high), height, top, colour, y)
    return alt.layer(*layers).properties(height=height)


def _point(row: Row, cost: str, factor: float, spread: tuple[str, str] | None) -> dict[str, Any]:
    value = row[cost] * factor
    low, high = (
        (row[key] * factor if row[key] is not None else value for key in spread) if spread else (value, value)
    )
    return {
        "x": value,
        "x_low": low,
        "x_high": max(high, value),
        "y": row["perplexity"],
        "student": row["student"],
        "weights": row["recipe"] or "",
        "perplexity": three(row["perplexity"]),
        "time per token": f"{ms(row['token_s_median'])} ms" if row["token_s_median"] else "",
        "first token": f"{ms(row['first_token_s_median'])} ms" if row["first_token_s_median"] else "",
        "peak memory": f"{mb(row['peak_rss_bytes_median'])} MB" if row["peak_rss_bytes_median"] else "",
        "file": f"{mb(row['file_bytes'])} MB" if row["file_bytes"] else "",
    }


def _domain(values: list[float]) -> tuple[float, float]:
    """A log axis's ends with some air around the values."""
    low, high = min(values), max(values)
    air = max((high / low) ** 0.07, 1.04)
    return low / air, high * air


def ticks(low: float, high: float) -> list[float]:
    """Round values for a log axis from `low` to `high`: from 4 to about 8 of them where the range allows."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), [n / 10 for n in range(10, 100)]):
        values = [float(f"{m * 10.0**d:.6g}") for d in decades for m in steps]
        values = [v for v in values if low <= v <= high]
        if len(values) >= 4:
            break
    return values[:: max(1, len(values) // 8)]


def _reference(rows: list[Row], teachers: set[str], y: Any, ink: str, named: bool) -> list[Any]:
    """A level line for each teacher as PyTorch computes it, what every artifact is held against."""
    import altair as alt

    whole = [
        r
        for r in rows
        if r["checkpoint_sha256"] in teachers and r["subject"] == "checkpoint" and r["perplexity"]
    ]
    marks = [
        {"x": 0, "y": r["perplexity"], "text": f"{r['student']}, PyTorch: {three(r['perplexity'])}"}
        for r in whole
    ]
    if not marks:
        return []
    base = alt.Chart(alt.InlineData(values=marks))
    # At the left end, where nothing is free of cost: the right one is where names' leaders go.
    note = base.mark_text(align="left", baseline="top", dy=5, dx=6, fontSize=11, color=ink, opacity=0.7)
    level = base.mark_rule(color=ink, opacity=0.35, strokeWidth=1).encode(y=y)
    return [level, note.encode(x="x:Q", y=y, text="text:N")] if named else [level]


def _labels(
    points: list[dict[str, Any]], span: tuple[float, float], height: int, top: float, colour: Any, y: Any
) -> list[Any]:
    """Each student's name right of the plot, level with its slowest point, apart where two would touch."""
    import altair as alt

    slowest = {p["student"]: p for p in sorted(points, key=lambda p: p["x"])}
    low, high = (math.log(v) for v in span)
    texts = {name: wrap(name, LABEL_WIDTH) for name in slowest}
    wanted = sorted(slowest, key=lambda name: -slowest[name]["y"])
    pixels = [height * (high - math.log(slowest[name]["y"])) / (high - low) for name in wanted]
    sizes = [label_height(texts[name]) for name in wanted]
    values, lines = [], []
    for name, place in zip(wanted, spread_out(pixels, sizes, height), strict=True):
        level = math.exp(high - place / height * (high - low))
        values.append({"student": name, "text": texts[name], "y": level})
        ends = [(slowest[name]["x"], slowest[name]["y"]), (top, level)]
        lines += [{"student": name, "x": at, "y": value} for at, value in ends]
    # Vega places a text of several lines by its first one: lift it by half of what follows.
    parts = []
    for count in sorted({v["text"].count("\n") for v in values}):
        some = alt.Chart(alt.InlineData(values=[v for v in values if v["text"].count("\n") == count]))
        mark = some.mark_text(
            align="left", dx=8, dy=-7 * count, fontSize=12, fontWeight=600, lineBreak="\n", lineHeight=14
        )
        parts.append(mark.encode(x=alt.value("width"), y=y, text="text:N", color=colour))
    leader = alt.Chart(alt.InlineData(values=lines)).mark_line(strokeWidth=1, strokeDash=[1, 3], opacity=0.7)
    return [leader.encode(x="x:Q", y=y, color=colour), *parts]


def label_height(text: str) -> int:
    """Pixels that a label's lines take, with a little air."""
    return 14 * (text.count("\n") + 1) + 5


def wrap(text: str, width: int) -> str:
    """Text broken after its commas, then at spaces, so that no line is much longer than `width`."""
    import textwrap

    return "\n".join(
        line
        for part in text.replace(", ", ",\n").split("\n")
        for line in textwrap.wrap(part, width) or [part]
    )


def spread_out(places: list[float], sizes: Sequence[float], height: float) -> list[float]:
    """Centres in ascending order moved as little as it takes for boxes of `sizes` not to overlap.

    One sweep down from the top, then one up from the bottom for what ran over it; if all of them together are
    higher than the plot, the last ones go below it.
    """
    moved = list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + (sizes[i - 1] + sizes[i]) / 2)
    limit = max(height, sum(sizes))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit - sizes[i] / 2)
        limit = moved[i] - sizes[i] / 2
    return moved


def style(ink: str) -> dict[str, Any]:
    """The Vega-Lite configuration of every chart; `ink` is the colour of its text."""
    quiet = {"grid": True, "gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.4}
    text = {
        "labelColor": ink,
        "titleColor": ink,
        "tickColor": ink,
        "tickOpacity": 0.4,
        "titleFontWeight": "normal",
    }
    return {
        "font": FONT,
        "background": "transparent" if ink == "currentColor" else "white",
        "view": {"stroke": None},
        "axis": {**quiet, **text, "labelFontSize": 12, "titleFontSize": 12.5, "titlePadding": 10},
        "title": {
            "color": ink,
            "subtitleColor": ink,
            "fontSize": 20,
            "subtitleFontSize": 13,
            "anchor": "start",
        },
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12},
    }


def page_specs(rows: list[Row], colours: dict[str, str], teachers: set[str]) -> dict[str, dict[str, Any]]:
    """Vega-Lite specs of one setting by cost, as wide as their place in the page.

    Each comes "wide" and "narrow" (for a phone); the first cost's wide one is the large one with names in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, cost in enumerate(c for c in COSTS if drawable(rows, c)):
        for size in ("wide", "narrow"):
            labels = i == 0 and size == "wide"
            height = 460 if labels else 300
            chart = panel(
                rows,
                cost,
                colours=colours,
                teachers=teachers,
                ink="currentColor",
                height=height,
                labels=labels,
            )
            pad = {"left": 4, "top": 6, "bottom": 4, "right": 12}
            fit = {"type": "fit-x", "contains": "padding"}
            chart = chart.properties(width="container", padding=pad, autosize=fit).configure(
                **style("currentColor")
            )
            found.setdefault(cost, {})[size] = chart.to_dict()
    return found


def picture(groups: list[list[Row]], colours: dict[str, str], teachers: set[str], title: str) -> bytes:
    """trade-off.png: for each setting the chart of the first cost measured, the other costs below."""
    import altair as alt
    import vl_convert

    ink, parts = "#1f2933", []
    for rows in groups:
        costs = [c for c in COSTS if drawable(rows, c)]
        if not costs:
            continue
        make = [
            panel(
                rows,
                cost,
                colours=colours,
                teachers=teachers,
                ink=ink,
                height=430 if i == 0 else 240,
                labels=i == 0,
            )
            for i, cost in enumerate(costs)
        ]
        below = [chart.properties(width=405) for chart in make[1:]]
        head = alt.Title(
            wrap(conditions(rows).replace("; ", ", "), 400), fontSize=13, fontWeight="normal", offset=12
        )
        main = make[0].properties(width=760, title=head)
        parts.append(
            alt.vconcat(_legend(rows, ink), main, alt.hconcat(*below, spacing=60), spacing=22)
            if below
            else main
        )
    whole = alt.vconcat(*parts, spacing=50).properties(title=alt.Title(title, offset=18), padding=28)
    return vl_convert.vegalite_to_png(whole.configure(**style(ink)).to_dict(), scale=2)


def _legend(rows: list[Row], ink: str) -> Chart:
    """One line that says which shape is which recipe, and what the dashes and bars are."""
    import altair as alt

    forms = shapes(rows)
    marks = [{"i": i * 70, "weights": recipe, "text": recipe} for i, recipe in enumerate(forms)]
    base = alt.Chart(alt.InlineData(values=marks))
    x = alt.X("i:Q", scale=alt.Scale(domain=[0, 760]), axis=None)
    shape = alt.Shape(
        "weights:N", scale=alt.Scale(domain=list(forms), range=list(forms.values())), legend=None
    )
    note = alt.Chart(alt.InlineData(values=[{"i": len(marks) * 70 + 10, "text": CAPTION}]))
    text: dict[str, Any] = {"align": "left", "dx": 10, "fontSize": 12, "color": ink}
    return alt.layer(
        base.mark_point(filled=True, size=100, color=ink, opacity=1).encode(x=x, shape=shape),
        base.mark_text(**text).encode(x=x, text="text:N"),
        note.mark_text(**text, opacity=0.75).encode(x=x, text="text:N"),
    ).properties(width=760, height=18)


CAPTION = "bars: the middle half of all samples; dashes: the Pareto front, no choice is better at both"
