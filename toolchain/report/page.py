"""The report: results in, a page to decide from out, with the same numbers as text, picture and CSV."""

import csv
import functools
from importlib import resources
from pathlib import Path
from typing import Any

from devices.files import staged
from toolchain.report import charts, made, story, tables
from toolchain.report.join import COLUMNS, Row, rows
from toolchain.report.lineage import Result, Student, students
from toolchain.report.load import load

MARKDOWN_SPECIAL = {**{c: f"\\{c}" for c in "\\`*_[]|#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}


def report(results: Path, out: Path, *, force: bool = False, title: str | None = None) -> Path:
    """Write report.html, report.md, trade-off.png and results.csv into the new folder `out`; the page's path.

    Reads every result JSON below `results`. trade-off.png is left out where nothing has both a perplexity and
    a cost to draw it against. UserError where a file is no result, or `out` exists and `force` is not given.
    """
    found, baselines = load(results)
    known = students(found)
    flat = rows(found, known, {entry["task"]: entry["value"] for entry in baselines})
    page = content(found, flat, known, title)
    with staged(out, force=force) as staging:
        write_csv(staging / "results.csv", flat)
        if page["figures"]:
            groups = list(page["settings"].values())
            picture = charts.picture(groups, page["colours"], page["teachers"], page["title"])
            (staging / "trade-off.png").write_bytes(picture)
        (staging / "report.md").write_text(render("report.md.j2", page) + "\n", encoding="utf-8")
        (staging / "report.html").write_text(render("report.html.j2", page), encoding="utf-8")
    return out / "report.html"


def content(
    found: list[Result], flat: list[Row], known: dict[str, Student], title: str | None
) -> dict[str, Any]:
    """Everything both templates show, as plain data."""
    settings = tables.settings(flat)
    main = next(iter(settings.values()), [])
    teachers = {s.sha256 for s in known.values() if s.is_teacher}
    colours = charts.palette([r for r in flat if r["kind"] == "decoder"], teachers)
    names = [s.name for s in known.values() if s.is_teacher] or [s.name for s in known.values()]
    cut = any(s.compression for s in known.values())
    fate = (
        "made smaller: what it costs and what it keeps"
        if cut
        else "measured: what it costs and what it is worth"
    )
    figures = []
    for group in settings.values():
        if specs := charts.page_specs(group, colours, teachers):
            legend = {r["student"]: colours[r["student"]] for r in group if r["subject"] == "artifact"}
            note = tables.conditions(group)
            figures.append({"note": note, "specs": specs, "legend": legend, "shapes": charts.shapes(group)})
    classifiers = tables.classifier_table(flat, known)
    told = story.story(main, flat, known) if main else story.classifiers(flat)
    return {
        "title": title or f"{names[0]}, {fate}",
        "story": told or ["The tables hold what was measured."],
        "figures": figures,
        "tables": [
            tables.decoder_table(group, known, heading)
            for heading, group in zip(tables.headings(settings), settings.values(), strict=True)
        ]
        + ([classifiers] if classifiers else []),
        "cards": made.cards(known),
        "environments": made.environments(found),
        "results": len(found),
        "dates": sorted(r["created"][:10] for r in found if r.get("created")),
        "settings": settings,
        "colours": colours,
        "teachers": teachers,
        "caption": charts.CAPTION,
        "paths": charts.PATHS,
        "costs": {cost: name.split(",")[0] for cost, (name, _, _) in charts.COSTS.items()},
    }


def write_csv(path: Path, flat: list[Row]) -> None:
    """All numbers as measured, unrounded, one row per subject x device x workload; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(flat)


def render(template: str, page: dict[str, Any]) -> str:
    """A template of this folder filled in; HTML is escaped by jinja2, Markdown by its `md` filter."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("toolchain.report").joinpath(name).read_text("utf-8")
        ),
        autoescape=template.endswith("html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters["md"] = markdown
    # The bundle is a program we trust, so it is the one thing that is not escaped. The charts' data go in
    # through tojson, which writes "<" as \u003c: no name can end the script element.
    bundle = drawing_program() if template.endswith("html.j2") and page["figures"] else ""
    return env.get_template(template).render(page, bundle=bundle)


@functools.cache
def drawing_program() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs no network (slow to put together)."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def markdown(text: Any) -> str:
    """Text on one line with what Markdown and HTML would act on escaped."""
    return "".join(MARKDOWN_SPECIAL.get(c, c) for c in " ".join(str(text).split()))
