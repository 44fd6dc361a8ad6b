"""`toolchain generate`: continue a text with an artifact."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from devices.generation import Generation
    from devices.runtime import Decoder


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
@click.option(
    "--overflow",
    default="error",
    show_default=True,
    metavar="error|drop-oldest",
    help="When the model's positions are full: refuse, or drop the oldest half and read the rest anew.",
)
@click.option(
    "--draft",
    metavar="ARTIFACT",
    type=click.Path(path_type=Path),
    help="A smaller model with the same tokenizer that proposes tokens; the text stays the same.",
)
@click.option(
    "--draft-tokens",
    type=click.IntRange(min=1),
    help="How many it proposes at a time.  [default: by the sizes of both]",
)
@click.option("--compare", is_flag=True, help="Generate without the draft too and say which is faster.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="[default: the fastest, tried out when an artifact is first opened here, then remembered]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, nothing before.")
def command(
    artifact: Path,
    text: str,
    draft: Path | None,
    draft_tokens: int | None,
    compare: bool,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue TEXT with ARTIFACT, token by token as they come. Needs only the base install.

    \b
    Example:
      toolchain generate demo-out/artifacts/distilled-int8 "Return the number of" --max-new-tokens 32
    """
    from devices.errors import UserError
    from devices.runtime import Decoder
    from devices.text import refuse_broken

    for what, given in (("the prompt", text), *(("--stop", word) for word in options["stop"])):
        refuse_broken(given, what)
    if draft is None and (draft_tokens is not None or compare):
        raise UserError("--draft-tokens and --compare are about a draft; name one with --draft")
    asked = _asked(**options)
    decoder = Decoder(artifact, threads)
    drafted: dict[str, Any] = {} if draft is None else {"draft": Decoder(draft, decoder.threads)}
    if draft_tokens is not None:
        drafted["draft_tokens"] = draft_tokens
    unsaid = [text]  # printed with the first piece, so that a refusal prints nothing

    def show(piece: str) -> None:
        click.echo("".join(unsaid) + piece, nl=False)
        unsaid.clear()

    began = time.perf_counter()
    found = decoder.generate(text, **asked, **drafted, on_text=None if as_json else show)
    answer = _answer(decoder, text, found, time.perf_counter() - began)
    if not as_json:
        click.echo("".join(unsaid))
    if compare:
        answer["draft"]["speed_up"] = _speed_up(decoder, text, asked, drafted, found)
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif found.speculation is not None:
        click.echo(_worth(answer["draft"]), err=True)


def _asked(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    overflow: str,
) -> dict[str, Any]:
    """The options as `Decoder.generate` takes them."""
    from devices.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    return {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop, "on_overflow": overflow}


def _answer(decoder: Decoder, text: str, found: Generation, seconds: float) -> dict[str, Any]:
    """What --json prints."""
    return {
        "prompt": text,
        "text": found.text,
        "ids": found.ids,
        "finish_reason": found.finish_reason,
        "seconds": seconds,
        "threads": decoder.threads,
        "threads_from": decoder.threads_from,
        "draft": found.speculation and {**found.speculation.as_dict(), "speed_up": None},
    }


def _speed_up(
    decoder: Decoder, text: str, asked: dict[str, Any], drafted: dict[str, Any], found: Generation
) -> float:
    """How many times as fast the draft makes it: both ways once more, when all is warm.

    CheckFailed where the text without the draft is another one.
    """
    from devices.errors import CheckFailed

    seconds = []
    for settings in ({}, drafted):
        began = time.perf_counter()
        again = decoder.generate(text, **asked, **settings)
        seconds.append(time.perf_counter() - began)
        if again != found:
            raise CheckFailed("the draft changed the text, which it never should; report this")
    return seconds[0] / seconds[1]


def _worth(draft: dict[str, Any]) -> str:
    """What the draft was worth, in a line."""
    line = f"draft: {draft['accepted']} of {draft['proposed']} proposed tokens accepted"
    if draft["acceptance_rate"] is not None:
        line += f" ({draft['acceptance_rate']:.0%})"
    line += f", {draft['tokens_per_run']:.2f} tokens a run of the model"
    if draft["speed_up"] is not None:
        line += f", {draft['speed_up']:.2f} times as fast as without"
    return line
