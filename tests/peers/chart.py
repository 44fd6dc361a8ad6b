"""The picture: tokens per second, first token and peak memory of every variant, side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import summary
from measure import Job
from plan import PEERS
from summary import Rounds

from toolchain.report.charts import COLOURS, SHAPES, style

INK = "#1f2933"
PANELS = (
    ("tokens/s", 1.0, "tokens per second, more is better"),
    ("first token", 1e3, "first token after 128, ms, less is better"),
    ("peak", 1e-6, "peak memory, MB, less is better"),
)


def picture(rounds: Rounds, jobs: Sequence[Job]) -> bytes | None:
    """A PNG with a row of panels for each model that generates; None where none was measured."""
    import altair as alt
    import vl_convert

    mine = [j for j in jobs if j.workload.name == "generate"]
    rows = []
    for model in dict.fromkeys(j.model for j in mine):
        points = [p for j in mine if j.model == model for p in _points(rounds, j)]
        if points:
            panels = [_panel(points, *panel, names=not at) for at, panel in enumerate(PANELS)]
            rows.append(alt.hconcat(*panels, spacing=24).properties(title=alt.Title(model.what, fontSize=14)))
    if not rows:
        return None
    title = alt.Title("One model, every runtime", subtitle=CAPTION, offset=16)
    whole = alt.vconcat(*rows, spacing=36).properties(title=title, padding=24)
    return vl_convert.vegalite_to_png(whole.configure(**style(INK)).to_dict(), scale=2)


CAPTION = (
    "medians over rounds with lowest and highest; batch 1, prompt of 128 tokens, then 64; by bits per weight"
)


def _points(rounds: Rounds, job: Job) -> list[dict[str, Any]]:
    """A mark per panel of what a job measured."""
    found = []
    for measure, factor, _ in PANELS:
        spread = summary.of(rounds, job.key, measure)
        if spread is not None:
            values = {"value": spread.median, "low": spread.low, "high": spread.high}
            found.append(
                {
                    **{key: value * factor for key, value in values.items()},
                    "measure": measure,
                    "name": job.variant.name,
                    "peer": job.variant.peer,
                    "bits": job.variant.bits,
                    "threads": f"{job.threads} thread{'s' if job.threads != 1 else ''}",
                }
            )
    return found


def _panel(points: list[dict[str, Any]], measure: str, factor: float, title: str, names: bool) -> Any:
    """Variants downwards, grouped by bits, the measure to the right; colours are peers, shapes threads."""
    import altair as alt

    mine = [p for p in points if p["measure"] == measure]
    order = [p["name"] for p in sorted(mine, key=lambda p: (-p["bits"], p["peer"] == "ours", p["name"]))]
    order = list(dict.fromkeys(order))
    threads = sorted({p["threads"] for p in mine})
    peers = ["ours", *PEERS]
    base = alt.Chart(alt.InlineData(values=mine))
    axis = alt.Axis(title=None, labels=names, labelLimit=260, ticks=False)
    y = alt.Y("name:N", sort=order, axis=axis)
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True))
    colour = alt.Color(
        "peer:N", scale=alt.Scale(domain=peers, range=list(COLOURS[: len(peers)])), legend=None
    )
    forms = alt.Scale(domain=threads, range=list(SHAPES[: len(threads)]))
    legend = alt.Legend(title=None, orient="top") if names else None
    low = alt.X("low:Q", title=title)
    return alt.layer(
        base.mark_rule(strokeWidth=3, opacity=0.3).encode(x=low, x2="high:Q", y=y, color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, y=y, color=colour, shape=alt.Shape("threads:N", scale=forms, legend=legend)
        ),
    ).properties(width=270, height={"step": 22})
