"""`toolchain bench`: measure artifacts on a device."""

import json
from pathlib import Path
from typing import Any

import click

from devices.errors import CheckFailed, UserError
from toolchain.cli.baseline import check_or_renew, prepare, results_folder
from toolchain.cli.evaluate import figure


def counts(_: click.Context, __: click.Parameter, text: str | None) -> int | list[int] | str | None:
    """--threads: "2", "1,2,4" or "all"."""
    if text is None or text == "all":
        return text
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"'{text}' is no number of threads; write 2, or 1,2,4, or all")
    numbers = [int(word) for word in words]
    return numbers[0] if len(numbers) == 1 else numbers


@click.command()
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results to add these to.")
@click.option("--device", default="local", show_default=True, help="A device's name, or its TOML file.")
@click.option("--setup", is_flag=True, help="Set the device up first, as `toolchain devices setup` does.")
@click.option("--workload", help="What to measure.  [default: chat; classify for a classifier]")
@click.option(
    "--threads",
    metavar="N[,N...]|all",
    callback=counts,
    help="A result for each; all: 1, 2, 4 ... cores.  [default: the fastest for each artifact, remembered]",
)
@click.option(
    "--affinity",
    metavar="CPUS|none",
    help="Processors to run on, like 0,2-3.  [default: one a thread, whole and fast cores first]",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Fresh processes each.  [default: 5; 1 if sustained]"
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="How long sustained lasts.  [default: 5]"
)
@click.option("--corpus", help="Text file to take perplexity on, or stdlib: its held-out part.")
@click.option(
    "--window", type=click.IntRange(min=2), help="Tokens a window.  [default: 512, or the model's positions]"
)
@click.option("--blocks", type=click.IntRange(min=1), help="Only the first so many windows.  [default: all]")
@click.option("--task", metavar="NAME", help="Labelled task to take a classifier's metric on (dev rows).")
@click.option("--data", type=click.Path(path_type=Path), help="Folder that holds the tasks' folders.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of tokens and order.")
@click.option(
    "--compare",
    nargs=2,
    metavar="A.json B.json",
    type=click.Path(path_type=Path),
    help="Measure nothing: say how result B stands to A.",
)
@click.option("--across", is_flag=True, help="With --compare: whatever else differs between the two.")
@click.option("--fail-if-slower", is_flag=True, help="With --compare: exit 1 where B is slower or larger.")
@click.option(
    "--check",
    "baseline",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Compare instructions per token with this baseline; exit 1 if they grew. Emulated devices only.",
)
@click.option(
    "--threshold",
    default=0.5,
    show_default=True,
    type=click.FloatRange(min=0, max=1000),
    metavar="PERCENT",
    help="For --check.",
)
@click.option("--renew", is_flag=True, help="Write what was counted into the --check file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of results, or the comparison.")
def command(artifacts: tuple[Path, ...], as_json: bool, **asked: Any) -> None:
    """Measure ARTIFACTS: load, first token, time per token, memory, and quality where a text is given.

    Each round of each artifact is a fresh process, in shuffled turns; one result is written per artifact and
    number of threads. Two results measured in one run are told apart by 8 rounds or more (docs/measuring.md).

    \b
    Example:
      toolchain bench demo-out/artifacts/distilled-int8 --rounds 3 --out results
      toolchain bench demo-out/artifacts/distilled-int8 --device cortex-a76 --workload short --rounds 2 --out results
    """
    pair, across, fail = (asked.pop(key) for key in ("compare", "across", "fail_if_slower"))
    if pair is None:
        if across or fail:
            raise UserError("--across and --fail-if-slower go with --compare; leave them out")
        _measure(artifacts, as_json, **asked)
        return
    if artifacts or asked["out"] is not None:
        raise UserError("--compare measures nothing: leave out the artifacts and --out")
    a, b = pair
    _compare(a, b, across, fail, as_json)


