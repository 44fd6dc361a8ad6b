"""Text to token ids, by rules that training, evaluation and the runtime share.

The tokenizers library is loaded with the first tokenizer: a program that handles ids alone never needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or artifact folder, without the truncation and padding it may carry."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no tokenizer.json; give token ids, or add the model's tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a malformed file
        raise UserError(f"{path}: not a tokenizer ({error}); copy it again from the model") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a running text (a corpus): no special tokens added, so that any cut of it is plain text."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def read_text(path: Path) -> str:
    """A UTF-8 file's whole text, newlines as they are, without a byte order mark; UserError if it is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a UTF-8 text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert the text to UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: holds no text; name another")
    return text


def refuse_broken(text: str, what: str) -> None:
    """UserError if `text` holds lone surrogates: what Python makes of an argument's bytes that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: not UTF-8 at character {error.start}; give it in UTF-8") from None


def encode_row(
    tokenizer: Tokenizer, text_a: str, text_b: str | None, max_tokens: int, separator_id: int
) -> list[int]:
    """Ids of a row to classify, 1 to `max_tokens` of them: text_a, or text_a, the separator, text_b.

    text_a is encoded as the tokenizer does by default (a first token such as <s> included), text_b without
    special tokens. What is too long loses tokens from the end of its longer side, text_b first at a tie, so
    that a short sentence stays whole beside a long one. A row without any token becomes the separator alone.
    None ends in the separator otherwise: it pads too, and a classifier reads the last token that is no padding.
    """
    ids = _row(tokenizer, text_a, text_b, max_tokens, separator_id)
    while len(ids) > 1 and ids[-1] == separator_id:
        ids.pop()
    return ids or [separator_id]


def _row(
    tokenizer: Tokenizer, text_a: str, text_b: str | None, max_tokens: int, separator_id: int
) -> list[int]:
    first = tokenizer.encode(text_a).ids
    if text_b is None:
        return first[:max_tokens]
    second = encode_text(tokenizer, text_b)
    room = max(max_tokens - 1, 0)
    keep_b = min(len(second), max(room // 2, room - len(first)))
    keep_a = min(len(first), room - keep_b)
    return [*first[:keep_a], separator_id, *second[:keep_b]]


def special_ids(folder: Path) -> dict[str, list[int]]:
    """`eos`, `bos` and `pad` ids a folder names: generation_config.json's before config.json's.

    Each may be one id, a list of ids or absent there; the answer is always a list, empty where none is named.
    """
    found: dict[str, list[int]] = {"eos": [], "bos": [], "pad": []}
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        config = read_json(path, "the model's configuration")
        for key in found:
            found[key] = found[key] or _ids(path, f"{key}_token_id", config.get(f"{key}_token_id"))
    return found


def _ids(path: Path, key: str, value: Any) -> list[int]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise UserError(f"{path}: {key} must be a token id or a list of them, found {json.dumps(value)[:60]}")
    return values
