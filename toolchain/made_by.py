"""The command that makes a classifier, kept beside it: what a report prints as how it was made."""

from pathlib import Path
from typing import Any

from devices.files import read_json, write_json


def record_command(classifier: Path, command: str) -> dict[str, Any]:
    """The classifier's glue.json with `command` in it, written there if it names none yet.

    One that does was made earlier, by the command it names. The checkpoint's identity does not change.
    """
    path = classifier / "glue.json"
    record = read_json(path, "how the classifier was made")
    if not record.get("command"):
        record["command"] = command
        write_json(path, record)
    return record
