"""The rules as datatrove's pipeline steps, each keeping count of what it dropped and why.

Imports datatrove, so only the process that cleans imports this.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline import filters
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupFilter,
    SentDedupConfig,
    SentenceDedupFilter,
    SentenceDedupSignature,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from devices.errors import UserError
from devices.files import write_json
from devices.process import end_with
from toolchain.corpus.clean.rules import DUPLICATES, LINE_RULES, NEAR_DUPLICATES, key
from toolchain.corpus.documents import Part, documents

EXAMPLES = 3  # of what a rule dropped, from each task
SHOWN = 160  # characters of an example
# datatrove's default hash, xxhash, is refused strings by the xxhash that datasets brings.
HASH = HashConfig(hash_fc="sha1")
LINES = SentDedupConfig(
    n_sentences=1, split_sentences=False, min_doc_words=0, min_num_sentences=0, hash_config=HASH
)


class Words(WordTokenizer):
    """Words as white space separates them: datatrove's own splitters need spaCy, and a language."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """The lines of `text`."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Never asked: where sentences matter they are lines."""
        raise NotImplementedError


WORDS = Words()


class Tally:
    """What one task of one step saw or dropped: counts, reasons and examples by rule, as JSON when it is done."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rules: dict[str, dict[str, Any]] = {}

    def add(self, rule: str, text: str, *, documents: int = 0, reason: str | None = None) -> None:
        """Count `text`, by its lines that are not blank; keep it as an example of `rule` where there are few."""
        found = self.rules.setdefault(
            rule, {"documents": 0, "lines": 0, "characters": 0, "reasons": {}, "examples": []}
        )
        found["documents"] += documents
        found["lines"] += sum(1 for line in text.splitlines() if line.strip())
        found["characters"] += len(text)
        if reason:
            found["reasons"][reason] = found["reasons"].get(reason, 0) + 1
        if len(found["examples"]) < EXAMPLES:
            found["examples"].append(" ".join(text[: 4 * SHOWN].split())[:SHOWN])

    def save(self) -> None:
        """Write it, whole."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.rules)


@contextmanager
def tally(folder: str, rank: int) -> Iterator[Tally]:
    """A count that is written once the task's last document has passed."""
    found = Tally(Path(folder) / f"{rank:05d}.json")
    yield found
    found.save()


class Source(PipelineStep):
    """The documents of the part whose number is the task's."""

    type = "READER"
    name = "parts"

    def __init__(self, parts: list[Part], errors: str) -> None:
        super().__init__()
        self.parts, self.errors = parts, Path(errors)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield one document for each text; a part that was never written has none.

        What is wrong with a text is also left as a file: a job on another machine has nobody to tell.
        """
        if os.environ.get("DATATROVE_EXECUTOR") == "LOCAL":  # elsewhere a cluster ends its tasks
            end_with(os.getppid())
        part = self.parts[rank]
        try:
            for number, text in enumerate(documents(part) if Path(part.file).is_file() else ()):
                if text.strip():
                    yield Document(text=text, id=f"{rank:05d}/{number}")
        except UserError as error:
            self.errors.mkdir(exist_ok=True)
            (self.errors / f"{rank:05d}").write_text(str(error), encoding="utf-8")
            raise


class After(PipelineStep):
    """Lets a task begin only when all tasks of the stage before are done: a cluster may start it all the same.

    What is not there yet would count as empty, and its documents would be lost without a word.
    """

    type = "CHECK"
    name = "after"

    def __init__(self, stage: str, tasks: int) -> None:
        super().__init__()
        self.stage, self.tasks = Path(stage), tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass `data` on."""
        done = len(list((self.stage / "completions").glob("*")))
        if done < self.tasks:
            raise RuntimeError(f"{self.stage.name}: only {done} of {self.tasks} tasks are done")
        return data


