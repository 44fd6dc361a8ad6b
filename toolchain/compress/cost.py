"""What training costs: arithmetic per token, the machine's peak, and energy where a counter can be read.

Energy is read from the counters themselves, in a few lines: Linux's RAPL files, and a GPU's through NVML's Python
binding where that is installed. codecarbon reads the same ones, brings a dozen packages of its own, and where
there is no counter it estimates from tables; here that is null.
"""

import contextlib
from pathlib import Path
from typing import Any

from export.architecture import Architecture, layer_tensors

POWERCAP = Path("/sys/class/powercap")
SIZE, ROUNDS = 8192, 20  # the matrix product that the peak is measured with


def flops_per_token(arch: Architecture, window: int, teacher: Architecture | None = None) -> float:
    """Floating-point operations to train on one token: 6 N + 12 · layers · hidden · window.

    N are the weights that a token is multiplied with: the layers' and the output's, not the tables that it is
    looked up in. Attention is counted over the whole window, recomputation is not (Chowdhery et al. 2022, "PaLM",
    2204.02311, appendix B). A teacher that runs along adds its forward pass, a third of that.
    """

    def trained(one: Architecture) -> float:
        layers = sum(_size(shape) for i in range(one.layers) for _, shape in layer_tensors(one, i).values())
        return 6.0 * (layers + one.vocab * one.hidden) + 12.0 * one.layers * one.heads * one.head_dim * window

    return trained(arch) + (trained(teacher) / 3 if teacher else 0.0)


def _size(shape: Any) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def peak_flops() -> float | None:
    """Floating-point operations a second of a plain bf16 matrix product on this GPU, measured now; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    one = torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        one @ one
    start.record()
    for _ in range(ROUNDS):
        one @ one
    end.record()
    torch.cuda.synchronize()
    return 2.0 * SIZE**3 * ROUNDS / (start.elapsed_time(end) / 1000)


class Energy:
    """Joules that this machine's processors and GPU have used since it was made, None without a counter.

    RAPL's counters turn over within the hour at full load: `joules` must be asked more often than that.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.used = 0.0
        self.packages = [
            folder
            for folder in sorted(powercap.glob("*:*"))
            if folder.name.count(":") == 1 and _read(folder) is not None
        ]
        self.last = [_read(folder) for folder in self.packages]
        self.gpu = _gpu_joules()

    def joules(self) -> float | None:
        """Until now."""
        for i, folder in enumerate(self.packages):
            now, before = _read(folder), self.last[i]
            if now is None or before is None:
                continue
            turn = _read(folder, "max_energy_range_uj") or 0.0
            self.used += now - before + (turn if now < before else 0.0)
            self.last[i] = now
        gpu = _gpu_joules()
        if gpu is None or self.gpu is None:
            return self.used if self.packages else None
        return self.used + gpu - self.gpu


def _read(folder: Path, name: str = "energy_uj") -> float | None:
    """A RAPL file in joules; None where it is missing or kept from users, as most systems do."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / name).read_text()) / 1e6
    return None


def _gpu_joules() -> float | None:
    """The first visible GPU's counter, through NVML; None without one, or without its binding."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000
    except pynvml.NVMLError:
        return None
