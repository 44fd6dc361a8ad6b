"""Is the artifact the model? Its logits, from the runtime that ships, against PyTorch's.

A small sample, looked at closely; how good the artifact is on text is export/quality.py's. Float recipes
must come as close to a float64 reference as PyTorch's own float32 does, within a factor of two, and greedy
generation must give the same tokens. Quantized ones cannot; what they cost is reported, and only what is
broken beyond doubt fails. Both are looked at twice: all positions at once, and as in use, a prompt followed
by cached steps.
"""

from pathlib import Path
from typing import Any

import numpy as np

from devices.artifact import Artifact
from devices.errors import CheckFailed
from devices.runtime import Classifier, Decoder
from devices.text import encode_text, load_tokenizer
from export.answers import Arrays
from export.architecture import Model
from export.quality import scores
from export.recipes import Recipe

LENGTH = 64  # ids in a row, or the model's positions where they are fewer
PROMPT, NEW = 24, 16
FACTOR, FLOOR = 2.0, 1e-4  # a float graph may be so many times further off than PyTorch, or this far
# Where no gate looks at text (export/gates.py): a graph that doubles perplexity is wired wrongly.
BROKEN = 2.0
TEXT = (
    "The lighthouse keeper wrote down the weather every morning before breakfast. On most days there was "
    "little to tell: wind from the west, some rain, two ships far out. He wrote it all the same, because "
    "the one who had kept the light before him had done so, and because a list with gaps is no list. In the "
    "spring a letter came from the harbour office. It asked how many hours of fog there had been in the last "
    "ten years, and for the first time somebody wanted to read what he had written. He counted for a week. "
    "Then he answered in one line, and went up the stairs to clean the lamp."
)


