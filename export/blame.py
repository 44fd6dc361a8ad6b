"""Which part of a model to keep at higher precision when a gate fails: each is tried, and measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from shutil import rmtree

from devices.artifact import Artifact
from export.architecture import Architecture
from export.checkpoint import Checkpoint
from export.gates import Gates, Quality, failures, figures_text
from export.graph import write_graph
from export.recipes import Recipe, layer_bits
from export.weights import Source

# What is tried together, each by the name that `Recipe.parts` has for it.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("embedding", "head"),
    ("qkv",),
    ("o",),
    ("up", "gate"),
    ("down",),
    ("first",),
    ("last",),
)
HELPS = 0.9  # a part that leaves more of the distance from PyTorch is not worth naming
HIGHER = {4: 8, 8: 32}  # bits to try for a part that has so many
Probe = Callable[[Artifact], Quality]


@dataclass(frozen=True)
class Trial:
    """A part left out of the quantization: its `group`, the `bits` it had, the quality then, the bytes more."""

    group: tuple[str, ...]
    bits: int
    quality: Quality
    more: int

    def text(self) -> str:
        """What it buys and costs, as a part of a sentence."""
        bits = "in float" if self.bits == 32 else f"at {self.bits} bits"
        return f"{' and '.join(self.group)} {bits}: {figures_text(self.quality)}, {self.more / 1e6:+.2f} MB"


def variant(recipe: Recipe, names: tuple[str, ...], bits: int) -> Recipe:
    """The recipe with the parts `names` at `bits`."""
    return replace(recipe, parts={**recipe.parts, **dict.fromkeys(names, bits)})


def trials(
    artifact: Artifact,
    checkpoint: Checkpoint,
    arch: Architecture,
    recipe: Recipe,
    sources: Callable[[], Callable[..., Source]],
    probe: Probe,
    say: Callable[[str], None],
) -> list[Trial]:
    """Every part of GROUPS that the recipe quantizes, each alone at higher precision, by `probe`'s figures.

    Graphs are written into a folder below the artifact's and removed again.
    """
    folder, found = artifact.path / "variant", []
    stored = sum(artifact.manifest["bytes"].values())
    for group in GROUPS:
        names = tuple(name for name in group if _has(arch, name))
        bits = HIGHER.get(_bits(arch, recipe, names[0]))
        if bits is None:
            continue
        folder.mkdir()
        try:
            written = write_graph(checkpoint, arch, variant(recipe, names, bits), folder, "trial", sources())
            for file in artifact.path.glob("*.json"):  # the tokenizer and the ids of special tokens
                (folder / file.name).symlink_to(file.resolve())
            quality = probe(Artifact(folder, artifact.manifest, ""))
        finally:
            rmtree(folder, ignore_errors=True)
        found.append(Trial(names, bits, quality, sum(written.values()) - stored))
        say(found[-1].text())
    return found


def _has(arch: Architecture, name: str) -> bool:
    """Whether the model has a part of its own by that name."""
    if name == "head":
        return arch.kind == "decoder" and not arch.tied
    return name != "gate" or "gate" in arch.family.layer


def _bits(arch: Architecture, recipe: Recipe, name: str) -> int:
    """The bits that a part has in the recipe."""
    if name == "embedding":
        return recipe.parts.get(name, recipe.head_bits)
    layer = {"first": 0, "last": arch.layers - 1}.get(name, arch.layers // 2)
    return layer_bits(recipe, "qkv" if name in ("first", "last") else name, layer, arch.layers)


def advice(now: Quality, found: list[Trial], gates: Gates, sample: str) -> str:
    """Which part to keep, in a sentence; `now` is the artifact's quality on the `sample` the trials were made on.

    That is the cheapest part that is enough for all gates, or else what buys most.
    """
    ranked = sorted(found, key=lambda trial: _distance(trial.quality))
    better = [trial for trial in ranked if _distance(trial.quality) < HELPS * _distance(now)]
    if not better:
        return "No part alone helps; choose a recipe with more bits"
    without = f"(without: {figures_text(now)}; {sample})"
    enough = [trial for trial in better if not failures(trial.quality, gates)] if failures(now, gates) else []
    if enough:
        return f"Keep {min(enough, key=lambda trial: trial.more).text()} {without}"
    then = f", then {better[1].text()}" if len(better) > 1 else ""
    return f"No part alone is enough; what buys most is {better[0].text()} {without}{then}"


def _distance(quality: Quality) -> float:
    """How far from PyTorch: what ranks parts. Argmax on a small sample would not, it moves in steps."""
    if task := quality.get("task"):
        return task["pytorch"] - task["artifact"]
    return quality["whole"]["nll_error"]
