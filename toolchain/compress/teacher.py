"""From what the user calls a teacher (folder, hub id, GGUF file) to a checkpoint folder on this disk."""

import re
from collections.abc import Callable
from pathlib import Path

from devices.errors import UserError, unknown
from devices.files import make_cache, read_json, sha256, staged
from export.architecture import FAMILIES, describe_at
from toolchain.quiet import quiet, quiet_hub

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What is fetched from the hub: never pickles, never code, never the weights of another format.
HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "LICENSE",
    "README.md",
]


def resolve(teacher: str, cache: Path, say: Callable[[str], object] = lambda line: None) -> Path:
    """The checkpoint folder of `teacher`: a folder as it is, a GGUF file converted once, or a hub id fetched.

    An architecture that is not supported is refused by name from the config alone, before weights are
    fetched and before torch or transformers load. `cache` holds converted GGUF files by their hash; what
    comes from the hub lies in huggingface_hub's own cache (HF_HUB_CACHE; HF_HUB_OFFLINE is respected).
    UserError, one line, for everything that cannot be used. No code of a model repository is ever run.
    """
    path = Path(teacher)
    if teacher and path.is_dir():
        describe_at(path, read_json(path / "config.json", "the teacher's configuration"))
        return path
    if path.is_file():
        return from_gguf(path, cache, say)
    if not HUB_ID.fullmatch(teacher):
        raise UserError(
            f"{teacher}: no such folder or file; name a checkpoint folder, a GGUF file or a hub id"
        )
    return from_hub(teacher, say)


def teacher_name(teacher: str) -> str:
    """What `teacher` is called in records: a folder's or GGUF file's name, a hub id as it is."""
    path = Path(teacher)
    if not path.is_dir():
        return path.stem if path.is_file() else teacher
    path = path.resolve()
    repository = path.parent.parent.name  # models--org--name/snapshots/commit in the hub's cache
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return path.name


def from_hub(name: str, say: Callable[[str], object]) -> Path:
    """The snapshot folder of hub model `name`, fetched unless huggingface_hub's cache has it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        with quiet_hub():
            config = Path(snapshot_download(name, allow_patterns=["config.json"])) / "config.json"
            describe_at(config.parent, read_json(config, "the teacher's configuration"))
            say(f"{name}: no folder or file of that name here, so from the hub or its cache")
            return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise UserError(
            f"{name}: is gated; accept its terms on the hub and log in with `hf auth login`"
        ) from None
    except (OSError, HFValidationError, RuntimeError) as error:
        # Not found, offline, no network, a proxy's answer: the hub's client has one exception for each.
        raise UserError(
            f"{name}: no such folder or file here, and the hub cannot give it ({type(error).__name__}); "
            "check the name and the network, or fetch it first and name the folder"
        ) from None


def from_gguf(file: Path, cache: Path, say: Callable[[str], object]) -> Path:
    """`file` as a checkpoint folder in float32, converted by transformers once and then found by its hash."""
    name = gguf_architecture(file)
    if name not in FAMILIES:
        raise unknown("architecture", name, FAMILIES)
    home = cache / "gguf" / sha256(file)
    for config in home.glob("[!.]*/config.json"):  # not what a killed conversion left
        return config.parent
    folder = home / file.stem  # a folder named like the model, so that records made from it are, too
    say(f"{file.name}: converting to a checkpoint folder in float32, once")
    make_cache(home)
    with staged(folder) as staging, quiet():
        _convert(file, staging)
    return folder


def gguf_architecture(file: Path) -> str:
    """`general.architecture` of a GGUF file; UserError where the file is none or is damaged."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"{file}: is no GGUF file; name a checkpoint folder, a GGUF file or a hub id")
    from gguf import GGUFReader

    try:
        return str(GGUFReader(file).fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
        # The reader maps the file and trusts its counts; a short or damaged one fails in any of these.
        raise UserError(f"{file}: truncated or corrupt GGUF ({error}); copy or download it again") from None


def _convert(file: Path, staging: Path) -> None:
    """Read weights and tokenizer of GGUF `file` through transformers and save them as an HF folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine, not of the file: transformers' own OSErrors carry no number
        raise UserError(
            f"{file}: transformers cannot read this GGUF ({error}); use another quantization or the original"
        ) from None
    # The weights are plain floats now; save_pretrained refuses a model that still carries the marks.
    setattr(model, "hf_quantizer", None)  # noqa: B010 - torch types every attribute as a tensor
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
