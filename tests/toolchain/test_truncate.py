"""Cutting layers out of a checkpoint: the student is the teacher without them, to the last bit."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

from devices.errors import UserError
from export.checkpoint import open_checkpoint
from toolchain.compress.truncate import ALIASES, cut_config, layer_key, open_teacher, randomize, truncate

KEEP = [0, 2, 3]
IDS = torch.arange(5, 29).reshape(2, 12)


def blocks(model: Any) -> Any:
    """The model's decoder body and the name of its list of layers."""
    body = getattr(model, "transformer", None) or model.model
    return body, "h" if hasattr(body, "h") else "layers"


def logits(model: Any) -> torch.Tensor:
    """What the model says about IDS, without a cache."""
    with torch.inference_mode():
        return model.eval()(IDS, use_cache=False).logits


def cut_by_hand(teacher: Path, keep: list[int]) -> Any:
    """The teacher in PyTorch, with layers taken out of its ModuleList."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    body, name = blocks(model)
    layers = getattr(body, name)
    setattr(body, name, torch.nn.ModuleList([layers[i] for i in keep]))
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in keep]
    return model


def open_whole(student: Path) -> Any:
    """The student through transformers, which must find every tensor it wants and no other."""
    model, info = AutoModelForCausalLM.from_pretrained(student, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.fixture(scope="module")
def teachers(make_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """Checkpoints of four layers, each made once."""
    made: dict[str, Path] = {}

    def get(family: str, **overrides: Any) -> Path:
        key = json.dumps([family, overrides], sort_keys=True)
        if key not in made:
            made[key] = make_checkpoint(family, **overrides)
        return made[key]

    return get


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_student_is_the_teacher_cut_by_hand(
    family: str, teachers: Callable[..., Path], tmp_path: Path
) -> None:
    """For every family: opens without missing or unexpected keys, and gives the very same logits."""
    teacher = teachers(family)
    truncate(teacher, KEEP, tmp_path)
    student = open_whole(tmp_path)
    assert len(getattr(*blocks(student))) == 3
    assert torch.equal(logits(student), logits(cut_by_hand(teacher, KEEP)))


def test_cached_generation_works(llama_checkpoint: Path, tmp_path: Path) -> None:
    """The student generates with a cache what it generates without: its layers were numbered anew."""
    truncate(llama_checkpoint, [1, 3], tmp_path)
    model = open_whole(tmp_path).eval()
    said = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(IDS, use_cache=True, **said), model.generate(IDS, use_cache=False, **said)
    )


def test_untied_head_is_carried_over(teachers: Callable[..., Path], tmp_path: Path) -> None:
    """A model with a head of its own keeps it, and a tied one stores its embedding once."""
    teacher = teachers("llama", tie_word_embeddings=False)
    truncate(teacher, KEEP, tmp_path / "untied")
    assert torch.equal(logits(open_whole(tmp_path / "untied")), logits(cut_by_hand(teacher, KEEP)))
    assert "lm_head.weight" in open_checkpoint(tmp_path / "untied").tensors
    truncate(teachers("llama"), KEEP, tmp_path / "tied")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "tied").tensors


def test_second_copy_of_a_tied_head_is_dropped(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """A tied checkpoint that stores the head as well gives a student that stores it once."""
    teacher = rewritten(gpt2_checkpoint, tmp_path / "teacher", lambda t: t | {"lm_head.weight": head(t)})
    truncate(teacher, KEEP, tmp_path / "student")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "student").tensors
    assert torch.equal(logits(open_whole(tmp_path / "student")), logits(cut_by_hand(gpt2_checkpoint, KEEP)))


def head(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A second copy of a GPT-2's embedding."""
    return tensors["transformer.wte.weight"].clone()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of checkpoint `source` whose tensors are `change`d."""
    shutil.copytree(source, target)
    save_file(change(load_file(target / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def test_hub_gpt2_layout(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Names without `transformer.`, and the mask buffers that old GPT-2 files carry: the same student."""

    def old(tensors: dict[str, Any]) -> dict[str, Any]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(4)}
        return bare | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(4)}

    truncate(rewritten(gpt2_checkpoint, tmp_path / "old", old), KEEP, tmp_path / "student")
    assert not [
        n for n in open_checkpoint(tmp_path / "student").tensors if n.endswith((".attn.bias", ".masked_bias"))
    ]
    assert torch.equal(logits(open_whole(tmp_path / "student")), logits(cut_by_hand(gpt2_checkpoint, KEEP)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_is_kept(dtype: torch.dtype, llama_checkpoint: Path, tmp_path: Path) -> None:
    """Sixteen-bit weights stay sixteen-bit, byte for byte."""
    teacher = rewritten(
        llama_checkpoint, tmp_path / "teacher", lambda t: {name: v.to(dtype) for name, v in t.items()}
    )
    truncate(teacher, KEEP, tmp_path / "student")
    before, after = (load_file(tmp_path / who / "model.safetensors") for who in ("teacher", "student"))
    assert all(tensor.dtype == dtype for tensor in after.values())
    assert torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], before["model.layers.2.mlp.up_proj.weight"]
    )


