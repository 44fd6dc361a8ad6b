"""Training a checkpoint further on a corpus: plain language modelling, or distillation from a teacher.

On transformers' Trainer (docs/adr/0003-trainer.md). Everything is budgeted in tokens, and one step sees
`batch` blocks of `window` tokens whatever the number of processes.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from devices.errors import UserError
from devices.files import sha256, write_json
from devices.text import encode_text, load_tokenizer
from export.architecture import describe
from export.checkpoint import identity
from toolchain.compress.cached import CachedTeacher, cached_teacher, describe_cache
from toolchain.compress.cost import flops_per_token, peak_flops
from toolchain.compress.objectives import OBJECTIVES
from toolchain.compress.trainer import (
    Training,
    first_process,
    fuse_gelu,
    make_trainer,
    newest_snapshot,
    processes,
    refuse,
    resolved,
)
from toolchain.corpus import Corpus, load, pack
from toolchain.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, TrainerState


def train(
    model_dir: Path,
    staging: Path,
    training: Training,
    teacher_dir: Path | None = None,
    corpus: Corpus | None = None,
) -> dict[str, Any]:
    """Train the checkpoint in `model_dir` in place (float32 weights) and return the training record.

    Snapshots live in `staging/snapshots`; a run that was killed goes on from the newest whole one when
    called with the same arguments. `corpus` is what `training` names, where the caller has it loaded.
    Perplexity is on held-out text, before and after.

    Raises:
        UserError: an unknown objective, a window longer than the model's positions, a corpus that cannot
            be used or fills no step, vocabularies that differ, a loss that is not a number.
    """
    from toolchain.compress.progress import Bar, Clock, Meter

    training = resolved(training)
    if training.objective != "lm" and teacher_dir is None:
        raise UserError(f"objective '{training.objective}': needs a teacher to distil from; name one")
    config = json.loads((model_dir / "config.json").read_text())
    refuse(training, describe(config).positions)
    model = _student(model_dir, training)
    if teacher_dir:
        _refuse_unfit(teacher_dir, model_dir, model, training)
    _freeze(model, training)
    corpus = corpus or load(training.corpus, training.heldout)
    window = training.window or min(512, model.config.max_position_embeddings)
    packed = _share(pack(corpus.train, model_dir, model.config.eos_token_id, window), training)
    blocks = _whole_steps(packed, training.batch)
    heldout = _heldout_blocks(corpus.heldout, model_dir, window)
    training = _budget(training, window, blocks.size)
    teacher = _teacher(teacher_dir, model_dir, packed, corpus, training) if teacher_dir else None

    scored = heldout[: training.heldout_blocks]
    bar, clock, meter = (
        Bar(window * training.batch),
        Clock(staging / "seconds.json"),
        Meter(staging / "joules.json"),
    )
    trainer = make_trainer(
        model, teacher, blocks, heldout, training, staging / "snapshots", [bar, clock, meter]
    )
    before = perplexity(model, scored, staging / "before.json")
    _say(f"held-out perplexity before training: {before:.1f}")
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=newest_snapshot(staging / "snapshots", _say))
    finally:
        bar.close()
    seconds, joules = clock.seconds(), meter.joules()
    _set_dropout(model, 0.0)
    after = perplexity(model, scored)
    _say(f"held-out perplexity after training: {after:.2f}")
    if first_process():
        _save(model, model_dir, config)
    scores = {"before": before, "after": after, "tokens": scored[:, 1:].size, "window": window}
    asking = {"cache_hours": round(teacher.seconds / 3600, 4)} if isinstance(teacher, CachedTeacher) else {}
    along = teacher_dir if teacher_dir and training.cache_teacher is None else None
    record = _record(training, corpus, blocks.size, trainer.state, seconds) | asking | {"perplexity": scores}
    return record | _cost(record, config, along, joules)


def _student(folder: Path, training: Training) -> "PreTrainedModel":
    """The student in float32, with the dropout asked for; every random number after this is the seed's."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(training.seed)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _set_dropout(model, training.dropout)
    fuse_gelu(model)
    return model