def _measure(
    artifacts: tuple[Path, ...],
    as_json: bool,
    *,
    out: Path | None,
    corpus: str | None,
    task: str | None,
    data: Path | None,
    setup: bool,
    baseline: Path | None,
    threshold: float,
    renew: bool,
    **settings: Any,
) -> None:
    """Measure, write, print; compare with a baseline where there is one."""
    if not artifacts:
        raise UserError("bench needs an artifact to measure, or --compare A.json B.json; see --help")
    from bench.run import bench
    from toolchain.glue.metrics import dev_rows

    if corpus is not None:
        from toolchain.corpus import heldout_file

        settings["corpus"] = heldout_file(corpus)
        settings["corpus_name"] = "stdlib" if corpus == "stdlib" else None
    prepare(out, baseline, renew, settings["device"])
    rows = None if task is None else dev_rows(task, data)

    def say(line: str) -> None:
        click.echo(line, err=True)

    if setup:
        from devices import profiles, reach

        profile = profiles.load(settings["device"])
        reach.of(profile).setup(profile, say)
    with results_folder(out) as folder:
        results = bench(list(artifacts), folder, say=say, task=rows, **settings)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        click.echo("\n".join(table(results)))
        for line in filter(None, map(roof, results)):
            click.echo(line)
        click.echo(f"results in {out}" if out else "no --out, so no results are kept")
    if baseline:
        check_or_renew(baseline, results, threshold, renew, say)


def _compare(a: Path, b: Path, across: bool, fail: bool, as_json: bool) -> None:
    """Print how B stands to A; CheckFailed where it is worse and `fail` asks."""
    from bench import compare

    first, second = ({**compare.read(path), "file": str(path)} for path in (a, b))
    found = compare.compare(first, second, across)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(compare.lines(found)))
    if fail and (worse := compare.slower(found)):
        raise CheckFailed(f"{b}: {'; '.join(worse)}")


def roof(result: dict[str, Any]) -> str | None:
    """The result's roofline in a line; None where it has none."""
    found = result.get("roofline")
    if not found:
        return None
    threads = result["threads"]
    line = (
        f"{result['subject']['name']}, {threads} thread{'s' * (threads != 1)}: a token reads "
        f"{found['bytes_per_token'] / 1e6:.1f} MB; memory gives {found['bandwidth']['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"of which {found['share']:.0%} is reached"
    )
    return f"{line} (all of it fits the processor's cache)" if found["in_cache"] else line


COLUMNS = (
    "artifact",
    "threads",
    "load ms",
    "start ms",
    "first token ms",
    "ms/token",
    "p95",
    "ms/sentence",
    "peak MB",
    "file MB",
    "M instr. to load",
    "M/prompt token",
    "M/token",
    "M/sentence",
    "quality",
)


def table(results: list[dict[str, Any]]) -> list[str]:
    """Medians in aligned columns; a column that no result fills is left out."""
    several = len({result["threads"] for result in results}) > 1
    rows = [COLUMNS, *(_row(result, several) for result in results)]
    kept = [at for at in range(len(COLUMNS)) if any(row[at] for row in rows[1:])]
    widths = [max(len(row[at]) for row in rows) for at in kept]
    lines = []
    for row in rows:
        name, *cells = (row[at] for at in kept)
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return lines


def _row(result: dict[str, Any], several: bool) -> tuple[str, ...]:
    return (
        result["subject"]["name"],
        str(result["threads"]) if several else "",
        _scaled(result["load_s"], "median", 1e3, 0),
        _scaled(result.get("start_s"), "median", 1e3, 0),
        _scaled(result["first_token_s"], "median", 1e3, 1),
        _scaled(result["token_s"], "median", 1e3, 2),
        _scaled(result["token_s"], "p95", 1e3, 2),
        _scaled(result["sentence_s"], "median", 1e3, 2),
        _scaled(result["peak_rss_bytes"], "median", 1e-6, 0),
        f"{result['file_bytes'] / 1e6:.1f}",
        *(
            _counted(result, key)
            for key in ("load", "per_prompt_token", "per_generated_token", "per_sentence")
        ),
        _quality(result["quality"]),
    )


def _scaled(spread: dict[str, Any] | None, key: str, factor: float, digits: int) -> str:
    return "" if spread is None else f"{spread[key] * factor:.{digits}f}"


def _counted(result: dict[str, Any], key: str) -> str:
    counted = result.get("instructions") or {}
    return _scaled(counted.get(key), "median", 1e-6, 3)


def _quality(quality: dict[str, Any]) -> str:
    if quality["task"]:
        return f"{quality['task']['metric']} {quality['task']['value']:.3f}"
    if quality["perplexity"]:
        return f"perplexity {figure(quality['perplexity']['value'])}"
    return ""
