import json
from dataclasses import replace

import onnx
import pytest

from devices.artifact import open_artifact
from export.architecture import check
from export.build import export
from export.checkpoint import open_checkpoint
from export.genai import CONFIG, genai_config

SPECIAL = {"bos": [1], "eos": [2, 3], "pad": []}
SIZES = {"gpt2": {}, "llama": {}, "llama-16": {"hidden_size": 64}, "qwen3": {"head_dim": 16}}


@pytest.fixture(scope="module")
def gpt2(gpt2_checkpoint):
    """A GPT-2's architecture."""
    return check(open_checkpoint(gpt2_checkpoint))


@pytest.mark.parametrize("name", SIZES)
def test_it_names_what_the_graph_has(make_checkpoint, tmp_path, name):
    """Inputs, outputs and the cache's size are the graph's, for heads rotated inside the operator and outside."""
    export(make_checkpoint(name.split("-")[0], **SIZES[name]), tmp_path / "out", parity=False)
    artifact = open_artifact(tmp_path / "out")
    assert CONFIG in artifact.manifest["files"]
    decoder = json.loads((artifact.path / CONFIG).read_text())["model"]["decoder"]
    graph = onnx.load(str(artifact.path / decoder["filename"]), load_external_data=False).graph
    layers = range(decoder["num_hidden_layers"])

    def filled(names):
        return {each % i if "%d" in each else each for each in names.values() for i in layers}

    defaults = {tensor.name for tensor in graph.initializer}
    assert filled(decoder["inputs"]) == {v.name for v in graph.input} - defaults
    assert filled(decoder["outputs"]) == {v.name for v in graph.output}
    past = next(v for v in graph.input if v.name == "past_key_values.0.key").type.tensor_type.shape.dim
    assert (decoder["num_key_value_heads"], decoder["head_size"]) == (past[1].dim_value, past[3].dim_value)


@pytest.mark.parametrize(
    ("model_type", "runtime"), [("gpt2", "decoder"), ("qwen3", "qwen3"), ("mistral", "mistral")]
)
def test_a_gpt2_is_a_decoder_among_others(gpt2, model_type, runtime):
    """The runtime's own gpt2 type wants another cache; the Llama family keeps its names."""
    found = genai_config(replace(gpt2, model_type=model_type), SPECIAL, {})
    assert found is not None and found["model"]["type"] == runtime


def test_what_it_cannot_run_gets_none(gpt2):
    """A classifier and an architecture it has no type for get no file, instead of one that fails."""
    assert genai_config(replace(gpt2, labels=2), SPECIAL, {}) is None
    assert genai_config(replace(gpt2, model_type="opt"), SPECIAL, {}) is None


def test_special_tokens(gpt2):
    """Every end token counts, padding falls back to the first, and nothing is made up."""
    model = genai_config(gpt2, SPECIAL, {})["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 3], 2)
    model = genai_config(gpt2, {**SPECIAL, "pad": [9]}, {})["model"]
    assert model["pad_token_id"] == 9
    model = genai_config(gpt2, {"bos": [], "eos": [], "pad": []}, {})["model"]
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & set(model)


def test_sampling_is_the_models(gpt2):
    """Sampling comes from generation_config.json, without nulls and strangers; greedy, all positions otherwise."""
    plain = genai_config(gpt2, SPECIAL, {})["search"]
    assert plain == {"do_sample": False, "max_length": 64, "past_present_share_buffer": True}
    generation = {"do_sample": True, "temperature": 0.6, "top_k": None, "max_length": 20, "use_cache": True}
    search = genai_config(gpt2, SPECIAL, generation)["search"]
    assert search == {**plain, "do_sample": True, "temperature": 0.6}
