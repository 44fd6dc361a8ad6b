"""A corpus by name or path: documents, a train and a held-out part, and a hash that names the text."""

import difflib
import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import UserError
from devices.files import cache_folder, make_cache
from devices.text import load_tokenizer
from toolchain.corpus import stdlib
from toolchain.corpus.documents import BUILDERS
from toolchain.quiet import quiet_datasets

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

HELDOUT_SHARE = 20  # one document in so many is held out, by the hash of its text
REPORT = "clean.json"  # what `toolchain clean` says of the text beside it; no text itself
STRINGS = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Corpus:
    """A named text: `train` and `heldout` are datasets with one column `text`, a row per document."""

    name: str
    sha256: str
    train: "Dataset"
    heldout: "Dataset"


def load(spec: str, heldout: str | None = None) -> Corpus:
    """The corpus that `spec` names: `stdlib`, a .txt/.jsonl/.parquet file, a folder of them, or `hub:NAME[:CONFIG]`.

    A text file's documents are its paragraphs; a jsonl or parquet file's are the rows of its column `text`.
    Where `heldout` names no corpus of its own, one document in 20 is held out by the hash of its text.

    Raises:
        UserError: nothing there, no text in it, no column `text` of strings, a wrong encoding, an
            unreachable hub.
    """
    from datasets import Dataset

    if spec == "stdlib":
        texts, held = (Dataset.from_dict({"text": list(part)}) for part in stdlib.split())
    else:
        texts = _documents(spec)
        held = None
    if heldout is not None:
        held = _documents(heldout) if heldout != "stdlib" else load("stdlib").heldout
    elif held is None:
        side = [
            int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELDOUT_SHARE == 0 for text in texts["text"]
        ]
        held = texts.select([i for i, out in enumerate(side) if out])
        texts = texts.select([i for i, out in enumerate(side) if not out])
    for part, what in ((texts, "text to train on"), (held, "held-out text (name some with --heldout)")):
        if not len(part):
            raise UserError(f"corpus '{spec}': holds no {what}; name a larger one")
    return Corpus(spec, _sha256([*texts["text"], "\0", *held["text"]]), texts, held)


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _documents(spec: str) -> "Dataset":
    """All documents of a file, a folder or a hub dataset, those without a word left out."""
    from datasets import concatenate_datasets, config

    make_cache(Path(config.HF_DATASETS_CACHE))
    with quiet_datasets():
        hub = spec.startswith("hub:")
        parts = [_hub(spec)] if hub else [_file(path) for path in text_files(Path(spec))]
        texts = concatenate_datasets(parts)
        return texts.filter(lambda text: bool(text and text.strip()), input_columns="text")


def text_files(path: Path) -> list[Path]:
    """`path` itself or the files below it, of the kinds that are read; UserError where there is none."""
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in BUILDERS)
        files = [file for file in found if file.name != REPORT]
        if not files:
            raise UserError(f"corpus '{path}': no {', '.join(BUILDERS)} file in this folder; put text there")
        return files
    if not path.exists():
        hint = "did you mean stdlib?" if _near_stdlib(str(path)) else "name one, or stdlib, or hub:NAME"
        raise UserError(f"corpus '{path}': no such file or folder; {hint}")
    if path.suffix not in BUILDERS:
        raise UserError(
            f"corpus '{path}': cannot read '{path.suffix}' files; use one of {', '.join(BUILDERS)}"
        )
    return [path]


def _near_stdlib(spec: str) -> bool:
    return bool(difflib.get_close_matches(spec.lower(), ["stdlib"], cutoff=0.7))


def _file(path: Path) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if path.stat().st_size == 0:
        raise UserError(f"corpus '{path}': is empty; name a file with text in it")
    builder = BUILDERS[path.suffix]
    try:
        if builder == "text":
            return _paragraphs(path)
        data = load_dataset(builder, data_files=glob.escape(str(path)), split="train")
    except (DatasetGenerationError, UnicodeDecodeError, ValueError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError) or (isinstance(cause, OSError) and cause.errno):
            raise cause from None  # said already, or a full disk, say: not the text's fault
        form = builder if builder == "parquet" else f"{builder} in UTF-8"
        raise UserError(f"corpus '{path}': cannot be read as {form} ({cause}); convert it") from None
    return _texts(data, str(path))


def _paragraphs(path: Path) -> "Dataset":
    """The paragraphs of a text file, as `toolchain clean` reads them.

    The `text` builder of datasets ends a paragraph at an empty line only, and WikiText's hold a blank.
    """
    from datasets import Dataset, Features, Value

    from toolchain.corpus.documents import texts

    about = path.stat()
    kwargs = {"file": str(path.resolve()), "stamp": (about.st_size, about.st_mtime_ns)}
    return Dataset.from_generator(texts, Features(text=Value("string")), gen_kwargs=kwargs)


