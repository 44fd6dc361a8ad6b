"""optimum-onnx: its export, its graph optimisation, its dynamic quantization; its graphs run as they are."""

import time
from pathlib import Path
from typing import Any

import contract
import numpy as np
import onnx_loop


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy with the file that the settings name."""
    file = str(Path(request["model"]) / request["settings"]["file"])
    return contract.stepwise(request, lambda: onnx_loop.load(file, request["threads"]))


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """All that optimum-onnx can make of a checkpoint, in one folder.

    `model.onnx` as exported and its int8; for a decoder `last.onnx`, the same with the last position's
    logits; of what is compared at equal work also as optimum's optimizer fuses it, and int8 of both, with a
    scale per tensor or per channel.
    """
    out = Path(request["out"])
    _export(request["checkpoint"], out, request["task"])
    equal = "model.onnx"
    if request["task"] != "text-classification":
        _quantize(out, "model.onnx", per_channel=True)
        equal = "last.onnx"
        onnx_loop.slice_logits(out / "model.onnx", out / equal)
    for file in (equal, _optimize(out, equal)):
        for per_channel in (False, True):
            _quantize(out, file, per_channel)
    return {}


def export(request: dict[str, Any]) -> dict[str, Any]:
    """What a user does to get an int8 file: export, then quantize; no validation, as on our side."""
    began = time.perf_counter()
    out = Path(request["out"])
    _export(request["checkpoint"], out, "text-generation-with-past")
    exported = time.perf_counter()
    _quantize(out, "model.onnx", per_channel=True)
    return {"export_s": exported - began, "quantize_s": time.perf_counter() - exported}


def _export(checkpoint: str, out: Path, task: str) -> None:
    from optimum.exporters.onnx import main_export

    main_export(checkpoint, output=out, task=task, do_validation=False)


def _optimize(folder: Path, file: str) -> str:
    """optimum's own fusions for GPT-2, at the highest level that stays exact; the name of what it wrote.

    Shapes are inferred as ONNX Runtime advises before quantizing: its quantizer stops at fused operators.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from optimum.onnxruntime import OptimizationConfig, ORTOptimizer

    optimizer = ORTOptimizer.from_pretrained(folder, file_names=[file])
    optimizer.optimize(OptimizationConfig(optimization_level=2), save_dir=folder)
    made = folder / f"{Path(file).stem}_optimized.onnx"
    quant_pre_process(str(made), str(made), skip_optimization=True)
    made.with_name(f"{made.name}.data").unlink(missing_ok=True)  # its weights are in the file now
    return made.name


def _quantize(folder: Path, file: str, per_channel: bool) -> None:
    """Dynamic int8 as optimum configures it for the instruction set of this machine."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    flags = Path("/proc/cpuinfo").read_text()
    choose = AutoQuantizationConfig.avx512_vnni if "avx512_vnni" in flags else AutoQuantizationConfig.avx2
    config = choose(is_static=False, per_channel=per_channel)
    quantizer = ORTQuantizer.from_pretrained(folder, file_name=file)
    suffix = "int8-channel" if per_channel else "int8"
    quantizer.quantize(save_dir=folder, quantization_config=config, file_suffix=suffix)


def classify(request: dict[str, Any]) -> dict[str, Any]:
    """Rows padded to the longest of their batch, on the right, as a GPT-2 tokenizer does it."""
    file = str(Path(request["model"]) / request["settings"]["file"])
    session = onnx_loop.open_session(file, request["threads"])
    load_s = time.perf_counter() - contract.BEGAN
    names = {value.name for value in session.get_inputs()}

    def run(rows: list[list[int]]) -> None:
        for batch in contract.batches(rows, request["batch"], request["sort"]):
            ids = np.full((len(batch), max(map(len, batch))), request["pad"], dtype=np.int64)
            mask = np.zeros_like(ids)
            for at, row in enumerate(batch):
                ids[at, : len(row)], mask[at, : len(row)] = row, 1
            feeds = {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
            }
            session.run(["logits"], {name: feeds[name] for name in names})

    run(request["rows"][: len(request["rows"]) // 8 or 1])
    return contract.passes(request, lambda: run(request["rows"]), load_s)


if __name__ == "__main__":
    contract.answer({"generate": generate, "classify": classify, "convert": convert, "export": export})
