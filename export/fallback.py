"""Architectures whose graph this project does not write itself: traced by torch.onnx in a child process.

Slower to make, slower to run and larger in memory than a graph of ours, and said so. What comes out is an
artifact like any other, but that its cache grows (see devices/cache.py) and that parity vouches for the graph
alone: nothing here knows what the architecture computes.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devices.errors import UserError, install
from devices.files import read_json
from devices.process import run
from export.architecture import is_classifier
from export.checkpoint import Checkpoint
from export.families import FAMILIES
from export.recipes import Recipe, find_recipe

PACKAGES = ("torch", "transformers", "onnxscript")  # whose versions decide what a traced graph looks like


@dataclass(frozen=True)
class Traced:
    """A model that was traced: `model` is what manifests say of it, as of `architecture.describe_model`."""

    kind: str
    model: dict[str, Any]

    @property
    def vocab(self) -> int:
        """How many token ids it knows."""
        return self.model["vocab"]

    @property
    def positions(self) -> int:
        """How many tokens it takes at most."""
        return self.model["positions"]


def is_needed(config: Mapping[str, Any]) -> bool:
    """Whether config.json names an architecture, and not one that export/graph.py writes."""
    return bool(config.get("model_type")) and config["model_type"] not in FAMILIES


def recipe_of(config: Mapping[str, Any], name: str) -> Recipe:
    """The recipe called `name`, if a traced graph can have it: matrices in blocks, all parts alike."""
    chosen = find_recipe(name)
    if chosen.kernel != "blocks" or chosen.parts:
        raise UserError(
            f"{config['model_type']}: recipe {name} is for the families whose graph this project writes itself; "
            "choose int8 or int4"
        )
    return chosen


def trace(
    opened: Checkpoint, recipe: Recipe, folder: Path, producer: str, say: Callable[[str], None]
) -> tuple[Traced, dict[str, int]]:
    """Write model.onnx and model.onnx.data of `opened` into `folder`; the model and stored bytes by precision.

    UserError for what transformers does not know or cannot load, torch.onnx cannot trace, or the recipe
    cannot quantize. See export/tracing.py, which does it.
    """
    say(
        f"{opened.config['model_type']}: not one of the families whose graph this project writes itself; "
        "exported by tracing (torch.onnx), slower and larger"
    )
    if opened.config.get("quantization_config"):
        raise UserError(
            f"{opened.path / 'config.json'}: the weights are quantized already; export the model it was made from"
        )
    kind = "classifier" if is_classifier(opened.config) else "decoder"
    with tempfile.TemporaryDirectory(prefix="toolchain-tracing-") as scratch:
        answer = Path(scratch) / "answer.json"
        _run_child([str(opened.path), str(folder), str(answer), kind, producer, json.dumps(asdict(recipe))])
        found = read_json(answer, "the answer of export.tracing")
    return Traced(kind, found["model"]), found["bytes"]


def _run_child(arguments: list[str]) -> None:
    """Run export/tracing.py on `arguments`, the checkpoint first; UserError where it fails."""
    hint = f"if packages are missing, {install('host')}"
    run("export.tracing", arguments, f"{arguments[0]}: the tracing by torch.onnx", hint)
