"""Any decoder that transformers knows, traced by torch.onnx, run as a process of its own: `python -m export.tracing`.

The fallback for architectures whose graph this project does not write itself. Like reference.py it imports
torch and nobody imports it. What torch.onnx finds goes through rewrite.py, so that the files look like ours.
"""

import difflib
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto import modeling_auto

from devices.errors import UserError, unknown
from devices.files import read_json, write_json
from devices.process import end_with
from export.builder import OPSET
from export.families import FAMILIES
from export.recipes import Recipe
from export.rewrite import KEPT, rewrite

# Sizes to trace with. Not 0 or 1, which torch.export takes for constants, and no two alike.
BATCH, SEQUENCE, PAST = 2, 3, 5
POSITIONS = ("max_position_embeddings", "max_seq_len", "seq_length")  # config.json's names for their number
Shapes = list[
    tuple[torch.Size, torch.Size]
]  # of each layer's key and value, [1, kv_heads, positions, head_dim]


class Decoder(torch.nn.Module):
    """A language model with its cache as plain tensors, and as logits those of the positions in `kept`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.takes = model, inspect.signature(model.forward).parameters

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        pasts: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> Any:
        """(logits [batch, kept, vocab], each layer's key and value, past and new positions)."""
        optional = {"position_ids": position_ids, "logits_to_keep": kept}
        # Not the model's own kind of cache: one that drops what has left a sliding window has no fixed shape.
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=transformers.DynamicCache(pasts),
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.takes},
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]


class Classifier(torch.nn.Module):
    """A classifier that reads the position of the mask's last 1, whatever the padding token is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Logits [batch, labels]."""
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        steps = torch.arange(input_ids.shape[1])
        last = (attention_mask * steps).amax(-1)
        return self.model.score(hidden[torch.arange(input_ids.shape[0]), last])


def load(checkpoint: Path, kind: str) -> Any:
    """The model in float32 with plain attention; UserError if transformers has no such type or weights lack.

    No code of a model's folder is run, and no weight that the files lack is made up.
    """
    config = read_json(checkpoint / "config.json", "the model's configuration")
    _refuse_unknown(str(config.get("model_type", "")), kind)
    auto = getattr(
        transformers, f"AutoModelFor{'SequenceClassification' if kind == 'classifier' else 'CausalLM'}"
    )
    try:
        model, found = auto.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="batched_mm",  # the one that torch.onnx can trace
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{checkpoint}: transformers cannot load it ({_line(error)}); mend the checkpoint"
        ) from None
    _refuse_other_weights(checkpoint, found["missing_keys"], found["unexpected_keys"], model.state_dict())
    return model.eval()


def _refuse_unknown(name: str, kind: str) -> None:
    """UserError with the near names unless transformers has such a language model or classifier."""
    names = {
        "decoder": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }[kind]
    if name not in names:
        raise unknown("architecture", name, [*FAMILIES, *difflib.get_close_matches(name, names)])