def sample_ids(folder: Path, arch: Model) -> np.ndarray:
    """Ids int64 [rows, length] to compare on: English through the folder's tokenizer, and seeded noise.

    A decoder gets two rows of text and one of noise, a classifier rows of several lengths, padded with -1.
    """
    length = min(LENGTH, arch.positions)
    noise = np.random.default_rng(0).integers(0, arch.vocab, (4, length))
    text = np.empty(0, np.int64)
    if (folder / "tokenizer.json").is_file():
        text = np.array(encode_text(load_tokenizer(folder), TEXT), np.int64)
    rows = (
        np.stack([*np.resize(text, (2, length)), *noise[2:]])
        if text.size > 0 and text.max() < arch.vocab
        else noise
    )
    if arch.kind == "decoder":
        return rows[:3]
    for row, keep in zip(rows, (length, length // 2 + 1, 3, 1), strict=True):
        row[keep:] = -1
    return rows


def question(ids: np.ndarray) -> dict[str, np.ndarray]:
    """What export/reference.py is asked for the check."""
    prompt, new = lengths(ids)
    return {"ids": ids, "prompt": np.array(prompt), "new": np.array(new)}


def lengths(ids: np.ndarray) -> tuple[int, int]:
    """How long a prompt and how many new tokens greedy generation is compared on, within a row's length."""
    prompt = min(PROMPT, max(1, ids.shape[1] // 2))
    return prompt, min(NEW, ids.shape[1] - prompt)


def compare(
    artifact: Artifact, arch: Model, recipe: Recipe, ids: np.ndarray, wanted: Arrays, gated: bool
) -> dict[str, Any]:
    """Parity figures for the manifest; CheckFailed, with the figure and its limit, if they do not hold.

    With `gated`, a quantized graph's perplexity is left to the gates, which measure more of it.
    """
    figures: dict[str, Any] = {
        "tokens": int((ids >= 0).sum()),
        "pytorch_float32_error": float(wanted["error"]),
    }
    if arch.kind == "classifier":
        figures |= _classifier(artifact, ids, wanted)
    else:
        figures |= _decoder(artifact, ids, wanted)
    figures["versions"] = dict(zip(("torch", "transformers"), map(str, wanted["versions"]), strict=True))
    if not np.isfinite(figures["max_error"]):
        raise CheckFailed(
            f"parity: the {recipe.name} graph gives logits that are no numbers; report this model"
        )
    if recipe.bits == 32:
        _hold_float(figures)
    elif not gated and figures.get("perplexity_ratio", 1.0) > BROKEN:
        raise CheckFailed(
            f"parity: {recipe.name} multiplies perplexity by {figures['perplexity_ratio']:.2f} "
            f"(at most {BROKEN}); choose a recipe with more bits"
        )
    return figures


def noise(error: float) -> float:
    """Logits that differ by no more are equal, where float32 in PyTorch is `error` off float64."""
    return max(FACTOR * error, FLOOR)


def _hold_float(figures: dict[str, Any]) -> None:
    limit = noise(figures["pytorch_float32_error"])
    figures["limit"] = limit
    for what in ("max_error", "cached_max_error"):
        if figures.get(what, 0.0) > limit:
            raise CheckFailed(
                f"parity: {what} is {figures[what]:.3g} from PyTorch in float64, the limit is {limit:.3g}; "
                "the graph does not compute this model"
            )
    if not figures.get("greedy_equal", True):
        raise CheckFailed(
            f"parity: greedy tokens differ from PyTorch's after {figures['greedy_tokens']}; "
            "the graph does not compute this model"
        )


def _classifier(artifact: Artifact, ids: np.ndarray, wanted: Arrays) -> dict[str, Any]:
    rows = [row[row >= 0] for row in ids]
    logits = Classifier(artifact).logits([row.tolist() for row in rows])
    return {
        "max_error": _distance(logits, wanted["logits"]),
        "argmax_agreement": _agreement(logits, wanted["logits"]),
    }


def _decoder(artifact: Artifact, ids: np.ndarray, wanted: Arrays) -> dict[str, Any]:
    prompt, new = lengths(ids)
    decoder, reference_logits = Decoder(artifact, context=ids.shape[1]), wanted["logits"]
    whole, cached = decoder.logits(ids), _cached(decoder, ids, prompt)
    expected = reference_logits[:, prompt - 1 :]
    greedy, texts = _greedy(decoder, ids[0, :prompt], new), slice(0, 2)
    same = int(np.argmin([*(greedy == wanted["greedy"]), False]))
    # A difference where PyTorch's own best two lie closer than the error allowed is no difference in kind.
    tie = same < new and wanted["margins"][same] <= noise(float(wanted["error"]))
    perplexity = _perplexity(reference_logits[texts], ids[texts])
    return {
        "max_error": _distance(whole, reference_logits),
        "cached_max_error": _distance(cached, expected),
        # Over the text alone: on noise a model has no favourite, and any rounding picks another.
        "argmax_agreement": _agreement(whole[texts], reference_logits[texts]),
        "cached_argmax_agreement": _agreement(cached[texts], expected[texts]),
        "cached_from_whole": _distance(cached, whole[:, prompt - 1 :]),
        "perplexity": {"pytorch": perplexity, "artifact": _perplexity(whole[texts], ids[texts])},
        "perplexity_ratio": _perplexity(whole[texts], ids[texts]) / perplexity,
        "greedy_tokens": same,
        "greedy_equal": bool(same == new or tie),
    }


def _cached(decoder: Decoder, ids: np.ndarray, prompt: int) -> np.ndarray:
    """Logits [rows, length - prompt + 1, vocab] of the prompt's last token and, by steps, each later one."""
    found = [decoder.prefill(ids[:, :prompt])]
    found += [decoder.step(column) for column in ids[:, prompt:].T]
    return np.stack(found, 1)


def _greedy(decoder: Decoder, prompt: np.ndarray, new: int) -> np.ndarray:
    tokens = [decoder.prefill(prompt[None])[0].argmax()]
    while len(tokens) < new:
        tokens.append(decoder.step(np.array(tokens[-1:]))[0].argmax())
    return np.array(tokens)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max())


def _agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found.argmax(-1) == wanted.argmax(-1)).mean())


def _perplexity(logits: np.ndarray, ids: np.ndarray) -> float:
    """exp of the mean negative log likelihood of each row's ids after its first."""
    return float(np.exp(scores(logits[:, :-1], ids[:, 1:])["nll"].mean(dtype=np.float64)))
