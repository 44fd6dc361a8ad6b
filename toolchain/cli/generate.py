"""`toolchain generate`: continue a text with an artifact."""

import json
import time
from pathlib import Path

import click


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("text")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-k",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Draw from the K likeliest tokens; 0: from all.",
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw from the likeliest tokens that hold a share P together.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--stop", multiple=True, metavar="STR", help="End where this text comes; may be given again.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: physical cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, nothing before.")
def command(
    artifact: Path,
    text: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Continue TEXT with ARTIFACT, token by token as they come. Needs only the base install.

    \b
    Example:
      toolchain generate demo-out/artifacts/distilled-int8 "Return the number of" --max-new-tokens 32
    """
    from devices.runtime import Decoder
    from devices.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    decoder = Decoder(artifact, threads)
    unsaid = [text]  # printed with the first piece, so that a refusal prints nothing

    def show(piece: str) -> None:
        click.echo("".join(unsaid) + piece, nl=False)
        unsaid.clear()

    began = time.perf_counter()
    found = decoder.generate(text, max_new_tokens, sampling, stop, None if as_json else show)
    if not as_json:
        click.echo("".join(unsaid))
        return
    answer = {
        "prompt": text,
        "text": found.text,
        "ids": found.ids,
        "finish_reason": found.finish_reason,
        "seconds": time.perf_counter() - began,
        "threads": decoder.threads,
    }
    click.echo(json.dumps(answer, ensure_ascii=False))
