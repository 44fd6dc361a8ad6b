"""What a config.json describes, and whether the checkpoint's tensors are what it says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, Protocol

from devices.errors import UserError, unknown
from export.checkpoint import Checkpoint
from export.families import ACTIVATIONS, FAMILIES, HEAD, ROPES, SCORE, Family

Shape = tuple[int, ...]


class Model(Protocol):
    """What is known of every model, whoever writes its graph."""

    @property
    def kind(self) -> str:
        """`classifier` or `decoder`."""

    @property
    def vocab(self) -> int:
        """How many token ids it knows."""

    @property
    def positions(self) -> int:
        """How many tokens it takes at most."""


@dataclass(frozen=True)
class Architecture:
    """One model, resolved: counts and sizes of its parts and the settings its numbers depend on."""

    model_type: str
    family: Family
    prefix: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    positions: int
    eps: float
    activation: str
    tied: bool
    labels: int | None  # of a classifier; None for a decoder
    biases: frozenset[str]  # slots that have a bias
    rope: Mapping[str, Any]  # rope_theta, rope_type and its settings; empty without rotary positions
    windows: tuple[int | None, ...]  # sliding attention window of each layer, None for full attention
    scales: tuple[float, ...]  # attention scale of each layer

    @property
    def kind(self) -> str:
        """`classifier` or `decoder`."""
        return "decoder" if self.labels is None else "classifier"

    @property
    def sizes(self) -> dict[str, int]:
        """Dimensions by the words that `Family.layer` uses."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "hidden": self.hidden,
            "inner": self.inner,
            "head_dim": self.head_dim,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
        }


