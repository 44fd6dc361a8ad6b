"""How to fine-tune, by name: each method in a file with its source."""

from toolchain.glue.methods import (
    annealing,
    combined,
    finetune,
    kd,
    label_smoothing,
    mate,
    pkd,
    rail,
    self_kd,
    tf_reg,
)
from toolchain.glue.methods.method import Method

METHODS: dict[str, Method] = {
    "finetune": finetune.METHOD,
    "label-smoothing": label_smoothing.METHOD,
    "tf-reg": tf_reg.METHOD,
    "self-kd": self_kd.METHOD,
    "kd": kd.METHOD,
    "rail": rail.METHOD,
    "annealing": annealing.METHOD,
    "mate": mate.METHOD,
    "combined": combined.METHOD,
    "pkd": pkd.METHOD,
}
