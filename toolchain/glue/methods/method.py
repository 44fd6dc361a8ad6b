"""What a fine-tuning method is made of: its options, its stages, and what each stage's loss is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol

from devices.errors import UserError, unknown

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from export.checkpoint import Checkpoint

# input_ids and attention_mask int64 [rows, tokens], labels [rows]; from a cached teacher TOLD [rows, labels] and
# STATES [rows, layers, width], its answers to these rows.
Batch = dict[str, "torch.Tensor"]
TOLD, STATES = "teacher_logits", "teacher_states"


@dataclass(frozen=True)
class Hidden:
    """Which hidden states of the teacher a method compares, each as one vector a row.

    `layers` count from 1, as many as it may ever ask for; `pooled` names what a row's vector is: the "mean" over
    real tokens, or the "last" real one.
    """

    pooled: Literal["mean", "last"]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """A setting of a method: its default, whose type it has, which values fit, and that in words."""

    default: float | int | str
    fits: Callable[[Any], bool]
    must: str  # continues "must be"


def share(default: float) -> Option:
    """A number from 0 to 1."""
    return Option(default, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def weight(default: float) -> Option:
    """A part's weight in a sum."""
    return Option(default, lambda value: value >= 0, "a number from 0")


def above_zero(default: float) -> Option:
    """A temperature or a rate."""
    return Option(default, lambda value: value > 0, "a number above 0")


def count(default: int) -> Option:
    """A whole number from 1."""
    return Option(default, lambda value: value >= 1, "a whole number from 1")


def one_of(*names: str) -> Option:
    """One of the names, the first by default."""
    return Option(names[0], lambda value: value in names, " or ".join(names))


@dataclass(frozen=True)
class Setting:
    """What a stage is built from; `teacher` is frozen, in evaluation mode, where the student is."""

    student: "PreTrainedModel"
    teacher: "PreTrainedModel | None"
    base: "Path"  # the checkpoint that the student was before fine-tuning
    options: Mapping[str, Any]
    seed: int

    @property
    def guide(self) -> "PreTrainedModel":
        """The teacher, of a method that cannot be without one."""
        assert self.teacher is not None
        return self.teacher


@dataclass(frozen=True)
class Moment:
    """Where in its stage a step is: `step` and `epoch` count from 0, `steps` is how many there will be."""

    step: int
    steps: int
    epoch: int


Loss = Callable[["PreTrainedModel", Batch, Moment], "torch.Tensor"]  # to a scalar


class Remembered(Protocol):
    """What a snapshot must hold besides student and `extra`: a dict of tensors and numbers, and back from it."""

    def state_dict(self) -> dict[str, Any]:
        """As it is now."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as it was then."""


@dataclass(frozen=True)
class Stage:
    """One run of the Trainer: its loss, and modules trained with the student that are not part of it.

    `remembered` is trained by the loss itself; a run that was stopped needs it to go on.
    """

    loss: Loss
    extra: "torch.nn.Module | None" = None
    remembered: Remembered | None = None


@dataclass(frozen=True)
class Method:
    """How to fine-tune. Two stages share the epochs by the option `first_stage`, at least one for each.

    `teacher`: "none" takes none, "needed" cannot be without, "own" makes one of the student where none is given.
    `refuse` says why a method does not do for a student, a teacher (None without one) and a regression or not.
    """

    description: str
    stages: tuple[Callable[[Setting], Stage], ...]
    teacher: Literal["none", "needed", "own"] = "none"
    options: Mapping[str, Option] = field(default_factory=dict)
    refuse: "Callable[[Checkpoint, Checkpoint | None, bool], str | None]" = lambda student, teacher, score: (
        None
    )
    hidden: Callable[[Setting], Hidden | None] = lambda setting: None  # of the teacher, for a cache


def resolve(name: str, method: Method, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every option of the method with its value, from `given` (texts or values) or by default.

    UserError for one that the method has not, or a value that is none for it.
    """
    given = given or {}
    for key in given:
        if not method.options:
            raise UserError(f"method {name} has no options; leave {key}={given[key]} out")
        if key not in method.options:
            raise unknown(f"option of method {name}", key, method.options)
    return {
        key: _value(name, key, option, given[key]) if key in given else option.default
        for key, option in method.options.items()
    }


def _value(name: str, key: str, option: Option, given: Any) -> Any:
    """`given` as the option's type, if it fits."""
    kind = type(option.default)
    try:
        value = kind(given.strip()) if isinstance(given, str) else given
    except ValueError:
        value = None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not _finite(value) or not option.fits(value):
        raise UserError(f"method {name}: {key}={given} does not do; it must be {option.must}")
    return value


def _finite(value: float | int | str) -> bool:
    return isinstance(value, str) or isfinite(value)


def split_epochs(name: str, method: Method, options: Mapping[str, Any], epochs: int) -> list[int]:
    """How many epochs each stage gets; UserError where there are fewer epochs than stages."""
    if len(method.stages) == 1:
        return [epochs]
    if epochs < len(method.stages):
        raise UserError(
            f"method {name}: has {len(method.stages)} stages, so {epochs} epoch is too few; raise --epochs"
        )
    first = min(max(1, round(options["first_stage"] * epochs)), epochs - 1)
    return [first, epochs - first]
