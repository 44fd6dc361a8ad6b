"""A byte-level BPE of one's own, for a model trained from nothing."""

from collections.abc import Iterable
from pathlib import Path

from devices.files import write_json

EOS = "<|endoftext|>"


def train_bpe(texts: Iterable[str], vocab: int, folder: Path, positions: int) -> int:
    """Train GPT-2's kind of tokenizer (byte-level BPE) on `texts` and write its files into `folder`.

    Returns the id of the end-of-text token, which is the only special one and the first.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOS),
    }
    write_json(folder / "tokenizer_config.json", settings)
    return int(tokenizer.token_to_id(EOS) or 0)
