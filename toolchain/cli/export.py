"""`toolchain export`."""

import json
from pathlib import Path

import click

from devices.errors import UserError


@click.command()
@click.argument("checkpoint", type=Path)
@click.option("--out", type=Path, required=True, help="Folder for the artifact.")
@click.option("--int8", is_flag=True, help="8-bit weights: --recipe int8.")
@click.option("--int4", is_flag=True, help="4-bit weights: --recipe int4.")
@click.option("--recipe", metavar="NAME", help="How to quantize (toolchain list recipes).  [default: fp32]")
@click.option(
    "--calibrate",
    metavar="PATH|stdlib",
    help="Text for recipes that calibrate, none you measure on.  [default: the model's own samples]",
)
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--no-parity", is_flag=True, help="Do not compare with PyTorch.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of sentences.")
def command(
    checkpoint: Path,
    out: Path,
    int8: bool,
    int4: bool,
    recipe: str | None,
    calibrate: str | None,
    force: bool,
    no_parity: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint's inference graph and all a device needs beside it: the artifact.

    Language models and classifiers of the GPT-2 and Llama families; others are traced by torch.onnx, which is
    slower to make and to run. The graph is compared with PyTorch; one
    that does not compute the same is not written, and the exit code is 1.

    \b
    Example:
      toolchain export demo-out/students/distilled --out distilled-int8 --int8
    """
    chosen = [name for name, given in (("int8", int8), ("int4", int4), (recipe, recipe is not None)) if given]
    if len(chosen) > 1:
        raise UserError("--int8, --int4 and --recipe name one recipe each; give one of them")
    from export.build import export, summary
    from toolchain.corpus import calibration_file

    name = (chosen or ["fp32"])[0] or "fp32"
    text = None if calibrate is None else calibration_file(calibrate)
    say = (lambda line: None) if as_json else (lambda line: click.echo(f"{line} ...", err=True))
    manifest = export(
        checkpoint, out, name, force=force, parity=not no_parity, calibration_text=text, progress=say
    )
    if as_json:
        click.echo(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for line in summary(manifest, out):
        click.echo(line)
    following = "toolchain evaluate" if manifest["kind"] == "classifier" else "toolchain generate"
    example = " --task NAME --data DIR" if manifest["kind"] == "classifier" else ' "Once upon a time"'
    click.echo(f"next: {following} {out}{example}")