def test_mixed_precision_is_aligned(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Where dtypes are mixed each tensor keeps its own, and the file reads with the safetensors package."""

    def mixed(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}

    truncate(rewritten(llama_checkpoint, tmp_path / "teacher", mixed), KEEP, tmp_path / "student")
    after = load_file(tmp_path / "student/model.safetensors")
    assert {t.dtype for t in after.values()} == {torch.float32, torch.bfloat16}
    assert after["model.norm.weight"].dtype == torch.float32


def test_sharded_teacher(llama_checkpoint: Path, tmp_path: Path) -> None:
    """A teacher in several files gives the same student as the same teacher in one."""
    model = AutoModelForCausalLM.from_pretrained(llama_checkpoint)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for name, teacher in {"one": llama_checkpoint, "many": tmp_path / "sharded"}.items():
        truncate(teacher, KEEP, tmp_path / name)
    one, many = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "many"))
    assert one == many


def test_everything_around_the_layers_comes_along(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """Tokenizer, chat template, generation config and license are the teacher's; nothing else is copied."""
    teacher = tmp_path / "teacher"
    shutil.copytree(gpt2_checkpoint, teacher)
    for name in ("chat_template.jinja", "LICENSE", "notes.txt", "pytorch_model.bin", "modeling.py"):
        (teacher / name).write_text(name)
    truncate(teacher, KEEP, tmp_path / "student")
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "LICENSE", "generation_config.json"} <= names
    assert not names & {"notes.txt", "pytorch_model.bin", "modeling.py"}
    text = "the quick brown fox"
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "student")(text)["input_ids"]
        == AutoTokenizer.from_pretrained(teacher)(text)["input_ids"]
    )