def _budget(training: Training, window: int, size: int) -> Training:
    """`training` with its window, and its steps and tokens in whole steps, on a corpus of `size` tokens."""
    step = window * training.batch
    steps = training.steps or math.ceil((training.tokens or (training.epochs or 1) * size) / step)
    if training.tokens is not None and training.tokens < step:
        _say(f"--tokens {training.tokens}: rounded up to one step, {step:,} tokens (--batch times --window)")
    return replace(training, window=window, steps=steps, tokens=steps * step)


def _record(
    training: Training, corpus: Corpus, size: int, state: "TrainerState", seconds: float
) -> dict[str, Any]:
    """What was asked for and what happened, on a corpus of so many tokens."""
    assert training.window is not None
    seen = state.global_step * training.window * training.batch
    logged = state.log_history
    return {
        **asdict(training),
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "tokens": size},
        "tokens": seen,
        "steps": state.global_step,
        "epochs": round(seen / size, 3),
        "hours": round(seconds / 3600, 4),
        "tokens_per_second": round(seen / seconds, 1),
        "losses": [[e["step"], round(e["loss"], 5)] for e in logged if "loss" in e],
        "heldout_losses": [[e["step"], round(e["eval_loss"], 5)] for e in logged if "eval_loss" in e],
    }


def _cost(
    record: dict[str, Any], config: dict[str, Any], teacher: Path | None, joules: float | None
) -> dict[str, Any]:
    """What the run cost: arithmetic, on a GPU its share of the peak, and energy where a counter is."""
    along = describe(json.loads((teacher / "config.json").read_text())) if teacher else None
    flops = flops_per_token(describe(config), record["window"], along)
    peak = peak_flops()
    cost = {
        "flops_per_token": flops,
        "peak_flops": peak,
        "peak_share": None
        if peak is None
        else round(flops * record["tokens_per_second"] / (peak * processes()), 4),
        "kilowatt_hours": None if joules is None else round(joules / 3.6e6, 6),
    }
    energy = "" if joules is None else f", {joules / 3.6e6:.4f} kWh"
    share = "" if peak is None else f", {cost['peak_share']:.1%} of this GPU's peak"
    _say(
        f"{record['tokens']:,} tokens, {record['epochs']:.1%} of the corpus, in {record['hours']:.3f} h: "
        f"{record['tokens_per_second']:,.0f} tokens/s, {flops / 1e6:,.0f} MFLOP a token{share}{energy}"
    )
    return {"cost": cost}


def _heldout_blocks(texts: Any, model_dir: Path, window: int) -> "np.ndarray":
    """The held-out text as one stream without end-of-text marks, exactly as `toolchain evaluate` cuts it."""
    from bench.quality import windows

    return windows(encode_text(load_tokenizer(model_dir), "\n\n".join(texts["text"])), window)


