"""Self-distillation: Furlanello et al. 2018, "Born-Again Networks" (arXiv 1805.04770); Tf-KD_self of
Yuan et al. 2020 (arXiv 1909.11723), the loss L_self. The loss is kd's.

The teacher is a frozen fine-tuned copy of the student: made first with the same settings where none is given.
"""

from toolchain.glue.methods import kd
from toolchain.glue.methods.method import Method

METHOD = Method(
    "kd with a fine-tuned copy of the student itself as teacher, made first unless one is given (Yuan 2020)",
    (kd.stage,),
    teacher="own",
    options=kd.OPTIONS,
)
