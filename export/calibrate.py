"""What goes into each matrix product of a checkpoint, over a text: the statistics that quantization can use.

The text runs through the checkpoint's own float graph one layer at a time, so that besides the text's two
hidden states only one layer's weights and statistics are in memory, whatever the model's depth.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from devices.artifact import Artifact
from devices.files import sha256
from devices.runtime import Decoder
from devices.session import open_session, thread_count
from devices.text import encode_text, load_tokenizer, read_text
from export.architecture import Architecture, describe_model
from export.attention import context
from export.builder import DATA, Builder, typed, value
from export.checkpoint import Checkpoint
from export.graph import enter, layer, own_positions, write_graph
from export.padding import pack
from export.recipes import RECIPES, Recipe, wants_text
from export.weights import Source, gather, table

ROWS, LENGTH = 16, 256  # rows of text, and tokens in each
GREEDY = 3  # first tokens of a sample that are not drawn, so that a row finds a subject
TINY = 1e-12  # mean square of a residual stream that is none
SLOTS = ("qkv", "o", "up", "down", "head")  # products whose inputs are looked at
CHARACTERS = 16  # of text for each token wanted: more than any tokenizer puts into one on average
INT64 = ir.DataType.INT64
Values = list[ir.Value]


@dataclass(frozen=True)
class Inputs:
    """What went into one product: `largest` float32 [in], each channel's largest magnitude; `moment`
    float64 [in, in], the sum of w x x^T over all tokens, weighted by what an error at them does, or None
    where nobody asked for it."""

    largest: np.ndarray
    moment: np.ndarray | None


def calibration_ids(
    checkpoint: Checkpoint,
    arch: Architecture,
    recipe: Recipe,
    text: Path | None,
    progress: Callable[[str], None],
) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Ids to calibrate on, int64 [rows, length] or None, and what the manifest says of them.

    That is `on`: `text` (with its `sha256`) or, where none is given or no tokenizer is there to read it,
    `samples` of the model itself (a decoder's GPTQ) or `nothing`; and `tokens`. None for a recipe that wants
    no calibration. Smoothing alone is not worth the minute that writing samples takes.
    """
    if not wants_text(recipe):
        return None, None
    ids = None if text is None else sample_text(text, checkpoint.path, arch)
    if ids is not None and text is not None:
        return ids, {"on": "text", "sha256": sha256(text), "tokens": ids.size}
    if arch.kind == "classifier" or recipe.method == "rtn":
        return None, {"on": "nothing", "sha256": None, "tokens": 0}
    progress("letting the model write what it is calibrated on")
    ids = sample_model(checkpoint, arch)
    return ids, {"on": "samples", "sha256": None, "tokens": ids.size}


