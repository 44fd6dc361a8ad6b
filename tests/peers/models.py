"""The same weights for all, and what each peer converts them to; made once, kept below the cache folder."""

import hashlib
import json
import math
import shutil
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import python_of
from plan import ADAPTERS, SEED, SHAPES, Model, Variant
from processes import HERE, ROOT, Failed, ask, run

WEIGHTS = (".onnx", ".data", ".bin", ".gguf")  # what counts as a model's file, without its vocabulary
CUTTING = ("optimum_peer", "mobius_peer")  # adapters whose conversion is partly onnx_loop.py's


@dataclass
class Store:
    """Below `folder`: environments, and in models/ what was made.

    `failed` says why a peer is left out, or what could not be made: neither is tried again in this run.
    """

    folder: Path
    shape: str
    gguf: Path | None
    say: Callable[[str], None]
    failed: dict[str, str] = field(default_factory=dict)

    def place(self, model: Model, what: str) -> Path:
        """Where `what` is made of `model`."""
        shape = self.shape if model.layers else "gguf"
        return self.folder / "models" / shape / model.name / what.replace(" ", "-")

    def checkpoint(self, model: Model) -> Path:
        """The HF folder of `model`, made on first use; Failed where its GGUF is missing."""
        out = self.place(model, "checkpoint")
        if model.layers is None:
            if self.gguf is None or not self.gguf.is_file():
                raise Failed(f"{model.name}: no GGUF file was given; see GGUF in the Makefile")
            request: dict[str, Any] = {"action": "gguf", "file": str(self.gguf)}
        else:
            shape = {**SHAPES[self.shape], "n_layer": model.layers, "n_positions": 1024}
            request = {"action": "weights", "shape": shape, "labels": model.labels, "seed": SEED}
        return self._made(out, "reference", sys.executable, request)

    def converted(self, model: Model, variant: Variant) -> Path:
        """What the variant's peer runs: its conversion of the checkpoint, made on first use."""
        out = self.place(model, f"{variant.peer}-{variant.key}")
        source = self.checkpoint(model)
        if variant.peer == "ours":
            return self._ours(out, source, variant.key)
        if variant.peer == "llama.cpp" and model.layers is None and self.gguf is not None:
            source = self.gguf.resolve()
        task = "text-classification" if model.labels else "text-generation-with-past"
        request = {"action": "convert", "checkpoint": str(source), "variant": variant.key, "task": task}
        made = self._made(out, ADAPTERS[variant.peer], python_of(self.folder, variant.peer), request)
        return made / "model.gguf" if variant.peer == "llama.cpp" else made

    def _made(self, out: Path, adapter: str, python: Path | str, request: dict[str, Any]) -> Path:
        """`out`, made by an adapter unless the same adapter made it of the same request before."""
        names = [adapter, "onnx_loop"] if adapter in CUTTING else [adapter]
        code = [HERE / "adapters" / f"{name}.py" for name in names]
        stamp = hashed(code, json.dumps(request))
        if _stands(out, stamp):
            return out
        name = str(out.relative_to(self.folder))
        if name in self.failed:
            raise Failed(self.failed[name])
        self.say(f"making {name}")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            ask(python, adapter, {**request, "out": str(out)})
        except Failed as failure:
            self.failed[name] = str(failure)
            raise
        (out / "made").write_text(stamp)
        return out

    def _ours(self, out: Path, source: Path, recipe: str) -> Path:
        """Our artifact, exported again when the exporter or the runtime changed."""
        stamp_file = out.with_name(f"{out.name}.made")
        stamp = hashed(our_sources(), f"{source} {recipe}")
        if not out.is_dir() or not stamp_file.is_file() or stamp_file.read_text() != stamp:
            self.say(f"making {out.relative_to(self.folder)}")
            shutil.rmtree(out, ignore_errors=True)
            run(export_command(source, out, recipe), env={"PYTHONPATH": str(ROOT)})
            stamp_file.write_text(stamp)
        return out


def export_command(source: Path, out: Path, recipe: str) -> list[str]:
    """Our export as its users call it, without the comparison with PyTorch."""
    command = [sys.executable, "-P", "-m", "toolchain", "export", str(source), "--out", str(out)]
    return [*command, "--recipe", recipe, "--no-parity", "--force"]


def our_sources() -> list[Path]:
    """The code that decides what our artifacts are and how they run."""
    return sorted(file for room in ("devices", "export") for file in (ROOT / room).rglob("*.py"))


def hashed(files: Iterable[Path], text: str = "") -> str:
    """One hash over files' bytes and a text."""
    found = hashlib.sha256(text.encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def parameters(checkpoint: Path) -> int:
    """Values in a checkpoint's one safetensors file, by its header; tied ones are stored once."""
    with (checkpoint / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    return sum(math.prod(entry["shape"]) for entry in header.values())


def _stands(out: Path, stamp: str) -> bool:
    return (out / "made").is_file() and (out / "made").read_text() == stamp


def file_bytes(made: Path, settings: dict[str, Any]) -> int:
    """Bytes of a model's file and of its external data."""
    if made.is_file():
        return made.stat().st_size
    name = settings.get("file")
    if name:
        return sum(one.stat().st_size for one in (made / name, made / f"{name}.data") if one.is_file())
    return sum(one.stat().st_size for one in made.iterdir() if one.suffix in WEIGHTS)