class Count(PipelineStep):
    """Lets every document pass, and counts it under a name of its own."""

    type = "STATS"
    name = "count"

    def __init__(self, what: str, counts: str) -> None:
        super().__init__()
        self.what, self.counts = what, counts

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield what comes."""
        with tally(self.counts, rank) as count:
            for document in data:
                count.add(self.what, document.text, documents=1)
                yield document


class Lines(PipelineStep):
    """Drops lines by the paper's rules, and documents without a line left; blank lines go as well."""

    type = "FILTER"
    name = "lines"

    def __init__(self, rules: tuple[str, ...], counts: str) -> None:
        super().__init__()
        self.rules, self.counts = rules, counts

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield what is left of each document."""
        rules = [(name, LINE_RULES[name]) for name in self.rules]
        with tally(self.counts, rank) as count:
            for document in data:
                kept, last = [], ""
                for line in filter(str.strip, document.text.splitlines()):
                    rule = next((name for name, drops in rules if drops(line)), None)
                    if rule is None:
                        kept.append(line.rstrip())
                        continue
                    last = rule
                    count.add(rule, line)
                if kept:
                    document.text = "\n".join(kept)
                    yield document
                elif last:
                    count.rules[last]["documents"] += 1


class Whole(PipelineStep):
    """Drops documents by one of datatrove's filters."""

    type = "FILTER"

    def __init__(self, rule: str, counts: str) -> None:
        self.name = rule
        super().__init__()
        self.rule, self.counts, self.judge = rule, counts, WHOLE[rule]()

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents that pass."""
        with tally(self.counts, rank) as count:
            for document in data:
                passed, reason = get_filter_result(self.judge.filter(document))
                if passed:
                    yield document
                else:
                    count.add(self.rule, document.text, documents=1, reason=reason)


def _repetition() -> BaseFilter:
    return filters.GopherRepetitionFilter(language=WORDS)


def _gopher() -> BaseFilter:
    return filters.GopherQualityFilter(language=WORDS)


def _fineweb() -> BaseFilter:
    return filters.FineWebQualityFilter(language=WORDS)


WHOLE = {"repetition": _repetition, "gopher-quality": _gopher, "fineweb-quality": _fineweb}


class LineSignatures(SentenceDedupSignature):
    """datatrove's sentence deduplication, on lines and by the paper's key."""

    def __init__(self, folder: str, finders: int) -> None:
        super().__init__(folder, finder_workers=finders, config=LINES, language=WORDS)

    def get_hashes(self, doc: Document, doc_idx: int) -> list[tuple[int, int, int]]:
        """(hash of the key, document, line) of every line that is not blank."""
        lines = enumerate(doc.text.splitlines())
        return [(self.hash_fc(key(line)), doc_idx, number) for number, line in lines if line.strip()]


class LineFilter(SentenceDedupFilter):
    """Drops the lines that `LineSignatures` found elsewhere, all but one of each."""

    def __init__(self, folder: str, counts: str) -> None:
        super().__init__(folder, config=LINES, language=WORDS)
        self.counts = counts

    def remove_dup_sentences(self, doc: Document, du_lines: Any) -> tuple[str, str]:
        """The document's text without those lines, which are counted."""
        kept, formatted = super().remove_dup_sentences(doc, du_lines)
        lines = doc.text.splitlines()
        for number in du_lines:
            self.count.add(DUPLICATES, lines[number])
        self.count.rules[DUPLICATES]["documents"] += not kept
        return kept, formatted

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield what is left of each document."""
        with tally(self.counts, rank) as self.count:
            yield from super().run(data, rank, world_size)


class Excluded:
    """Takes the documents that MinHash drops where datatrove wants a writer, and counts them."""

    count: Tally

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def write(self, document: Document, rank: int) -> None:
        """Count a document that is like another."""
        self.count.add(NEAR_DUPLICATES, document.text, documents=1)


class NearFilter(MinhashDedupFilter):
    """Drops the documents that MinHash found to be like another."""

    def __init__(self, folder: str, counts: str) -> None:
        self.excluded = Excluded()
        super().__init__(folder, exclusion_writer=self.excluded)
        self.counts = counts

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents that are left."""
        with tally(self.counts, rank) as self.excluded.count:
            yield from super().run(data, rank, world_size)


def writer(folder: str) -> JsonlWriter:
    """Writes a task's documents as {"text": ...} lines of one file."""
    return JsonlWriter(folder, "${rank}.jsonl", compression=None, adapter=_row)


def _row(self: JsonlWriter, document: Document) -> dict[str, str]:
    return {"text": document.text}
