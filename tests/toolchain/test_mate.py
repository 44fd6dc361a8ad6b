"""MATE's generator: what it hides, what it proposes, and that it pulls against the student."""

import pytest
import torch

from toolchain.glue.classifier import pad
from toolchain.glue.methods.generator import Generator, choose, embed
from toolchain.glue.methods.losses import soft
from toolchain.glue.methods.reading import answer, answer_embedded

END, VOCABULARY = 0, 400
ROWS = [[5, 6, 7, END, 9, 10, 11, 12, 13], [20, 21, 22, 23], [30, 31], [40]]


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The paper's: KL to the teacher."""
    return soft(student, teacher, 2.0)


@pytest.fixture(scope="module")
def base(make_checkpoint):
    """A language model of two layers."""
    return make_checkpoint("gpt2", n_layer=2)


@pytest.fixture(params=["gpt2", "llama"])
def models(request):
    """A student and a teacher of another width, both classifiers of three labels, and the batch."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    shapes = {
        "gpt2": [{"n_layer": 2, "n_embd": 32, "n_head": 2}, {"n_layer": 3, "n_embd": 48, "n_head": 2}],
        "llama": [
            {"num_hidden_layers": n, "hidden_size": w, "intermediate_size": 64, "num_attention_heads": 4}
            for n, w in ((2, 32), (3, 48))
        ],
    }[request.param]
    made = []
    for shape in shapes:
        config = AutoConfig.for_model(
            request.param, vocab_size=VOCABULARY, pad_token_id=END, num_labels=3, **shape
        )
        model = AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4.0 if weight.dim() == 2 else 1.0)
        made.append(model)
    return (*made, pad(ROWS, END))


def new_generator(base, lr=1e-3, share=0.5):
    """A generator over the test's vocabulary."""
    return Generator(base, END, VOCABULARY, share, lr)


def test_what_may_be_hidden():
    """All but padding, the first token, the last real one and separators; short rows have nothing to hide."""
    batch = pad(ROWS, END)
    hidden = choose(batch["input_ids"], batch["attention_mask"], 1.0, END)
    assert [row.nonzero().flatten().tolist() for row in hidden] == [[1, 2, 4, 5, 6, 7], [1, 2], [], []]
    assert not choose(batch["input_ids"], batch["attention_mask"], 0.0, END).any()


def test_the_share_is_kept():
    """Of many tokens about 30 % are hidden."""
    ids, mask = torch.full((200, 102), 7), torch.ones(200, 102, dtype=torch.int64)
    assert choose(ids, mask, 0.3, END).sum().item() / 20_000 == pytest.approx(0.3, abs=0.02)


def test_the_perturbed_text_differs_at_hidden_places_only(base):
    """Whatever is drawn: padding, first, last, separators stay, no separator is proposed, nothing else changes."""
    generator, batch = new_generator(base, share=1.0), {**pad(ROWS, END), "labels": torch.arange(4)}
    allowed = choose(batch["input_ids"], batch["attention_mask"], 1.0, END)
    before, changed = batch["input_ids"].clone(), torch.zeros_like(allowed)
    for seed in range(30):
        torch.manual_seed(seed)
        twin = generator.perturbed(batch)
        moved = twin["input_ids"] != batch["input_ids"]
        assert not (moved & ~allowed).any()
        assert not (twin["input_ids"][allowed] == END).any()
        assert twin["attention_mask"] is batch["attention_mask"] and twin["labels"] is batch["labels"]
        changed |= moved
    assert torch.equal(batch["input_ids"], before)
    assert torch.equal(changed, allowed)