def _hub(spec: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    _, name, config = [*spec.split(":"), ""][:3]
    if not name:
        raise UserError(f"corpus '{spec}': names no data set; say hub:NAME or hub:NAME:CONFIG")
    try:
        data = load_dataset(name, config or None, split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # Each release of datasets wraps network faults otherwise.
        raise UserError(
            f"corpus 'hub:{name}': cannot be fetched ({error}); check the name and the network"
        ) from None
    return _texts(data, f"hub:{name}")


def export_hub(spec: str, cache: Path | None = None) -> Path:
    """The documents of hub:NAME[:CONFIG] as a jsonl file in the cache, named by the data set's fingerprint."""
    root = make_cache(cache or cache_folder("corpus"))
    data = _documents(spec)
    path = root / f"hub-{data._fingerprint}.jsonl"
    if not path.is_file():
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with quiet_datasets():
            data.to_json(partial)
        partial.replace(path)
    return path


def _texts(data: "Dataset", spec: str) -> "Dataset":
    """The column `text` alone, as strings; UserError where there is none or it holds something else."""
    from datasets import Value

    if "text" not in data.column_names:
        raise UserError(
            f"corpus '{spec}': has no column 'text' (has {', '.join(data.column_names)}); rename one"
        )
    kind = getattr(data.features["text"], "dtype", "no text")
    if kind not in STRINGS:
        # A line of JSON that is no object comes from datasets as a column 'text', too.
        raise UserError(f"corpus '{spec}': holds {kind}, not strings in a column 'text'; convert it")
    data = data.select_columns("text")
    return data if kind == "string" else data.cast_column("text", Value("string"))


def pack(texts: "Dataset", tokenizer: Path, eos: int | None, window: int) -> "np.ndarray":
    """Tokenize documents, put `eos` after each, and cut the stream into full blocks: int64 [blocks, window].

    What is left at the end and fills no block is dropped.

    Raises:
        UserError: the text is shorter than one block, the tokenizer is missing or damaged.
    """
    import numpy as np

    coder = load_tokenizer(tokenizer)
    end = [] if eos is None else [eos]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids + end for e in coder.encode_batch(batch["text"], add_special_tokens=False)]}

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with quiet_datasets():
        ids = texts.map(encode, batched=True, remove_columns=texts.column_names)
    stream = ids.with_format("arrow").data.column("ids").combine_chunks().flatten().to_numpy()
    blocks = len(stream) // window
    if not blocks:
        raise _no_block(len(stream), window)
    return np.asarray(stream[: blocks * window], np.int64).reshape(blocks, window)


def sample(
    texts: "Dataset", tokenizer: Path, eos: int | None, window: int, tokens: int, seed: int
) -> "np.ndarray":
    """About `tokens` tokens of documents drawn with `seed`, packed as `pack` does: int64 [blocks, window].

    Blocks are whole, the last one rounded up; fewer where the text has no more. Only what is drawn is
    tokenized. UserError where the text fills no block.
    """
    import numpy as np

    wanted = -(-tokens // window) * window
    coder, stream = load_tokenizer(tokenizer), []
    for row in np.random.default_rng(seed).permutation(len(texts)):
        stream += coder.encode(texts[int(row)]["text"], add_special_tokens=False).ids
        stream += [] if eos is None else [eos]
        if len(stream) >= wanted:
            break
    blocks = min(len(stream), wanted) // window
    if not blocks:
        raise _no_block(len(stream), window)
    return np.asarray(stream[: blocks * window], np.int64).reshape(blocks, window)


def _no_block(tokens: int, window: int) -> UserError:
    return UserError(
        f"corpus: {tokens} tokens fill no block of {window}; name a larger one or a smaller --window"
    )


def heldout_file(spec: str, cache: Path | None = None) -> Path:
    """A text file to evaluate on: the held-out part of `stdlib`, or `spec` itself where it is plain text.

    Of a jsonl or parquet file it is the records, as training reads them, with a blank line between. What is
    not there as plain text is written once to the cache.
    """
    if spec != "stdlib":
        path = Path(spec)
        if not path.is_file():
            hint = "did you mean stdlib?" if _near_stdlib(spec) else "name one, or stdlib"
            raise UserError(f"corpus '{spec}': no such text file; {hint}")
        return path if BUILDERS.get(path.suffix, "text") == "text" else _records_file(path, cache)
    return _stdlib_file("heldout", 1, cache)


def calibration_file(spec: str, cache: Path | None = None) -> Path:
    """A text file to calibrate on: the train part of `stdlib`, which nothing is measured on, or `spec` itself."""
    return heldout_file(spec, cache) if spec != "stdlib" else _stdlib_file("train", 0, cache)


def _records_file(file: Path, cache: Path | None) -> Path:
    """The documents of a jsonl or parquet file as plain text, named by the file and the text's hash."""
    text = "\n\n".join(_documents(str(file))["text"])
    if not text:
        raise UserError(f"corpus '{file}': holds no text; name another")
    root = make_cache(cache or cache_folder("corpus"))
    path = root / f"{file.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    _write(path, text)
    return path


def _stdlib_file(part: str, side: int, cache: Path | None) -> Path:
    """A part of `stdlib` as a file in the cache, written once.

    Reading the whole library takes seconds: which text it gave is remembered for this Python and this code.
    """
    root = cache or cache_folder("corpus")
    made_by = (
        sys.version + sysconfig.get_paths()["stdlib"] + Path(stdlib.__file__).read_text(encoding="utf-8")
    )
    remembered = root / f"stdlib-{part}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.name"
    if remembered.is_file() and (path := root / Path(remembered.read_text(encoding="utf-8")).name).is_file():
        return path
    make_cache(root)
    text = "\n\n".join(stdlib.split()[side])
    path = root / f"stdlib-{part}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    _write(path, text)
    _write(remembered, path.name)
    return path


def _write(path: Path, text: str) -> None:
    """Write a file in one rename: a reader sees all of it or none."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
