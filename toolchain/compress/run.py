"""`toolchain compress`, whole: resolve the teacher, choose layers, cut, train on, and record how."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown
from devices.files import cache_folder, refuse_existing, staging_path, write_json
from devices.text import load_tokenizer
from export.architecture import Architecture, parameters
from export.checkpoint import identity, open_checkpoint
from toolchain import __version__
from toolchain.compress.cached import refuse_cache
from toolchain.compress.card import model_card
from toolchain.compress.faults import plain_faults
from toolchain.compress.objectives import OBJECTIVES
from toolchain.compress.select import MEASURED, choose, explicit, refuse_shape
from toolchain.compress.teacher import resolve, teacher_name
from toolchain.compress.trainer import Training, first_process, processes, refuse, resolved
from toolchain.compress.truncate import open_teacher, randomize, truncate, verify
from toolchain.compress.unfinished import WORK, unfinished

if TYPE_CHECKING:
    from toolchain.corpus import Corpus

TRAINING = ("none", "pretrain", "distill")
INITS = ("truncate", "random")


@plain_faults()
def compress(
    teacher: str,
    out: Path,
    *,
    layers: int | None = None,
    keep: str | None = None,
    select: str | None = None,
    select_corpus: str | None = None,
    select_tokens: int | None = None,
    init: str = "truncate",
    train: str = "none",
    training: Training | None = None,
    seed: int = 0,
    force: bool = False,
    command: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Make a student of `teacher` in the folder `out`, and return what its compression.json holds.

    `layers` of the teacher's (all, where it is to be trained and nothing else is said) are kept by strategy
    `select` (default pseudo-uniform), or those named in `keep` ("0,2,4"). A strategy that measures looks at
    about `select_tokens` tokens of `select_corpus`'s train part (default: the corpus to train on, else
    stdlib; toolchain/compress/score.py). With `init` "random" the student has that many layers and fresh
    weights instead: the control. `training` (needed unless `train` is "none") says how to train the student
    afterwards, on text alone ("pretrain") or towards the teacher ("distill"). A training run that was
    interrupted goes on when the same call is made again; `say` is told so, and every other step. Processes
    of `accelerate launch` other than the first train along and return the training record (nothing without
    training).
    UserError for what cannot be done, before anything is written or with all that was written removed.
    """
    _refuse_contradictions(layers, keep, select, init, train, training)
    _refuse_unmeasured(select, select_corpus, select_tokens)
    training = resolved(training) if training and train != "none" else training
    if train == "none" and not first_process():
        return {}
    refuse_existing(out, force)
    if not first_process():
        return _train(staging_path(out.absolute()), teacher, train, training)
    folder = resolve(teacher, cache_folder(), say)
    _refuse_overlap(out, folder)
    _, arch = open_teacher(folder)
    _check_tokenizer(folder, train, say)
    kept, selection = _kept(arch.layers, layers, keep, select, seed), None
    if training and training.cache_teacher and training.cache_top and training.temperature:
        refuse_cache(training.cache_teacher, training.cache_top, training.temperature, arch.vocab)
    corpus = _corpus(training, arch.positions)
    if select in MEASURED:
        text = select_corpus or corpus or "stdlib"
        kept, selection = _measured(folder, select, arch.layers, len(kept), text, select_tokens, seed)
    config = {
        "layers": len(kept),
        "init": init,
        "select": _how(layers, keep, select, init),
        "keep": None if init == "random" else kept,
        "train": train,
        "seed": seed,
        "training": asdict(training) if training else None,
    }
    about: dict[str, Any] = {"name": teacher_name(teacher), "sha256": identity(folder)}
    about |= {"layers": arch.layers, "parameters": parameters(arch)}
    request = {"teacher": about, "corpus": corpus and corpus.sha256, "config": config}
    with unfinished(out, request, force=force, say=say) as staging:
        say(_plan(request, out))
        _initialise(folder, kept, init, seed, staging)
        record = None if train == "none" else _train(staging, str(folder), train, training, corpus)
        student = verify(staging, None)
        result = _record(request, record, command, out.name, staging, student) | {"selection": selection}
        (staging / "README.md").write_text(model_card(result, folder), encoding="utf-8")
        write_json(staging / "compression.json", result)
    return result


def _refuse_contradictions(
    layers: int | None,
    keep: str | None,
    select: str | None,
    init: str,
    train: str,
    training: Training | None,
) -> None:
    """UserError for options that do not fit together, before anything is read."""
    if train not in TRAINING:
        raise unknown("training", train, TRAINING)
    if init not in INITS:
        raise unknown("start", init, INITS)
    if layers is None and keep is None and (train == "none" or select or init == "random"):
        raise UserError("compress: how small? say --layers K, or name the layers with --keep 0,2,4")
    if keep is not None and select is not None:
        raise UserError(
            f"--keep {keep}: names the layers, and so does --select {select}; give one of the two"
        )
    if init == "random" and (keep is not None or select is not None):
        raise UserError("--init random: keeps no layer of the teacher; give --layers alone")
    if train == "none":
        return
    if training is None:
        raise UserError(f"--train {train}: needs to be told how; give a corpus")
    refuse(training)
    if train == "pretrain":
        for name in ("temperature", "alpha", "mix"):
            if (value := getattr(training, name)) is not None:
                raise UserError(f"--{name} {value}: needs the teacher; use it with --train distill")
        if training.cache_teacher or training.cache_top:
            raise UserError("--cache-teacher: pretrain asks no teacher; use it with --train distill")
        if training.objective != "lm":
            raise UserError(
                f"--objective {training.objective}: needs the teacher; use it with --train distill"
            )
    if train == "distill" and training.objective == "lm":
        raise unknown("objective", training.objective, OBJECTIVES)


