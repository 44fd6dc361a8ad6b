"""A draft proposes, the model decides: the text is the model's own greedy text, token for token."""

import json
from pathlib import Path

import numpy as np
import pytest

from devices import draft as drafts
from devices.artifact import seal
from devices.errors import UserError
from devices.runtime import Decoder
from devices.sampling import Sampling
from export.build import export
from toolchain.compress.truncate import truncate

TEACHER = Path(__file__).resolve().parents[2] / "toolchain" / "assets" / "teacher"
PROMPTS = ["Return the number of", "class Foo(", "If the argument is not"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The committed teacher as fp32, int8 and int4, and as fp32 the student with every second layer."""
    root = tmp_path_factory.mktemp("draft")
    truncate(TEACHER, [0, 2, 4, 7, 9, 11], root / "student")
    for recipe in ("fp32", "int8", "int4"):
        export(TEACHER, root / recipe, recipe, parity=False)
    export(root / "student", root / "small", "fp32", parity=False)
    return root


@pytest.fixture(scope="module")
def models(folders):
    """The big model and its draft."""
    return Decoder(folders / "fp32", threads=1), Decoder(folders / "small", threads=1)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("length", [1, 2, 4, 7, None])
def test_the_text_is_the_models_own(models, prompt, length):
    """Whatever the draft proposes and however much of it, ids, text and ending are those without it."""
    big, small = models
    plain = big.generate(prompt, 40)
    found = big.generate(prompt, 40, draft=small, draft_tokens=length)
    assert found == plain
    worth = found.speculation
    assert 0 < worth.accepted < worth.proposed
    assert worth.tokens == len(found.ids) == worth.accepted + worth.runs
    assert 1 < worth.tokens_per_run <= worth.at_a_time + 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_it_ends_at_the_length(models, count):
    """No token more than asked."""
    big, small = models
    found = big.generate(PROMPTS[0], count, draft=small, draft_tokens=4)
    assert found == big.generate(PROMPTS[0], count)
    assert (len(found.ids), found.finish_reason) == (count, "length")


@pytest.mark.parametrize("at", [0, 1, 5, 6, 7, 8, 20])
def test_it_ends_at_an_end_token(models, at):
    """An end token, be it proposed or the model's own, ends the text there; nothing after it is taken."""
    big, small = models
    ids = big.generate(PROMPTS[1], 40).ids
    for model in models:
        model.special = {**model.special, "eos": [ids[at]]}
    try:
        found = big.generate(PROMPTS[1], 40, draft=small, draft_tokens=3)
        assert found == big.generate(PROMPTS[1], 40)
        assert found.finish_reason == "eos" and found.ids == ids[: ids.index(ids[at])]
    finally:
        for model in models:
            model.special = {**model.special, "eos": [0]}


@pytest.mark.parametrize("at", [3, 9, 16, 25])
def test_it_ends_at_a_stop_string(models, at):
    """A stop string ends the text where it ends it without a draft, and the pieces are the text."""
    big, small = models
    stop = [big.generate(PROMPTS[0], 40).text[at : at + 4]]
    pieces = []
    found = big.generate(PROMPTS[0], 40, stop=stop, on_text=pieces.append, draft=small, draft_tokens=4)
    assert found == big.generate(PROMPTS[0], 40, stop=stop)
    assert found.finish_reason == "stop" and "".join(pieces) == found.text


@pytest.mark.parametrize(("context", "shorter"), [(24, 24), (24, 14), (33, 400)])
def test_a_full_context_is_the_models_own_too(folders, models, context, shorter):
    """Over restarts, and with a draft whose context is shorter or longer, the text stays the same."""
    big = Decoder(folders / "fp32", threads=1, context=context)
    small = Decoder(folders / "small", threads=1, context=min(shorter, models[1].context))
    found = big.generate(PROMPTS[0], 80, on_overflow="drop-oldest", draft=small, draft_tokens=4)
    assert found == big.generate(PROMPTS[0], 80, on_overflow="drop-oldest")
    assert found.speculation.accepted > 0


@pytest.mark.parametrize(
    ("count", "accepted", "runs"), [(41, 32, 9), (40, 31, 9), (4, 2, 2), (2, 0, 2), (1, 0, 1)]
)
def test_a_draft_that_agrees_is_always_accepted(folders, count, accepted, runs):
    """The model as its own draft: every proposal stands, a run gives four and one more, none is made in vain."""
    big, same = (Decoder(folders / "fp32", threads=1) for _ in range(2))
    worth = big.generate(PROMPTS[0], count, draft=same, draft_tokens=4).speculation
    assert (worth.accepted, worth.proposed, worth.runs) == (accepted, accepted, runs)
    assert worth.acceptance_rate == (1 if accepted else None) and worth.tokens_per_run == count / runs


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_a_quantized_draft_serves_a_model_in_float(folders, models, recipe):
    """The draft may be of any recipe, the model's own too: nearly all it proposes stands."""
    found = models[0].generate(PROMPTS[2], 40, draft=Decoder(folders / recipe, threads=1), draft_tokens=4)
    assert found == models[0].generate(PROMPTS[2], 40)
    assert found.speculation.acceptance_rate > 0.8


def one_by_one(decoder, ids, group):
    """Logits [tokens, vocab] of ids after the first, fed `group` at a time on the past."""
    decoder.prefill([ids[:1]])
    return np.concatenate(
        [decoder.extend(ids[at : at + group]) for at in range(1, len(ids), group)], dtype=np.float32
    )


@pytest.mark.parametrize(("recipe", "close"), [("fp32", 1e-4), ("int8", 0.7), ("int4", 0.7)])
@pytest.mark.parametrize("group", [2, 3, 5])
def test_logits_when_several_tokens_go_in_at_once(folders, recipe, close, group):
    """fp32: what one at a time gives, to 1e-4. Quantized: near it (logits span 20 and more), and the likeliest
    token is another one only where two were nearly as likely; which is why a draft is refused there."""
    decoder = Decoder(folders / recipe, threads=1)
    ids = decoder.generate(PROMPTS[0], 60).ids
    one, many = one_by_one(decoder, ids, 1), one_by_one(decoder, ids, group)
    assert np.abs(one - many).max() < close
    best = np.sort(one, axis=-1)
    changed = one.argmax(axis=-1) != many.argmax(axis=-1)
    assert not changed[best[:, -1] - best[:, -2] > close / 7].any()
    assert recipe != "fp32" or not changed.any()


def test_draft_lengths_follow_the_sizes():
    """The length by theorem 3.8 of arXiv 2211.17192, against the formula evaluated here."""

    def gain(n, cost):
        a = drafts.STANDS
        return sum(a**i for i in range(n + 1)) / (n * (cost + drafts.CHECKED) + 1)

    for cost in (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.64, 1.0):
        best = max(range(1, drafts.LONGEST + 1), key=lambda n: gain(n, cost))
        assert drafts.length(cost) == best
    assert [drafts.length(cost) for cost in (1.0, 0.5, 0.1)] == [1, 2, 5]


def resealed(folder, target, change):
    """A copy of an artifact with its manifest (and tokenizer.json) changed."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name != "manifest.json":
            (target / path.name).hardlink_to(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest, target)
    seal(target, {key: value for key, value in manifest.items() if key not in ("schema", "files")})
    return Decoder(target, threads=1)


def other_words(manifest, folder):
    """Two words change places."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["class"], vocab["def"] = vocab["def"], vocab["class"]
    path.unlink()
    path.write_text(json.dumps(tokenizer))


def other_spacing(manifest, folder):
    """The same tokenizer, written differently."""
    path = folder / "tokenizer.json"
    text = json.dumps(json.loads(path.read_text()))
    path.unlink()
    path.write_text(text)


def test_tokenizers_are_compared_by_their_entries(folders, models, tmp_path):
    """A file that only looks different is the same tokenizer; one with other ids is refused in one line."""
    same = resealed(folders / "small", tmp_path / "same", other_spacing)
    assert models[0].generate("class", 4, draft=same) == models[0].generate("class", 4)
    other = resealed(folders / "small", tmp_path / "other", other_words)
    with pytest.raises(UserError, match=r"other: its tokenizer is not that of fp32") as caught:
        models[0].generate("class", 4, draft=other)
    assert "\n" not in str(caught.value)


def test_recipes_say_whether_a_draft_is_possible(folders, models, tmp_path):
    """A manifest's batch_invariant decides; older ones are judged by name, and then only fp32 is."""
    big, small = models
    never = resealed(
        folders / "fp32", tmp_path / "never", lambda m, _: m["recipe"].update(batch_invariant=False)
    )
    for refused in (never, Decoder(folders / "int8", threads=1), Decoder(folders / "int4", threads=1)):
        with pytest.raises(UserError, match="logits depend on how many tokens go in at once"):
            refused.generate("a", 4, draft=small)
    trusted = resealed(
        folders / "int8", tmp_path / "trusted", lambda m, _: m["recipe"].update(batch_invariant=True)
    )
    assert trusted.generate("a", 4, draft=big).speculation is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampling": Sampling(temperature=1.0)}, "greedy"),
        ({"draft_tokens": 0}, "draft tokens is 0"),
        ({"max_new_tokens": 10**6}, "do not fit"),
    ],
)
def test_what_a_draft_cannot_do_is_one_line(models, settings, words):
    """Drawn text, no tokens at a time, too much to fit: a UserError of one line."""
    with pytest.raises(UserError, match=words) as caught:
        models[0].generate("a", **{"draft": models[1], **settings})
    assert "\n" not in str(caught.value)