def test_proposals_are_one_hot_and_have_a_gradient(base):
    """Straight through: exactly one word forwards, a gradient in the generator and its mask embedding backwards."""
    generator, batch = new_generator(base), pad(ROWS, END)
    hidden = choose(batch["input_ids"], batch["attention_mask"], 1.0, END)
    words = generator.propose(batch, hidden)
    assert words.shape == (8, VOCABULARY)
    assert torch.equal(words.detach().round(decimals=5).sum(-1), torch.ones(8))
    assert words.max(-1).values.detach().round(decimals=5).eq(1).all()
    (words * torch.randn(8, VOCABULARY)).sum().backward()
    assert generator.nothing.grad.abs().sum() > 0
    assert generator.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_proposal_depends_on_what_stands_left_of_it_and_not_on_what_is_hidden(base):
    """The hidden word itself and what follows cannot be seen; the word before can."""
    generator = new_generator(base)

    def proposed(row):
        batch = pad([row], END)
        hidden = torch.tensor([[False, False, True, False, False]])
        torch.manual_seed(0)
        return generator.propose(batch, hidden)

    torch.testing.assert_close(proposed([5, 6, 7, 8, 9]), proposed([5, 6, 99, 88, 77]))
    seen = [proposed([5, left, 7, 8, 9]).argmax().item() for left in range(6, 40)]
    assert len(set(seen)) > 1


def test_one_hots_are_the_words(models):
    """Embeddings of one-hot proposals give the logits of the perturbed ids, in both models."""
    *both, batch = models
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = choose(ids, mask, 1.0, END)
    words = torch.randint(1, VOCABULARY, (int(hidden.sum()),))
    twin = ids.clone()
    twin[hidden] = words
    one_hot = torch.nn.functional.one_hot(words, VOCABULARY).float()
    for model in both:
        with torch.no_grad():
            found = answer_embedded(model, embed(model, ids, hidden, one_hot), mask)
            torch.testing.assert_close(found, answer(model, {**batch, "input_ids": twin}))


def test_the_generator_raises_what_the_student_lowers(base, models):
    """On fresh draws, the divergence rises with the generator's steps and falls with the student's."""
    student, teacher, _ = models
    teacher.requires_grad_(False)
    torch.manual_seed(1)
    batch = pad(torch.randint(1, VOCABULARY, (16, 10)).tolist(), END)
    generator = new_generator(base, lr=5e-3)

    def apart():
        torch.manual_seed(2)
        with torch.no_grad():
            twins = [generator.perturbed(batch) for _ in range(20)]
            return sum(divergence(answer(student, t), answer(teacher, t)).item() for t in twins) / 20

    start = apart()
    for _ in range(40):
        generator.step(batch, student, teacher, divergence)
    raised = apart()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for _ in range(40):
        twin = generator.perturbed(batch)
        optimizer.zero_grad()
        divergence(answer(student, twin), answer(teacher, twin)).backward()
        optimizer.step()
    lowered = apart()
    assert raised > 1.1 * start
    assert lowered < 0.8 * raised


def test_a_step_moves_the_generator_alone(base, models):
    """Student and teacher keep weights, gradients and mode; the generator's weights change."""
    student, teacher, batch = models
    student.train()
    student.score.weight.grad = torch.ones_like(student.score.weight)
    generator = new_generator(base, share=1.0)
    held = [p.clone() for model in (student, teacher) for p in model.parameters()]
    own = [p.detach().clone() for p in generator.parameters]
    assert generator.step(batch, student, teacher, divergence) > 0
    now = [p for model in (student, teacher) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
    assert student.training and torch.equal(student.score.weight.grad, torch.ones_like(student.score.weight))
    assert all(p.grad is None for p in teacher.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(own, generator.parameters, strict=True))


def test_rows_too_short_to_hide_anything(base, models):
    """Rows of one token: no step, and the text as it is."""
    student, teacher, _ = models
    generator, batch = new_generator(base, share=1.0), pad([[5], [6]], END)
    before = [p.detach().clone() for p in generator.parameters]
    assert generator.step(batch, student, teacher, divergence) == 0
    assert torch.equal(generator.perturbed(batch)["input_ids"], batch["input_ids"])
    assert all(torch.equal(a, b) for a, b in zip(before, generator.parameters, strict=True))


def test_ids_that_a_smaller_embedding_has_not_are_never_proposed(base):
    """A teacher whose matrix is shorter (padded vocabularies) sees ids of its own only."""
    generator, batch = Generator(base, END, 50, 1.0, 1e-3), pad(ROWS, END)
    allowed = choose(batch["input_ids"], batch["attention_mask"], 1.0, END)
    for _ in range(20):
        assert generator.perturbed(batch)["input_ids"][allowed].max() < 50
