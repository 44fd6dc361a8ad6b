"""Speculative decoding: a smaller model proposes tokens, the model checks several of them in one run.

Leviathan, Kalman and Matias 2023, arXiv 2211.17192, in the greedy case: a proposal stands if it is the
model's own likeliest token, so that the text is the model's greedy text whatever the draft says. That holds
for recipes whose logits do not depend on how many tokens go in at once: fp32's do not, but for the last bits
in which attention's kernels for one token and for several differ. Arithmetic in int8 makes more of those bits
(its rounding turns them into a quarter of its own error, and one greedy token in a hundred into another).
Tokens that do not stand are rolled back by resetting a length, since the caches are written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from devices.artifact import GRAPH
from devices.errors import UserError
from devices.generation import Row, Speculation, newest
from devices.sampling import Sampling

if TYPE_CHECKING:
    from devices.runtime import Decoder

STANDS = 0.8  # the share of proposals expected to stand: the demo's 6- and 9-layer cuts had 0.6 to 0.97 one at a time
CHECKED = 0.05  # what one more token to check costs of a run: measured 0.04 to 0.07, 82 M parameters in fp32
LONGEST = 8


def length(cost: float) -> int:
    """How many tokens to propose at a time, where a step of the draft costs `cost` of a run of the model.

    What gains most by theorem 3.8: (1 - a^(n+1)) / ((1 - a) (n c + 1)), a the share that stands and c all
    that a proposal costs. For a draft of half the size that is 2, for one of a tenth 5.
    """
    gains = [(1 - STANDS ** (n + 1)) / (n * (cost + CHECKED) + 1) for n in range(1, LONGEST + 1)]
    return gains.index(max(gains)) + 1


def _cost(decoder: Decoder, draft: Decoder) -> float:
    """A draft's step as a share of the decoder's: a step reads all weights once, and little else counts."""
    small, large = (
        sum(entry["size"] for name, entry in one.artifact.manifest["files"].items() if name.startswith(GRAPH))
        for one in (draft, decoder)
    )
    return small / large


def check(decoder: Decoder, draft: Decoder, tokens: int | None, sampling: Sampling) -> None:
    """UserError unless `draft` can propose for `decoder` and the text is sure to be the decoder's own."""
    name = decoder.artifact.name
    if tokens is not None and tokens < 1:
        raise UserError(f"draft tokens is {tokens}; it must be 1 or more")
    if draft is decoder:
        raise UserError(f"{name} cannot be its own draft; open the draft as a decoder of its own")
    if sampling.temperature != 0:
        raise UserError("a draft is for greedy text; leave out the draft or the temperature")
    recipe = decoder.artifact.manifest["recipe"]
    if not recipe.get("batch_invariant", recipe["name"] == "fp32"):
        raise UserError(
            f"{name}: with recipe {recipe['name']} logits depend on how many tokens go in at once, so a draft "
            "could change the text; leave it out, or take the fp32 artifact"
        )
    if not _same_tokenizer(decoder, draft):
        raise UserError(
            f"{draft.artifact.path}: its tokenizer is not that of {name}; take a draft of the same family"
        )


def _same_tokenizer(decoder: Decoder, draft: Decoder) -> bool:
    """Whether an id means the same to both: the same tokenizer.json, or the same entries in it."""
    if decoder.artifact.model["vocab"] != draft.artifact.model["vocab"]:
        return False
    files = [one.artifact.manifest["files"].get("tokenizer.json") for one in (decoder, draft)]
    if None in files:
        return files[0] is files[1]
    if files[0]["sha256"].lower() == files[1]["sha256"].lower():
        return True
    return decoder.tokenizer.get_vocab() == draft.tokenizer.get_vocab()


def run(decoder: Decoder, draft: Decoder, row: Row, tokens: int | None) -> Speculation:
    """Generate for `row` greedily until it has ended, `draft` proposing `tokens` at a time.

    None: as many as `length` says. Fewer where the row is about to end or a context is full; a draft with a
    shorter context than the decoder's proposes nothing beyond it.
    """
    tokens = tokens or length(_cost(decoder, draft))
    known = list(row.prompt)  # what is in the decoder's cache, and the last token, which is not yet
    draft.rewind(0)
    token = int(decoder.prefill([known])[0].argmax())
    proposed, accepted, runs = 0, 0, 1
    while not row.take(token):
        known.append(token)
        runs += 1
        if decoder.length == decoder.context:
            known = newest(known, decoder.context)
            draft.rewind(0)
            token = int(decoder.prefill([known])[0].argmax())
            continue
        room = min(row.max_new_tokens - len(row.ids), decoder.context - decoder.length) - 1
        guesses = _propose(draft, known, min(tokens, room), row.eos)
        best = decoder.extend([known[-1], *guesses]).argmax(axis=-1).tolist()
        right = next((n for n, guess in enumerate(guesses) if guess != best[n]), len(guesses))
        proposed, accepted = proposed + len(guesses), accepted + right
        if any(row.take(guess) for guess in guesses[:right]):
            break
        for model in (decoder, draft):
            model.rewind(len(known) + right)
        known += guesses[:right]
        token = best[right]
    return Speculation(tokens, proposed, accepted, runs, len(row.ids))


def _propose(draft: Decoder, known: list[int], count: int, eos: Sequence[int]) -> list[int]:
    """At most `count` tokens that the draft thinks likeliest after `known`, none after an end token."""
    count = min(count, draft.context - len(known) + 1)
    if count < 1:
        return []
    unread = known[draft.length :]
    logits = draft.extend(unread, keep=1) if draft.length else draft.prefill([unread])
    guesses = [int(logits[-1].argmax())]
    while len(guesses) < count and guesses[-1] not in eos:
        guesses.append(int(draft.step(guesses[-1:], copy=False)[0].argmax()))
    return guesses