def _whole_steps(blocks: "np.ndarray", batch: int) -> "np.ndarray":
    """`blocks` less what fills no step of `batch`, so that every step sees as many tokens as are counted.

    Not the Trainer's dataloader_drop_last, which drops held-out blocks as well.
    """
    if len(blocks) < batch:
        raise UserError(
            f"--batch {batch}: the corpus has {len(blocks)} blocks of {blocks.shape[1]} tokens, not one step; "
            "lower --batch or --window, or name a larger corpus"
        )
    return blocks[: len(blocks) // batch * batch]


def _share(blocks: "np.ndarray", training: Training) -> "np.ndarray":
    """The share of `blocks` to train on, drawn by the seed, in the text's order."""
    import numpy as np

    count = max(1, round(training.share * len(blocks)))
    return blocks[np.sort(np.random.default_rng(training.seed).permutation(len(blocks))[:count])]


def _say(line: str) -> None:
    if first_process():
        click.echo(f"  {line}", err=True)


def perplexity(model: "PreTrainedModel", blocks: "np.ndarray", memo: Path | None = None) -> float:
    """exp of the mean next-token loss over `blocks` int64 [blocks, window]; read from `memo` if it is there."""
    import torch

    from bench.quality import perplexity as score

    if memo and memo.exists():
        return json.loads(memo.read_text())

    def logits(ids: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            return model(torch.from_numpy(ids).to(model.device)).logits.float().cpu().numpy()

    model.eval()
    value = score(logits, blocks)["value"]
    if value is None:
        raise UserError(
            "training: the held-out loss is not a number; the weights are damaged or --lr is too high"
        )
    if memo and first_process():
        write_json(memo, value)
    return value


def _teacher(
    folder: Path, model_dir: Path, packed: "np.ndarray", corpus: Corpus, training: Training
) -> "PreTrainedModel | CachedTeacher":
    """What answers for the teacher in `folder`: itself, or the cache of its answers to all packed blocks."""
    if training.cache_teacher is None:
        return _load_teacher(folder)
    assert training.cache_top is not None and training.temperature is not None
    about = describe_cache(
        packed,
        identity(folder),
        corpus.sha256,
        sha256(model_dir / "tokenizer.json"),
        json.loads((folder / "config.json").read_text())["vocab_size"],
        training.cache_top,
        training.temperature,
    )

    assert training.tokens is not None
    if training.tokens < packed.size:
        part = f"of {packed.size:,} tokens this run sees {training.tokens:,}"
        _say(
            f"{part}, and the cache is of all; --share {training.tokens / packed.size:.2g} would be of those"
        )

    def ask() -> CachedTeacher:
        assert training.cache_teacher is not None
        return cached_teacher(
            training.cache_teacher, about, packed, lambda: _load_teacher(folder, True), _say
        )

    if processes() == 1:
        return ask()
    from accelerate import PartialState

    with PartialState().main_process_first():  # the others find it whole
        return ask()


def _load_teacher(folder: Path, move: bool = False) -> "PreTrainedModel":
    """The teacher, to be asked only; with `move` where it runs fastest (the Trainer moves it otherwise)."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    fuse_gelu(teacher)
    if move and torch.cuda.is_available():
        torch.nn.Module.to(teacher, "cuda")
    return teacher.eval().requires_grad_(False)


def _refuse_unfit(
    teacher_dir: Path, student_dir: Path, student: "PreTrainedModel", training: Training
) -> None:
    """UserError where the teacher cannot teach this student."""
    from transformers import AutoConfig

    with quiet():
        config = AutoConfig.from_pretrained(teacher_dir)
    for what, key in (("vocabulary", "vocab_size"), ("hidden state", "hidden_size")):
        sizes = getattr(config, key), getattr(student.config, key)
        if sizes[0] != sizes[1] and (key == "vocab_size" or OBJECTIVES[training.objective].hidden):
            why = "" if key == "vocab_size" else f", and '{training.objective}' compares them; choose another"
            raise UserError(
                f"{teacher_dir}: the teacher's {what} has {sizes[0]} entries, the student's {sizes[1]}{why}"
            )
    _refuse_other_tokens(teacher_dir, student_dir)


def _refuse_other_tokens(teacher_dir: Path, student_dir: Path) -> None:
    """UserError where an id means one token to the teacher and another to the student: sizes alone hide that."""
    files = [folder / "tokenizer.json" for folder in (teacher_dir, student_dir)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    one, other = (load_tokenizer(file.parent).get_vocab() for file in files)
    if one != other:
        token, number = min(
            one.items() - other.items() or other.items() - one.items(), key=lambda item: item[1]
        )
        raise UserError(
            f"{teacher_dir}: the teacher's vocabulary is another than the student's "
            f"(token {number}, {token!r}, is not the same in both); distil from one with the same tokenizer"
        )


def _freeze(model: "PreTrainedModel", training: Training) -> None:
    """Take the parameters that the objective keeps as they are out of training."""
    frozen = OBJECTIVES[training.objective].frozen if training.objective != "lm" else None
    for name, parameter in model.named_parameters():
        if frozen and name.endswith(frozen):
            parameter.requires_grad_(False)


def _set_dropout(model: "PreTrainedModel", p: float) -> None:
    """One dropout for embeddings and residuals; attention weights stay without, for the fused kernel."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if "attn_dropout" in name else p


def _save(model: "PreTrainedModel", model_dir: Path, config: dict[str, Any]) -> None:
    """The weights as training left them (float32), the config as it came in but for that precision."""
    for old in model_dir.glob("*.safetensors*"):
        old.unlink()
    with quiet():
        model.save_pretrained(model_dir, max_shard_size="4GB")
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    write_json(model_dir / "config.json", config)