def test_a_model_is_not_its_own_draft(models):
    """One decoder has one cache, so it cannot be both."""
    with pytest.raises(UserError, match="cannot be its own draft"):
        models[0].generate("a", 4, draft=models[0])


def test_the_command_tells_what_the_draft_was_worth(folders, cli):
    """The same text as without; rates on stderr, or in the JSON with the speed-up that --compare measured."""
    command = ["generate", folders / "fp32", PROMPTS[0], "--max-new-tokens", 12, "--threads", 1]
    plain = cli(*command)
    drafted = cli(*command, "--draft", folders / "small")
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout
    assert "proposed tokens accepted" in drafted.stderr and "as fast" not in drafted.stderr
    answer = json.loads(cli(*command, "--draft", folders / "small", "--compare", "--json").stdout)
    assert answer["draft"]["speed_up"] > 0 and answer["draft"]["tokens"] == 12
    assert "times as fast as without" in cli(*command, "--draft", folders / "small", "--compare").stderr


@pytest.mark.parametrize("options", [["--compare"], ["--draft-tokens", 2], ["--draft", "nowhere"]])
def test_bad_draft_options_are_one_line(folders, cli, options):
    """Options of a draft without one, and a draft that is not there: exit 2, one line, nothing printed."""
    done = cli("generate", folders / "fp32", "a", "--threads", 1, *options)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
