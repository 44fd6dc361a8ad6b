"""Real artifacts of tiny random models, and a text to measure them on."""

import pytest

from export.build import export


@pytest.fixture(scope="session")
def artifacts(gpt2_checkpoint, llama_checkpoint, tmp_path_factory):
    """A GPT-2 as fp32 and as int8, and a Llama as fp32; read only."""
    root = tmp_path_factory.mktemp("artifacts")
    made = {"gpt2-fp32": gpt2_checkpoint, "gpt2-int8": gpt2_checkpoint, "llama-fp32": llama_checkpoint}
    for name, checkpoint in made.items():
        export(checkpoint, root / name, name.split("-")[1], parity=False)
    return [root / name for name in made]