def describe(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes; UserError for one not supported or one without sense."""
    name = str(config.get("model_type", ""))
    if name not in FAMILIES:
        raise unknown("architecture", name, FAMILIES)
    if config.get("quantization_config"):
        raise UserError("config.json: the weights are quantized already; export the model it was made from")
    family = FAMILIES[name]
    keys = family.config
    layers, hidden, heads = (_count(config, keys[word]) for word in ("layers", "hidden", "heads"))
    kv_heads = _count(config, "num_key_value_heads", heads) if name != "gpt2" else heads
    if name == "gpt2" or config.get("head_dim") is None:
        if hidden % heads:
            raise UserError(
                f"config.json: {keys['hidden']} {hidden} is not a multiple of {keys['heads']} {heads}; "
                "mend the config"
            )
        head_dim = hidden // heads
    else:
        head_dim = _count(config, "head_dim")
    if heads % kv_heads:
        raise UserError(
            f"config.json: {keys['heads']} {heads} is not a multiple of num_key_value_heads {kv_heads}; "
            "mend the config"
        )
    return Architecture(
        model_type=name,
        family=family,
        prefix=family.prefixes[0],
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=_count(config, keys["inner"], 4 * hidden),
        vocab=_count(config, "vocab_size"),
        positions=_count(config, keys["positions"]),
        eps=_number(config, keys["eps"], 1e-5 if family.norm == "layer" else 1e-6),
        activation=_one_of(
            config.get(keys["activation"], "gelu_new" if name == "gpt2" else "silu"), ACTIVATIONS
        ),
        tied=bool(config.get("tie_word_embeddings", name == "gpt2")),
        labels=_labels(config),
        biases=frozenset(
            slot for slot, when in family.biases.items() if when is True or config.get(str(when))
        ),
        rope=_rope(config) if family.position == "rotary" else {},
        windows=_windows(family, config, layers),
        scales=_scales(name, config, layers, head_dim),
    )


def describe_at(folder: Path, config: Mapping[str, Any]) -> Architecture:
    """`describe`, with the folder whose config.json it is in front of what is wrong with it."""
    try:
        return describe(config)
    except UserError as error:
        where = folder / "config.json"
        raise UserError(f"{where}: {str(error).removeprefix('config.json: ')}") from None


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise UserError(
            f"config.json: {key} must be a positive whole number, found {value!r}; mend the config"
        )
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
        raise UserError(f"config.json: {key} must be a positive number, found {value!r}; mend the config")
    return float(value)


def _list(config: Mapping[str, Any], key: str) -> list[Any]:
    """config[key], empty where it is null or not there."""
    value = config.get(key)
    if value is not None and not isinstance(value, list):
        raise UserError(f"config.json: {key} must be a list, found {value!r}; mend the config")
    return value or []


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """config[key], empty where it is null or not there."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"config.json: {key} must be an object, found {value!r}; mend the config")
    return dict(value or {})


def _one_of(name: Any, known: Iterable[str]) -> str:
    if name not in known:
        raise unknown("activation", str(name), known)
    return str(name)


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is a classifier's."""
    return any(str(name).endswith("ForSequenceClassification") for name in _list(config, "architectures"))


def _labels(config: Mapping[str, Any]) -> int | None:
    if not is_classifier(config):
        return None
    return len(label_names(config)) or _count(config, "num_labels", 2)


def label_names(config: Mapping[str, Any]) -> list[str]:
    """A classifier's labels by `id2label`, in the order of their numbers; empty where it has none."""
    names = {str(number): label for number, label in _table(config, "id2label").items()}
    if sorted(names) != sorted(map(str, range(len(names)))):
        raise UserError(
            f"config.json: id2label must number its labels from 0, found {list(names)}; mend the config"
        )
    return [str(names[str(i)]) for i in range(len(names))]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in transformers 5's form, from its `rope_parameters` or the older two keys."""
    rope = _table(config, "rope_parameters") or _table(config, "rope_scaling")
    rope["rope_theta"] = _number(rope, "rope_theta", _number(config, "rope_theta", 10000.0))
    rope["rope_type"] = str(rope.get("rope_type") or rope.get("type") or "default")
    if rope["rope_type"] not in ROPES:
        raise unknown("rope type", rope["rope_type"], ROPES)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config.json: partial rotary positions are not supported; choose another model")
    return rope | {key: _number(rope, key) for key in ROPES[rope["rope_type"]]}


def _windows(family: Family, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window, from `sliding_window`, its switch and `layer_types`."""
    window = config.get("sliding_window") if family.position == "rotary" else None
    if family.window_switch and not config.get(family.window_switch):
        window = None
    if config.get("model_type") == "llama" or not window:
        return (None,) * layers
    window = _count(config, "sliding_window")
    first = config.get("max_window_layers", 28) if family.window_switch else 0
    if type(first) is not int:
        raise UserError(
            f"config.json: max_window_layers must be a whole number, found {first!r}; mend the config"
        )
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    types = _list(config, "layer_types") or default
    if len(types) != layers:
        raise UserError(f"config.json: {len(types)} layer_types for {layers} layers; mend the config")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _scales(name: str, config: Mapping[str, Any], layers: int, head_dim: int) -> tuple[float, ...]:
    """Each layer's factor on query times key: 1/sqrt(head_dim), and what GPT-2's two switches make of it."""
    scale = head_dim**-0.5 if name != "gpt2" or config.get("scale_attn_weights", True) else 1.0
    by_layer = name == "gpt2" and config.get("scale_attn_by_inverse_layer_idx", False)
    return tuple(scale / (i + 1) if by_layer else scale for i in range(layers))


def layer_tensors(arch: Architecture, index: int) -> dict[str, tuple[str, Shape]]:
    """Slot -> (tensor name, shape) of layer `index`; slots are `norm1.weight`, `qkv.bias`, ..."""
    prefix, sizes, family = arch.prefix + arch.family.layer_prefix.format(index), arch.sizes, arch.family
    found: dict[str, tuple[str, Shape]] = {}
    for slot, (name, inner, outer) in family.layer.items():
        if not outer:
            shape: Shape = (sizes[inner],)
        else:
            shape = (sizes[inner], sizes[outer]) if family.conv1d else (sizes[outer], sizes[inner])
        found[f"{slot}.weight"] = (f"{prefix}{name}.weight", shape)
        if slot in arch.biases:
            found[f"{slot}.bias"] = (f"{prefix}{name}.bias", (sizes[outer or inner],))
    return found


def outer_tensors(arch: Architecture) -> dict[str, tuple[str, Shape]]:
    """Slot -> (tensor name, shape) of what is in no layer: embedding, final norm, head, score, positions."""
    family, prefix = arch.family, arch.prefix
    found = {
        "embedding": (prefix + family.embedding, (arch.vocab, arch.hidden)),
        "final.weight": (f"{prefix}{family.final_norm}.weight", (arch.hidden,)),
    }
    if family.positions:
        found["positions"] = (prefix + family.positions, (arch.positions, arch.hidden))
    if family.norm == "layer":
        found["final.bias"] = (f"{prefix}{family.final_norm}.bias", (arch.hidden,))
    if arch.labels is not None:
        found["score"] = (SCORE, (arch.labels, arch.hidden))
    elif not arch.tied:
        found["head"] = (HEAD, (arch.vocab, arch.hidden))
    return found


def expected_tensors(arch: Architecture) -> dict[str, Shape]:
    """Every tensor's name and shape that a checkpoint of this architecture must hold."""
    found = dict(outer_tensors(arch).values())
    for index in range(arch.layers):
        found.update(layer_tensors(arch, index).values())
    return found


def parameters(arch: Architecture) -> int:
    """Number of weights, a tied embedding counted once."""
    return sum(prod(shape) for shape in expected_tensors(arch).values())


def describe_model(arch: Architecture) -> dict[str, Any]:
    """What manifests and results say of a model: its type, its counts and its number of weights."""
    counts = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "positions")
    return {
        "model_type": arch.model_type,
        **{key: getattr(arch, key) for key in counts},
        "parameters": parameters(arch),
    }


def check(checkpoint: Checkpoint) -> Architecture:
    """The checkpoint's architecture, if its tensors are those its config promises.

    UserError naming the first tensor that is missing or of another shape and how many more there are, and
    one for layers beyond the config's count (a config cut by hand). Tensors nobody asks for (old attention
    masks) are ignored. A tied model that stores a head of its own that differs is untied, as in transformers.
    """
    arch = describe_at(checkpoint.path, checkpoint.config)
    found = checkpoint.tensors
    prefix = next((p for p in arch.family.prefixes if p + arch.family.embedding in found), arch.prefix)
    arch = replace(arch, prefix=prefix)
    if arch.labels is None and SCORE in found and HEAD not in found:
        arch = replace(arch, labels=found[SCORE].shape[0])
    if (
        arch.labels is None
        and arch.tied
        and HEAD in found
        and _differ(checkpoint, HEAD, prefix + arch.family.embedding)
    ):
        arch = replace(arch, tied=False)
    expected = expected_tensors(arch)
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{checkpoint.path}: tensor {missing[0]}{more} missing; config.json and the weights disagree"
        )
    wrong = [name for name, shape in expected.items() if found[name].shape != shape]
    if wrong:
        more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise UserError(
            f"{checkpoint.path}: {wrong[0]} is {list(found[wrong[0]].shape)}, config.json says "
            f"{list(expected[wrong[0]])}{more}; use the config that belongs to these weights"
        )
    beyond = prefix + arch.family.layer_prefix.format(arch.layers)
    if any(name.startswith(beyond) for name in found):
        raise UserError(
            f"{checkpoint.path}: the weights hold more than config.json's {arch.layers} layers; "
            "use the config that belongs to these weights"
        )
    return arch


def _differ(checkpoint: Checkpoint, one: str, other: str) -> bool:
    if other not in checkpoint.tensors:
        return False
    return checkpoint.read_raw(one) != checkpoint.read_raw(other)