def _refuse_other_weights(checkpoint: Path, missing: Any, unexpected: Any, known: Any) -> None:
    """UserError for weights that lack a tensor, or hold layers beyond the config's count."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{checkpoint}: tensor {min(missing)}{more} missing; config.json and the weights disagree"
        )
    forms = {re.sub(r"\d+", "#", name) for name in known}
    beyond = [name for name in unexpected if re.sub(r"\d+", "#", name) in forms]
    if beyond:
        raise UserError(
            f"{checkpoint}: the weights hold {min(beyond)}, which is beyond config.json's layers; "
            "use the config that belongs to these weights"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def cache_shapes(checkpoint: Path, model: Any) -> Shapes:
    """What each layer keeps of two tokens; UserError where that is anything but keys and values."""
    ids = torch.ones(1, 2, dtype=torch.long)
    with torch.inference_mode():
        found = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    layers = getattr(getattr(found, "past_key_values", None), "layers", [])
    plain = [layer for layer in layers if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)]
    shapes = [(layer.keys.shape, layer.values.shape) for layer in plain if layer.is_initialized]
    if not shapes or len(shapes) != len(layers) or any(len(side) != 4 for pair in shapes for side in pair):
        raise UserError(
            f"{checkpoint}: {model.config.model_type} has no key-value cache in every layer, which an "
            "artifact needs; choose another model"
        )
    return shapes


def describe(checkpoint: Path, model: Any, shapes: Shapes) -> dict[str, Any]:
    """The manifest's `model`: counts from the config, heads that are kept from the cache itself."""
    config = model.config.get_text_config()
    positions = next((n for n in (getattr(config, key, None) for key in POSITIONS) if n), None)
    if positions is None:
        raise UserError(
            f"{checkpoint / 'config.json'}: does not say how many positions the model has; "
            "add max_position_embeddings"
        )
    return {
        "model_type": model.config.model_type,
        "layers": len(shapes),
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": shapes[0][0][1],
        "head_dim": shapes[0][0][3],
        "vocab": config.vocab_size,
        "positions": positions,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def trace(checkpoint: Path, model: Any, kind: str, shapes: Shapes) -> Any:
    """The model as onnx_ir holds it: batch, sequence and past of any size, an empty past included."""
    ids = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    rows = {0: "batch", 1: "sequence"}
    if kind == "classifier":
        if not hasattr(model, "score"):
            raise UserError(
                f"{checkpoint}: a classifier of type {model.config.model_type} does not read its last token, "
                "and only those that do are exported; choose another model"
            )
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return _export(checkpoint, Classifier(model), inputs, dict.fromkeys(inputs, rows), ["logits"])
    past = [tuple(torch.randn(BATCH, side[1], PAST, side[3]) for side in pair) for pair in shapes]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones(BATCH, PAST + SEQUENCE, dtype=torch.long),
        "position_ids": torch.arange(PAST, PAST + SEQUENCE).repeat(BATCH, 1),
        KEPT: torch.arange(SEQUENCE),
        "pasts": past,
    }
    dynamic = {
        "input_ids": rows,
        "attention_mask": {0: "batch", 1: "total_sequence"},
        "position_ids": rows,
        KEPT: {0: "kept"},
        "pasts": [tuple({0: "batch", 2: "past_sequence"} for _ in pair) for pair in shapes],
    }
    sides = [f"{i}.{side}" for i in range(len(shapes)) for side in ("key", "value")]
    outputs = ["logits", *(f"present.{side}" for side in sides)]
    return _export(
        checkpoint, Decoder(model), inputs, dynamic, outputs, [f"past_key_values.{s}" for s in sides]
    )


def _export(
    checkpoint: Path,
    module: Any,
    inputs: Any,
    dynamic: Any,
    outputs: list[str],
    pasts: list[str] | None = None,
) -> Any:
    names = [name for name in inputs if name != "pasts"] + (pasts or [])
    try:
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamic_shapes=dynamic,
            input_names=names,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        raise UserError(
            f"{checkpoint}: torch.onnx cannot trace this model ({_line(error.__cause__ or error)}); "
            "choose another model"
        ) from None
    assert program is not None
    return program.model


def main(arguments: list[str]) -> None:
    """CHECKPOINT FOLDER ANSWER.json decoder|classifier PRODUCER RECIPE (the record as JSON)."""
    checkpoint, folder, answer, kind, producer, recipe = arguments
    torch.set_num_threads(1)  # little work, and more threads wait for each other on a busy machine
    path, chosen = Path(checkpoint), Recipe(**json.loads(recipe))
    model = load(path, kind)
    shapes = cache_shapes(path, model)
    about = describe(path, model, shapes)
    buffers = {name for name, _ in model.named_buffers()}
    traced = trace(path, model, kind, shapes)
    stored = rewrite(traced, chosen, Path(folder), producer, kind, about["vocab"], buffers)
    write_json(Path(answer), {"model": about, "bytes": stored})


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    try:
        main(sys.argv[2:])
    except UserError as error:
        sys.stderr.write(f"\n{error}\n")  # a line of its own, even behind a progress bar
        sys.exit(2)