def sample_text(text: Path, folder: Path, arch: Architecture) -> np.ndarray | None:
    """Ids int64 [rows, length] from places spread evenly over the file `text`; None where `folder` has no
    tokenizer.json or the text yields no row."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer, whole = load_tokenizer(folder), read_text(text)
    length = min(LENGTH, arch.positions)
    starts = np.linspace(0, max(0, len(whole) - length * CHARACTERS), ROWS).astype(int)
    pieces = (whole[start : start + length * CHARACTERS] for start in sorted(set(starts.tolist())))
    rows = [encode_text(tokenizer, piece)[:length] for piece in pieces]
    rows = [row for row in rows if len(row) == length and max(row) < arch.vocab]
    return np.array(rows, np.int64) if rows else None


def sample_model(checkpoint: Checkpoint, arch: Architecture) -> np.ndarray:
    """Ids int64 [rows, length] that a decoder writes itself, at temperature 1 from a random first id.

    It has no other text's subject and needs none (Liu et al. 2023, https://arxiv.org/abs/2305.17888).
    """
    length = min(LENGTH, arch.positions)
    ids = np.zeros((ROWS, length), np.int64)
    rng = np.random.default_rng(0)
    ids[:, 0] = rng.integers(arch.vocab, size=ROWS)
    with tempfile.TemporaryDirectory(prefix="toolchain-calibrate-") as scratch:
        write_graph(checkpoint, arch, RECIPES["fp32"], Path(scratch), "toolchain")
        manifest = {"kind": "decoder", "name": "samples", "model": describe_model(arch)}
        decoder = Decoder(Artifact(Path(scratch), manifest, ""), context=length)
        logits = decoder.prefill(ids[:, :1])
        for at in range(1, length):
            # The largest of logits with Gumbel noise is a draw at temperature 1, and takes no sorting.
            noise = rng.gumbel(size=logits.shape) if at > GREEDY else 0
            ids[:, at] = (logits + noise).argmax(-1)
            if at + 1 < length:
                logits = decoder.step(ids[:, at])
    return ids


def layer_inputs(
    checkpoint: Checkpoint, arch: Architecture, ids: np.ndarray, *, moments: Collection[str] = ()
) -> Iterator[dict[str, Inputs]]:
    """The statistics of each layer's products by slot (qkv, o, up, down), in order; last, those of `head`.

    `ids`: int64 [rows, length], run row by row; `moments`: slots whose second moments are wanted.
    """
    mask = np.ones((1, ids.shape[1]), np.int64)
    with _running(checkpoint, arch, _enter) as run:
        states = [run({"input_ids": row[None], "attention_mask": mask}) for row in ids]
    for i in range(arch.layers):
        sums: dict[str, list[Any]] = {}
        with _running(checkpoint, arch, lambda source, i=i: _layer(source, i)) as run:  # type: ignore[misc]
            for row, (h, residual) in enumerate(states):
                *states[row], o, up, down = run({"h": h, "residual": residual, "attention_mask": mask})
                even, added = np.ones(h.shape[1]), _by_size(states[row][1][0])
                for slot, x, weights in (
                    ("qkv", h, _first_heavy(even)),
                    ("o", o, added),
                    ("up", up, even),
                    ("down", down, added),
                ):
                    _add(sums, slot, x[0], weights if slot in moments else None)
        yield {slot: Inputs(*found) for slot, found in sums.items()}
    sums = {}
    for h, _ in states:
        _add(sums, "head", h[0], np.ones(h.shape[1]) if "head" in moments else None)
    yield {slot: Inputs(*found) for slot, found in sums.items()}


def _first_heavy(weights: np.ndarray) -> np.ndarray:
    """Weights [tokens] with the first as heavy as all others.

    All later tokens attend to the first (Xiao et al. 2023, https://arxiv.org/abs/2309.17453), whose input is like
    no other: counted once, GPTQ spoils its key for a little gain in every other.
    """
    return np.concatenate([weights[:1] + weights.sum(), weights[1:]])


def _by_size(residual: np.ndarray) -> np.ndarray:
    """Weights [tokens], mean 1, for what is added to `residual` [tokens, hidden]: an error counts by its share.

    Without them the few tokens whose residual is hundreds of times the others' would decide alone.
    """
    weights = 1 / np.maximum((residual.astype(np.float64) ** 2).mean(-1), TINY)
    return weights / weights.mean()


def _add(sums: dict[str, list[Any]], slot: str, x: np.ndarray, weights: np.ndarray | None) -> None:
    """Take what one row put into a product, [tokens, in], into its sums; the moment where weights are given."""
    largest, moment = np.abs(x).max(0), None
    if weights is not None:
        moment = ((x * weights[:, None].astype(np.float32)).T @ x).astype(np.float64)
    if slot not in sums:
        sums[slot] = [largest, moment]
        return
    np.maximum(sums[slot][0], largest, out=sums[slot][0])
    if moment is not None:
        sums[slot][1] += moment


@contextmanager
def _running(
    checkpoint: Checkpoint, arch: Architecture, build: Callable[[Source], tuple[Values, Values]]
) -> Iterator[Callable[[dict[str, np.ndarray]], list[np.ndarray]]]:
    """A part of the float graph, ready to run: feeds by name in, outputs in order out."""
    with tempfile.TemporaryDirectory(prefix="toolchain-calibrate-") as scratch:
        folder = Path(scratch)
        with (folder / DATA).open("wb") as stream:
            builder = Builder(folder, stream)
            inputs, outputs = build(Source(checkpoint, arch, RECIPES["fp32"], builder))
            builder.save(inputs, outputs, "part", "toolchain")
        session = open_session(Artifact(folder, {}, ""), thread_count(None))
        yield lambda feeds: session.run(None, feeds)


def _enter(source: Source) -> tuple[Values, Values]:
    """input_ids, attention_mask -> the first layer's normed input and the residual stream."""
    ids, mask = (value(name, INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask"))
    x = gather(source, table(source, "embedding", 32), ids, "embedding")
    positions = own_positions(source, pack(source.builder, ids, mask))
    return [ids, mask], _floats(enter(source, x, positions))


def _layer(source: Source, i: int) -> tuple[Values, Values]:
    """h, residual, attention_mask -> the next layer's h and residual, and what its products o, up, down read."""
    shape: list[int | str] = ["batch", "sequence", source.arch.hidden]
    h, residual = (value(name, ir.DataType.FLOAT, shape) for name in ("h", "residual"))
    mask = value("attention_mask", INT64, ["batch", "sequence"])
    positions = own_positions(source, pack(source.builder, mask, mask))
    outputs = layer(source, i, h, residual, context(source, mask, positions, cached=False))
    products = [node for node in source.builder.nodes if node.op_type == "MatMul"]
    reads = {node.name.removesuffix(".product"): node.inputs[0] for node in products}  # type: ignore[union-attr]
    tapped = [reads[f"layers.{i}.{slot}"] for slot in ("o", "up", "down")]
    return [h, residual, mask], _floats((*outputs, *tapped))  # type: ignore[arg-type]


def _floats(outputs: tuple[ir.Value, ...]) -> Values:
    return [typed(output, ["batch", "sequence", "width"]) for output in outputs]