def _refuse_unmeasured(select: str | None, corpus: str | None, tokens: int | None) -> None:
    """UserError for a text to measure layers on where none is measured."""
    if (corpus, tokens) != (None, None) and select not in MEASURED:
        raise UserError(
            f"--select-corpus, --select-tokens: for strategies that measure ({', '.join(MEASURED)}); "
            "choose one with --select, or leave them out"
        )


def _refuse_overlap(out: Path, teacher: Path) -> None:
    """UserError where writing `out` would touch the teacher's own folder."""
    one, other = out.resolve(), teacher.resolve()
    if one == other or other in one.parents or one in other.parents:
        raise UserError(f"{out}: overlaps the teacher's folder {teacher}; choose an --out beside it")


def _check_tokenizer(teacher: Path, train: str, say: Callable[[str], object]) -> None:
    """UserError for a damaged tokenizer.json, or none to train with; a line where a plain cut goes without."""
    if train != "none" or (teacher / "tokenizer.json").is_file():
        load_tokenizer(teacher)
    else:
        say(f"{teacher}: has no tokenizer.json, so the student has none; glue and evaluate will need one")


def _kept(total: int, layers: int | None, keep: str | None, select: str | None, seed: int) -> list[int]:
    """The layers to keep, from a strategy or as named; as many as are asked for where they must be measured."""
    if keep is None:
        if layers is None:  # to be trained on as it is
            return list(range(total))
        if select in MEASURED:
            refuse_shape(select, total, layers)
            return list(range(layers))
        return choose(select or "pseudo-uniform", total, layers, seed)
    kept = explicit(keep, total)
    if layers not in (None, len(kept)):
        raise UserError(
            f"--keep {keep}: names {len(kept)} layers, --layers says {layers}; give one of the two"
        )
    return kept


def _measured(
    teacher: Path, select: str, total: int, k: int, text: "Corpus | str", tokens: int | None, seed: int
) -> tuple[list[int], dict[str, Any]]:
    """The layers to keep by what they are worth on `text`, and compression.json's `selection`."""
    from toolchain.compress.score import measure

    return measure(teacher, select, total, k, corpus=text, tokens=tokens, seed=seed)


def _how(layers: int | None, keep: str | None, select: str | None, init: str) -> str | None:
    """How the layers were chosen, for the record."""
    if init == "random":
        return None
    if keep is None and layers is None:
        return "all"
    return "keep" if keep else select or "pseudo-uniform"


def _plan(request: dict[str, Any], out: Path) -> str:
    """What is about to be made, in a line."""
    teacher, config = request["teacher"], request["config"]
    if config["init"] == "random":
        return f"{out}: {config['layers']} layers in the shape of {teacher['name']}, fresh weights"
    kept = ",".join(map(str, config["keep"]))
    return f"{out}: layers {kept} of {teacher['name']}'s {teacher['layers']} ({config['select']})"


def _initialise(teacher: Path, kept: list[int], init: str, seed: int, staging: Path) -> None:
    """The student before training. Made again on a resume: cheap, and a kill may have torn the weights."""
    if init == "random":
        randomize(teacher, kept, seed, staging)
        return
    from tqdm import tqdm

    total = sum(info.size for info in open_checkpoint(teacher).tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="cut", disable=None, leave=False) as bar:
        truncate(teacher, kept, staging, bar.update)


def _corpus(training: Training | None, positions: int) -> "Corpus | None":
    """The text to train on, if any; UserError where it or the window cannot be used."""
    if training is None:
        return None
    from toolchain.corpus import load

    refuse(training, positions)
    return load(training.corpus, training.heldout)


def _train(
    staging: Path, teacher: str, train: str, training: Training | None, corpus: "Corpus | None" = None
) -> dict[str, Any]:
    """Train the student in `staging` and return the training record.

    Under `accelerate launch` every process trains, and the first alone fetches or converts the teacher,
    cuts, writes and publishes: the others begin when the student is there, and it goes on when they are done
    with the folder.
    """
    from toolchain.compress.train import train as run_training

    assert training is not None
    _meet()
    towards = resolve(teacher, cache_folder()) if train == "distill" else None
    record = run_training(staging, staging / WORK, training, towards, corpus)
    _meet()
    return record


def _meet() -> None:
    """Wait for the other processes of `accelerate launch`, where there are any."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def _record(
    request: dict[str, Any],
    training: dict[str, Any] | None,
    command: str,
    name: str,
    staging: Path,
    student: Architecture,
) -> dict[str, Any]:
    """The content of compression.json: where the student comes from and how it was made."""
    from toolchain.compress.pretrain import versions

    config = request["config"]
    return {
        "schema": 1,
        "toolchain": __version__,
        "command": command,
        "teacher": request["teacher"],
        "student": {
            "name": name,
            "layers": student.layers,
            "parameters": parameters(student),
            "sha256": identity(staging),
        },
        **{key: config[key] for key in ("init", "select", "keep", "train")},
        "objective": training["objective"] if training else None,
        "training": training,
        "config": config,
        "seed": config["seed"],
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
