"""What a session finds out about the processor before it runs integers on it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devices import session
from devices.artifact import open_artifact
from devices.errors import UserError
from devices.machine import exact_int8, isa


def test_the_probe_is_what_its_docstring_says():
    """saturation.onnx is one MatMulInteger by weights of 127, and nothing else."""
    made = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "exact",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
        [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b")],
    )
    assert onnx.load(session.PROBE).graph == made


class Saturating:
    """ONNX Runtime's answer on a processor that adds two products in 16 bits: Haswell, emulated, gave this."""

    def __init__(self, path, **_):
        assert path == str(session.PROBE)

    def run(self, _, feeds):
        """Sums of 32 pairs, each at its top."""
        assert (feeds["a"] == 255).all()
        return [np.full((4, 16), 32 * 32767, np.int32)]


def test_half_the_sum_is_saturation(monkeypatch):
    """Sums of pairs that stop at 2^15 - 1 are seen."""
    monkeypatch.setattr(session.ort, "InferenceSession", Saturating)
    assert session.saturates() is True


@pytest.mark.skipif(not exact_int8(isa() or ()), reason="this processor has no VNNI and is not ARM")
def test_a_processor_with_exact_sums_passes():
    """What the instruction sets promise is what ONNX Runtime's kernel does here."""
    assert session.saturates() is False


def test_8_bit_rows_are_refused_where_they_saturate(decoder_folder, monkeypatch):
    """An artifact that needs exact sums does not run where they are not: one line with the recipe to use."""
    artifact = open_artifact(decoder_folder)
    artifact.manifest["recipe"] = {"name": "int8-vnni", "needs": "vnni"}
    monkeypatch.setattr(session, "saturates", lambda: True)
    with pytest.raises(UserError, match="export it with --recipe int8-dynamic"):
        session.open_session(artifact, 1)
    monkeypatch.setattr(session, "saturates", lambda: False)
    session.open_session(artifact, 1)