def test_one_tensor_at_a_time(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Cutting a model needs memory for its largest tensor or so, not for the model."""
    teacher = make_checkpoint("llama", num_hidden_layers=12, hidden_size=64)
    tensors = open_checkpoint(teacher).tensors.values()
    truncate(teacher, [0], tmp_path / "warm")  # imports and caches
    tracemalloc.start()
    truncate(teacher, list(range(11)), tmp_path / "student")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(info.size for info in tensors) / 2
    assert peak < 2 * max(info.size for info in tensors) + 500_000


def test_progress_counts_every_byte(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """What `progress` was told adds up to the student's tensors."""
    told: list[int] = []
    truncate(gpt2_checkpoint, KEEP, tmp_path, told.append)
    assert sum(told) == sum(info.size for info in open_checkpoint(tmp_path).tensors.values())


def test_layer_count_comes_through_optimum() -> None:
    """Our one alias is transformers' own, so that cutting a config need not import it."""
    assert GPT2Config.attribute_map["num_hidden_layers"] == ALIASES["num_hidden_layers"]
    assert layer_key({"model_type": "gpt2", "n_layer": 12}) == "n_layer"
    assert layer_key({"model_type": "qwen3", "num_hidden_layers": 12}) == "num_hidden_layers"


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_our_key_table_is_optimum_s(
    family: str, teachers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every family's sizes read the same both ways; where they would not, the teacher is refused."""
    from optimum.utils import NormalizedConfigManager, NormalizedTextConfig

    open_teacher(teachers(family))
    odd = NormalizedTextConfig.with_args(hidden_size="vocab_size")
    monkeypatch.setitem(NormalizedConfigManager._conf, family, odd)
    with pytest.raises(UserError, match=r"says 32 hidden by .*, but 400 as optimum reads"):
        open_teacher(teachers(family))


def test_per_layer_settings_are_cut_along() -> None:
    """Lists with an entry per layer lose the dropped ones; the first windowed layer moves down."""
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "no_rope_layers": [1, 1, 1, 0],
        "max_window_layers": 2,
        "eos_token_id": [1, 2, 3, 4],
        "_name_or_path": "somewhere",
    }
    assert cut_config(config, [0, 2, 3]) == {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "no_rope_layers": [1, 1, 0],
        "max_window_layers": 1,
        "eos_token_id": [1, 2, 3, 4],
    }
    assert config["num_hidden_layers"] == 4


@pytest.mark.parametrize("explicit", [True, False])
def test_sliding_windows_stay_with_their_layers(
    explicit: bool, teachers: Callable[..., Path], tmp_path: Path
) -> None:
    """A window of four tokens in layers 2 and 3 is still theirs where they are the student's 1 and 2."""
    teacher = teachers("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    if not explicit:  # older configs have no layer_types, only the count
        shutil.copytree(teacher, tmp_path / "older")
        teacher = tmp_path / "older"
        config = json.loads((teacher / "config.json").read_text())
        del config["layer_types"]
        (teacher / "config.json").write_text(json.dumps(config))
    truncate(teacher, KEEP, tmp_path / "student")
    student = open_whole(tmp_path / "student")
    assert student.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert torch.equal(logits(student), logits(cut_by_hand(teacher, KEEP)))


def test_arithmetic_bound_to_the_layer_number_is_refused(
    teachers: Callable[..., Path], tmp_path: Path
) -> None:
    """GPT-2's scale by layer number allows the first layers only, whose numbers stay."""
    teacher = teachers("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UserError, match="use --select first"):
        truncate(teacher, KEEP, tmp_path / "no")
    truncate(teacher, [0, 1], tmp_path / "yes")
    assert torch.equal(logits(open_whole(tmp_path / "yes")), logits(cut_by_hand(teacher, [0, 1])))


def test_a_classifier_is_no_teacher(gpt2_checkpoint: Path, tmp_path: Path) -> None:
    """A fine-tuned classifier has no head to carry over: refused, with what to do."""
    teacher = rewritten(
        gpt2_checkpoint, tmp_path / "classifier", lambda t: t | {"score.weight": torch.ones(2, 32)}
    )
    config = json.loads((teacher / "config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a classifier"):
        truncate(teacher, KEEP, tmp_path / "student")


def test_control_has_the_student_s_shape_and_fresh_weights(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Random start: same tensors, tokenizer and dtype as the cut student; the seed decides the weights."""
    truncate(llama_checkpoint, KEEP, tmp_path / "cut")
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        randomize(llama_checkpoint, KEEP, seed, tmp_path / name)
        open_whole(tmp_path / name)
    cut, a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "a", "b", "c"))
    assert {n: (t.shape, t.dtype) for n, t in cut.items()} == {n: (t.shape, t.dtype) for n, t in a.items()}
    weight = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(a[weight], b[weight])
    assert not torch.equal(a[weight], c[weight])
    assert not torch.equal(a[weight], cut[weight])
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (llama_checkpoint / "tokenizer.json").read_bytes()
