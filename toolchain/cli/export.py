"""`toolchain export`."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from devices.errors import UserError
from toolchain.cli.options import shipped

PERCENT = click.FloatRange(0, 100)


@click.command()
@click.argument("checkpoint", type=Path, callback=shipped)
@click.option("--out", type=Path, required=True, help="Folder for the artifact.")
@click.option("--int8", is_flag=True, help="8-bit weights: --recipe int8.")
@click.option("--int4", is_flag=True, help="4-bit weights: --recipe int4.")
@click.option(
    "--recipe", metavar="NAME", help="How to quantize: toolchain list recipes, or FILE.toml.  [default: fp32]"
)
@click.option(
    "--calibrate",
    metavar="PATH|stdlib",
    help="Text for recipes that calibrate, none you measure on.  [default: the model's own samples]",
)
@click.option(
    "--device", metavar="NAME", help="Where it will run, by a profile: picks the kernel of that processor."
)
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--no-parity", is_flag=True, help="Do not compare with PyTorch.")
@click.option(
    "--quality-text",
    type=Path,
    help="Text to measure quality on, unseen in training.  [default: stdlib's held-out part]",
)
@click.option(
    "--quality-tokens", type=click.IntRange(min=0), default=4096, show_default=True, help="Of it; 0: none."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Rows together, as in use."
)
@click.option("--task", metavar="NAME", help="Labelled task to hold a classifier to; needs its rows.")
@click.option(
    "--data", type=Path, help="Folder that holds the tasks' folders; the model's own task, if no --task."
)
@click.option(
    "--max-perplexity-rise", type=click.FloatRange(0), metavar="PERCENT", help="[default: int8 0.5, int4 6]"
)
@click.option(
    "--min-agreement", type=PERCENT, metavar="PERCENT", help="Of argmax.  [default: int8 99, int4 93]"
)
@click.option("--max-metric-drop", type=PERCENT, metavar="POINTS", help="Of a labelled task.  [default: 1]")
@click.option("--no-gates", is_flag=True, help="Report quality, whatever it is.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of sentences.")
def command(
    checkpoint: Path,
    out: Path,
    int8: bool,
    int4: bool,
    recipe: str | None,
    calibrate: str | None,
    device: str | None,
    force: bool,
    no_parity: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write a checkpoint's inference graph and all a device needs beside it: the artifact.

    Language models and classifiers of the GPT-2 and Llama families; others are traced by torch.onnx, which is
    slower to make and to run. The graph is compared with PyTorch, and its quality measured on text. One that
    does not compute the same, or costs more quality than the gates allow, is not written, and the exit code
    is 1; which part of the model to keep at higher precision is said.

    \b
    Example:
      toolchain export demo-out/students/distilled --out distilled-int8 --int8 --min-agreement 97
    """
    chosen = [name for name, given in (("int8", int8), ("int4", int4), (recipe, recipe is not None)) if given]
    if len(chosen) > 1:
        raise UserError("--int8, --int4 and --recipe name one recipe each; give one of them")
    if checkpoint.is_file():
        first = "compress it first" if checkpoint.suffix == ".gguf" else "name the checkpoint's folder"
        raise UserError(f"{checkpoint}: is a file, and export takes a checkpoint folder; {first}")
    from devices.profiles import target_isa
    from export.build import export, summary
    from export.recipes import caution, recipe_for
    from toolchain.corpus import calibration_file

    name = (chosen or ["fp32"])[0] or "fp32"
    text = None if calibrate is None else calibration_file(calibrate)
    say = (lambda line: None) if as_json else (lambda line: click.echo(f"{line} ...", err=True))
    isa = None if device is None else target_isa(device)
    gates = _gates(name, **asked)
    checks = {} if no_parity else _checks(checkpoint, **asked)
    manifest = export(
        checkpoint,
        out,
        name,
        isa=isa,
        force=force,
        parity=not no_parity,
        calibration_text=text,
        gates=gates,
        progress=say,
        **checks,
    )
    if as_json:
        click.echo(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for line in summary(manifest, out):
        click.echo(line)
    if (
        isa is not None
        and manifest["kind"] == "decoder"
        and (told := caution(recipe_for(name, "decoder", isa), isa))
    ):
        click.echo(f"{device}: {told}")
    click.echo(f"next: {_next(manifest, out, **asked)}")


def _next(manifest: dict[str, Any], out: Path, task: str | None, data: Path | None, **_: Any) -> str:
    """A command to go on with that works as it is printed; without a tokenizer there are ids alone to measure."""
    if "tokenizer.json" not in manifest["files"]:
        return shlex.join(["toolchain", "bench", str(out), "--out", "results"])
    if manifest["kind"] == "decoder":
        return f'{shlex.join(["toolchain", "generate", str(out)])} "Once upon a time"'
    named = [("--task", task), ("--data", data)]
    options = [str(word) for option, value in named if value is not None for word in (option, value)]
    return shlex.join(["toolchain", "evaluate", str(out), *options])


def _checks(
    checkpoint: Path,
    quality_text: Path | None,
    quality_tokens: int,
    batch: int,
    task: str | None,
    data: Path | None,
    **_: Any,
) -> dict[str, Any]:
    """What `export` measures quality on: a decoder's text, a classifier's labelled rows if they are named."""
    from export.build import kind_of
    from toolchain.corpus import heldout_file
    from toolchain.judge import judge

    kind = kind_of(checkpoint)
    for option, given, wanted in (
        ("--quality-text", quality_text, "decoder"),
        ("--task", task, "classifier"),
        ("--data", data, "classifier"),
    ):
        if given is not None and kind != wanted:
            raise UserError(f"{checkpoint}: is a {kind}, and {option} is for a {wanted}; leave it out")
    if kind == "classifier":
        return {} if task is None and data is None else {"judge": judge(checkpoint, task, data)}
    if not quality_tokens or (quality_text is None and not (checkpoint / "tokenizer.json").is_file()):
        return {}
    text = heldout_file("stdlib" if quality_text is None else str(quality_text))
    return {"quality_text": text, "quality_tokens": quality_tokens, "quality_batch": batch}


def _gates(
    recipe: str,
    no_gates: bool,
    max_perplexity_rise: float | None,
    min_agreement: float | None,
    max_metric_drop: float | None,
    **_: Any,
) -> Any:
    """The recipe's gates with the limits that were named in their place."""
    from dataclasses import replace

    from export.gates import REPORT_ONLY, default_gates
    from export.recipes import find_recipe

    named = {
        "perplexity_rise": max_perplexity_rise,
        "agreement": min_agreement,
        "metric_drop": max_metric_drop,
    }
    given = {gate: limit for gate, limit in named.items() if limit is not None}
    if no_gates and given:
        raise UserError("--no-gates reports only, and a limit was named; give one or the other")
    return REPORT_ONLY if no_gates else replace(default_gates(find_recipe(recipe)), **given)
