"""What a teacher's layers are worth, measured on text: the scores by which select.py's MEASURED choose.

A scorer answers for every run of `drop` neighbours among the layers `kept` how much is lost without it. The
layers run one by one, as the model itself calls them: a layer is skipped by handing its input on.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.progress import Progress
from toolchain.compress.select import choose_measured, refuse_shape
from toolchain.corpus import Corpus, load, sample

if TYPE_CHECKING:
    import numpy as np
    import torch

# Tokens to score on. Block influence and angles take one pass; the loss takes one per layer and round, and
# Shortened LLaMA's 10 samples of 128 tokens are of this size.
TOKENS = {"block-influence": 8192, "angular": 16384, "perplexity": 1024}
WINDOW = 512  # tokens a block; or the model's positions where it has fewer
# A teacher's trunk by model type: its layers and the norm after them.
PARTS = {"gpt2": ("h", "ln_f")}
LLAMA_PARTS = ("layers", "norm")


@dataclass(frozen=True)
class Trunk:
    """A teacher taken apart for blocks of one length: what goes in, its layers in order, and what ends it."""

    blocks: "torch.Tensor"  # token ids int64 [blocks, window]
    inputs: "list[torch.Tensor]"  # each block's hidden state before the first layer, [1, window, hidden]
    layers: "list[Callable[[torch.Tensor], torch.Tensor]]"  # [1, window, hidden] -> the same
    head: "Callable[[torch.Tensor], torch.Tensor]"  # -> logits [1, window, vocab], the final norm included
    done: Callable[[], object]  # told of each block that is through


def influence(trunk: Trunk, kept: list[int], drop: int) -> list[float]:
    """How far a layer turns the hidden state: 1 - E[cos(x_in, x_out)], over all tokens.

    Block influence (BI), ShortGPT (Men et al., arXiv 2403.03853).
    """

    def turned(before: "torch.Tensor", after: "torch.Tensor") -> float:
        return float(1 - _cosine(before, after).mean())

    return _between(trunk, kept, drop, turned)


def angle(trunk: Trunk, kept: list[int], drop: int) -> list[float]:
    """The angle between a run's input and output, arccos(cos(x_in, x_out)) / pi, at each block's last token.

    Angular distance of Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers"
    (arXiv 2403.17887), where it is d(x, x + n). The last token is the only one whose state has seen the whole block.
    """

    def turned(before: "torch.Tensor", after: "torch.Tensor") -> float:
        return math.acos(float(_cosine(before[0, -1], after[0, -1]).clamp(-1, 1))) / math.pi

    return _between(trunk, kept, drop, turned)


def loss(trunk: Trunk, kept: list[int], drop: int) -> list[float]:
    """The loss (mean negative log-likelihood, the log of perplexity) of what is left without the layer.

    Chosen greedily and measured again, it is SLEB's redundancy verification (Song et al., arXiv 2402.09025,
    with its metric 3); measured once, Shortened LLaMA's criterion (Kim et al., arXiv
    2402.02834). The state before a run is computed once for the run and all that follow it.
    """
    totals = [0.0] * (len(kept) - drop + 1)
    for ids, start in zip(trunk.blocks, trunk.inputs, strict=True):
        state = start
        for first in range(len(totals)):
            rest = state
            for layer in kept[first + drop :]:
                rest = trunk.layers[layer](rest)
            totals[first] += _nll(trunk.head(rest)[0], ids)
            if first + 1 < len(totals):
                state = trunk.layers[kept[first]](state)
        trunk.done()
    return [total / (len(trunk.blocks) * (trunk.blocks.shape[1] - 1)) for total in totals]


SCORERS: dict[str, Callable[[Trunk, list[int], int], list[float]]] = {
    "block-influence": influence,
    "angular": angle,
    "perplexity": loss,
}


def measure(
    teacher: Path,
    name: str,
    layers: int,
    k: int,
    *,
    corpus: Corpus | str = "stdlib",
    tokens: int | None = None,
    seed: int = 0,
) -> tuple[list[int], dict[str, Any]]:
    """The `k` of `layers` layers that `name` keeps of the checkpoint `teacher`, and what they were chosen by.

    Scored on about `tokens` tokens (default TOKENS; whole blocks of 512 or the model's positions) of
    documents drawn with `seed` from the corpus's train part; its held-out part is never looked at. The record
    (compression.json's `selection`) holds method, corpus, tokens, window, seed and `rounds`: for every scoring
    the layers that were left, how many neighbours were to go, and the scores, by the run's first layer.

    UserError for an unknown name, a `k` outside 1..layers, a corpus that cannot be used or fills no block.
    """
    refuse_shape(name, layers, k)
    text = load(corpus) if isinstance(corpus, str) else corpus
    blocks = _blocks(teacher, text, tokens or TOKENS[name], seed)
    rounds: list[dict[str, Any]] = []
    scorings = 0 if k == layers else layers - k if name == "perplexity" else 1
    with Progress(max(1, scorings) * len(blocks), f"{name} of {layers} layers", "block") as bar:
        trunk = open_trunk(teacher, blocks, bar.update) if scorings else None

        def score(kept: list[int], drop: int) -> list[float]:
            assert trunk is not None
            found = SCORERS[name](trunk, kept, drop)
            if not all(map(math.isfinite, found)):
                raise UserError(
                    f"--select {name}: layers score no number on '{text.name}'; the weights are damaged"
                )
            rounds.append({"layers": kept, "drop": drop, "scores": found})
            return found

        chosen = choose_measured(name, layers, k, score)
    return chosen, {
        "method": name,
        "corpus": {"name": text.name, "sha256": text.sha256},
        "tokens": int(blocks.size),
        "window": int(blocks.shape[1]),
        "seed": seed,
        "rounds": rounds,
    }


def _blocks(teacher: Path, corpus: Corpus, tokens: int, seed: int) -> "np.ndarray":
    """Token ids int64 [blocks, window] of the corpus's train part."""
    from devices.files import read_json
    from export.architecture import describe

    config = read_json(teacher / "config.json", "the teacher's configuration")
    window = min(WINDOW, describe(config).positions)
    eos = config.get("eos_token_id")
    return sample(corpus.train, teacher, eos if isinstance(eos, int) else None, window, tokens, seed)


def open_trunk(teacher: Path, blocks: "np.ndarray", done: Callable[[], object] = lambda: None) -> Trunk:
    """The checkpoint `teacher` in float32, taken apart for `blocks` int64 [blocks, window]."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolchain.quiet import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    names = PARTS.get(model.config.model_type, LLAMA_PARTS)
    modules, norm = (getattr(model.base_model, name) for name in names)
    ids = torch.from_numpy(blocks).to(model.device)
    inputs, calls = _calls(model.base_model, modules, ids)

    @torch.inference_mode()
    def run(i: int, state: torch.Tensor) -> torch.Tensor:
        args, kwargs = calls[i]
        out = modules[i](state, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def head(state: torch.Tensor) -> torch.Tensor:
        return model.lm_head(norm(state))

    return Trunk(ids, inputs, [partial(run, i) for i in range(len(modules))], head, done)


def _calls(
    base: "torch.nn.Module", modules: "torch.nn.ModuleList", ids: "torch.Tensor"
) -> "tuple[list[torch.Tensor], dict[int, tuple[tuple, dict[str, Any]]]]":
    """What the first of `modules` is given for each block of `ids`, and with what else each one is called.

    That (mask, positions) depends on a block's length and on the layer's number, not on the text: the first
    block goes through the whole model, the others no further than the first layer.
    """
    import torch

    class Enough(Exception):  # noqa: N818 - no error: how a forward pass is left
        pass

    inputs: list[torch.Tensor] = []
    calls: dict[int, tuple[tuple, dict[str, Any]]] = {}

    def note(i: int, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls[i] = args[1:], kwargs
        if i == 0:
            inputs.append(args[0])
            if len(inputs) > 1:
                raise Enough

    hooks = [
        module.register_forward_pre_hook(partial(note, i), with_kwargs=True)
        for i, module in enumerate(modules)
    ]
    with torch.inference_mode():
        for block in ids:
            with suppress(Enough):
                base(block[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return inputs, calls


def _between(
    trunk: Trunk, kept: list[int], drop: int, turned: "Callable[[torch.Tensor, torch.Tensor], float]"
) -> list[float]:
    """The mean over blocks of `turned(state before the run, state after it)`, for every run of `drop`."""
    totals = [0.0] * (len(kept) - drop + 1)
    for start in trunk.inputs:
        states = list(_states(trunk, kept, start))
        for first in range(len(totals)):
            totals[first] += turned(states[first], states[first + drop])
        trunk.done()
    return [total / len(trunk.inputs) for total in totals]


def _states(trunk: Trunk, kept: list[int], state: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """The hidden state before each layer of `kept`, and the one after the last."""
    yield state
    for layer in kept:
        state = trunk.layers[layer](state)
        yield state


def _cosine(one: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
    """Cosines over the last dimension, in float64: near 1 float32 has too few digits to tell layers apart."""
    import torch

    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1)


def _nll(logits: "torch.Tensor", ids: "torch.Tensor") -> float:
    """Summed negative log-likelihood of ids [window] at positions 1.. given logits [window, vocab]."""
    import torch

    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))
