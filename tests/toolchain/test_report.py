import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from devices.errors import UserError
from toolchain.report import report
from toolchain.report.join import COLUMNS, rows
from toolchain.report.lineage import students
from toolchain.report.load import load
from toolchain.report.page import content
from toolchain.report.tables import settings

sys.path.insert(0, str(Path(__file__).parent))
from report_samples import (
    STUDENTS,
    TEACHER,
    classifier,
    compression,
    decoder,
    demo,
    result,
    sha,
    write,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on the demo's results, made once."""
    folder = tmp_path_factory.mktemp("report")
    return report(demo(folder / "results"), folder / "out").parent


def flat(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder of results, without drawing anything."""
    found, baselines = load(folder)
    return rows(found, students(found), {entry["task"]: entry["value"] for entry in baselines})


def page_content(folder: Path) -> dict[str, Any]:
    """What the page of a folder of results would show."""
    found, _ = load(folder)
    known = students(found)
    return content(found, rows(found, known), known, None)


def read_csv(folder: Path) -> list[dict[str, str]]:
    """results.csv as rows of text."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_is_four_files_and_nothing_else(page: Path) -> None:
    """The folder holds the page, the same as text, the picture and the numbers; no staging is left."""
    assert sorted(p.name for p in page.iterdir()) == [
        "report.html",
        "report.md",
        "results.csv",
        "trade-off.png",
    ]
    assert (page / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in page.parent.iterdir()) == ["out", "results"]


def test_every_result_is_a_row_with_its_numbers_unrounded(page: Path) -> None:
    """15 language model artifacts, 4 classifiers and 5 checkpoints stand in the CSV as measured."""
    written = read_csv(page)
    assert tuple(written[0]) == COLUMNS
    assert len(written) == 24
    found = next(r for r in written if r["name"] == "distilled-int8")
    made = decoder("distilled", "int8")
    assert float(found["token_s_median"]) == made["token_s"]["median"]
    assert float(found["perplexity"]) == made["quality"]["perplexity"]["value"]
    assert found["teacher_sha256"] == sha(TEACHER)


def test_rows_are_joined_to_their_student_by_hash(page: Path) -> None:
    """A checkpoint in PyTorch and its artifacts carry one label, made from the lineage."""
    labels = {r["name"]: r["student"] for r in read_csv(page)}
    assert labels["demo-teacher"] == labels["demo-teacher-int4"] == "teacher, 12 layers"
    assert labels["cut-fp32"] == "6 layers pseudo-uniform, as cut"
    assert labels["healed"] == labels["healed-int8"] == "6 layers pseudo-uniform, healed 150k tokens"
    assert labels["distilled-docs-kind-int8"] == "6 layers pseudo-uniform, distilled 150k tokens"
    assert labels["from-nothing-fp32"] == "6 layers from nothing, 150k tokens"


def test_page_and_markdown_say_the_same_numbers(page: Path) -> None:
    """Every cell of a table in report.md stands in report.html."""
    html, text = (page / "report.html").read_text(), (page / "report.md").read_text()
    table = [x for x in text.splitlines() if x.startswith("| ") and "---" not in x and "weights" not in x]
    cells = {cell.strip(" ●").replace("\\", "") for line in table for cell in line.split("|")}
    assert len(table) > 20
    assert not [cell for cell in cells if cell not in html]


def test_names_and_marks_do_not_hide_each_other(tmp_path: Path) -> None:
    """The teacher's note stands where no leader passes; marks that lie on one another are seen through."""
    (figure,) = page_content(demo(tmp_path / "results"))["figures"]
    layers = figure["specs"]["token_s_median"]["wide"]["layer"]
    data = figure["specs"]["token_s_median"]["wide"].get("datasets", {})

    def values(layer: dict[str, Any]) -> list[dict[str, Any]]:
        return layer["data"].get("values") or data[layer["data"]["name"]]

    (note,) = [v for x in layers if x["mark"]["type"] == "text" for v in values(x) if "PyTorch" in v["text"]]
    leaders = [v for x in layers if x["mark"].get("strokeDash") == [1, 3] for v in values(x)]
    assert leaders and note["x"] < min(v["x"] for v in leaders)
    (points,) = [x["mark"] for x in layers if x["mark"]["type"] == "point"]
    assert points["fillOpacity"] < 1 and points["strokeWidth"] > 0


def test_the_page_needs_no_network(page: Path) -> None:
    """No element loads anything, and a policy forbids it to whatever might."""
    html = (page / "report.html").read_text()
    markup = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"\b(src|href|url|import)\b\s*[=(]", markup)
    assert "default-src 'none'" in html


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    """A model named <script>, or one that would end a script element, shows as text everywhere."""
    evil = "</script><script>alert(1)</script>|`{{ 7*7 }}"
    whole, cut = decoder(TEACHER, "fp32"), decoder("cut", "fp32")
    cut["subject"]["lineage"]["checkpoint"]["name"] = cut["subject"]["name"] = evil
    cut["subject"]["recipe"] = cut["device"]["name"] = whole["device"]["name"] = evil
    cut["subject"]["lineage"]["compression"] |= {"select": evil, "command": evil}
    made = report(write(tmp_path / "results", whole, cut), tmp_path / "out", title=evil)
    html, text = made.read_text(), made.with_name("report.md").read_text()
    assert html.count("<script") == html.count("</script>") == 2
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html
    assert "\\u003c/script\\u003e" in html
    assert "<script" not in "".join(x for x in text.splitlines() if not x.startswith("    "))  # code blocks
    assert "49" not in text.splitlines()[0]


def test_nothing_measured_stays_empty(tmp_path: Path) -> None:
    """null is an empty cell, not a zero, in CSV and tables; a page without any cost has no picture."""
    made = decoder(TEACHER, "int8", token_s=None, first_token_s=None, peak_rss_bytes=None, file_bytes=None)
    made["subject"]["file_bytes"] = None
    out = report(write(tmp_path / "results", made), tmp_path / "out").parent
    row = read_csv(out)[0]
    assert row["token_s_median"] == row["peak_rss_bytes_p95"] == row["task"] == ""
    assert "| int8 |  | 21.5 |  |  |  |  |" in (out / "report.md").read_text()
    assert not (out / "trade-off.png").exists()


def test_emulated_devices_show_no_times(tmp_path: Path) -> None:
    """What an emulator took is nobody's time: not in the CSV, not in a table, not on an axis."""
    made = [decoder(name, "int8", device={"name": "pi", "emulated": True}) for name in (TEACHER, "cut")]
    folder = write(tmp_path / "results", *made)
    assert {row["token_s_median"] for row in flat(folder)} == {None}
    page = page_content(folder)
    assert "emulated: no times" in page["tables"][0].note
    assert [list(figure["specs"]) for figure in page["figures"]] == [["file_bytes"]]


def test_instructions_are_on_no_axis(tmp_path: Path) -> None:
    """A result as an emulated device gives it (instructions, no times) is read and listed; only size is drawn."""
    times = dict.fromkeys(("load_s", "first_token_s", "token_s", "peak_rss_bytes"))
    counted = {
        "per_generated_token": {"median": 3e6, "p95": 3e6, "p99": 3e6, "samples": [3e6]},
        "repeats_within": 0.0,
    }
    made = [
        decoder(name, "int8", device={"name": "cortex-a76", "emulated": True}, instructions=counted, **times)
        for name in (TEACHER, "cut")
    ]
    folder = write(tmp_path / "results", *made)
    page = page_content(folder)
    assert [list(figure["specs"]) for figure in page["figures"]] == [["file_bytes"]]
    assert not any(
        row[key] for row in flat(folder) for key in row if key.startswith(("token_s", "first_", "load_"))
    )


def test_a_cold_start_has_its_own_column(tmp_path: Path) -> None:
    """From the start of a process is another figure than a first token, and never under its heading."""
    cold = {"first_token_s": None, "token_s": None, "start_s": {"median": 0.731, "samples": [0.731]}}
    cold["workload"] = {"name": "cold-start", "prompt": 8, "generate": 1}
    write(tmp_path / "in", decoder(TEACHER, "fp32"), decoder(TEACHER, "fp32", **cold))
    tables = {
        table.columns[3]: table.groups[0].rows[0][3] for table in page_content(tmp_path / "in")["tables"]
    }
    assert tables["start to first token ms"] == "731" and tables["first token ms"] not in ("", "731")


def test_a_card_s_command_makes_that_very_model(tmp_path: Path) -> None:
    """A classifier's card shows its own `glue`, or nothing; never what made the model it was tuned from."""
    silent, telling = (classifier("distilled", task, 0.8, 0.6) for task in ("docs-kind", "docs-order"))
    for made in (silent, telling):
        made["subject"]["lineage"]["glue"]["training"] = {"command": "toolchain pretrain shape.json"}
    telling["subject"]["lineage"]["glue"]["command"] = "toolchain glue distilled --task docs-order"
    cards = page_content(write(tmp_path / "results", decoder("distilled", "fp32"), silent, telling))["cards"]
    assert [card.command for card in cards] == [
        compression("distilled")["command"],
        "",
        "toolchain glue distilled --task docs-order",
    ]


def test_devices_and_texts_are_not_mixed(tmp_path: Path) -> None:
    """Perplexities on another text, and times of another device, stand in tables of their own."""
    other = decoder("cut", "fp32")
    other["quality"]["perplexity"]["corpus"] = {"name": "wikitext", "sha256": "e" * 64}
    far = decoder("cut", "fp32", device={"name": "board", "emulated": False})
    assert len(settings(flat(write(tmp_path / "results", decoder(TEACHER, "fp32"), other, far)))) == 3


def test_headings_say_what_differs(tmp_path: Path) -> None:
    """One table needs no more than its name; several differ in their headings, in just what differs."""
    chat = decoder("cut", "fp32")
    page = page_content(write(tmp_path / "one", chat))
    assert [table.title for table in page["tables"]] == ["Language models"]
    prompt = decoder("cut", "fp32", workload={"name": "prompt", "prompt": 240, "generate": 8}, threads=1)
    page = page_content(write(tmp_path / "two", chat, prompt))
    assert sorted(table.title for table in page["tables"]) == [
        "Language models: workload chat, 2 threads",
        "Language models: workload prompt, 1 thread",
    ]
    far = decoder("cut", "fp32", device={"name": "board", "emulated": False})
    page = page_content(write(tmp_path / "far", chat, far))
    assert sorted(table.title for table in page["tables"]) == [
        "Language models: device board",
        "Language models: device local",
    ]


def test_evaluating_an_artifact_fills_what_its_benchmark_lacks(tmp_path: Path) -> None:
    """A bench without a corpus and an evaluate of the same artifact on the same device make one row."""
    timed, judged = decoder("cut", "int8"), decoder("cut", "int8")
    timed["quality"] = {"perplexity": None, "task": None}
    judged = result("evaluate", judged["subject"], quality=judged["quality"])
    (row,) = flat(write(tmp_path / "results", timed, judged))
    assert row["perplexity"] and row["token_s_median"]


def test_the_newer_of_two_equal_measurements_stands(tmp_path: Path) -> None:
    """A result copied into the folder twice is one row: that of the later date."""
    old, new = decoder("cut", "int8", created="2026-11-01T00:00:00Z"), decoder("cut", "int8", rounds=9)
    (row,) = flat(write(tmp_path / "results", new, old))
    assert row["rounds"] == 9


def test_a_baseline_file_stands_beside_the_task(tmp_path: Path) -> None:
    """{"kind": "baseline"} among the results gives every classifier of that task its baseline."""
    made = classifier("cut", "docs-kind", 0.8, 0.0)
    made["subject"]["lineage"]["glue"].pop("baseline")
    folder = write(tmp_path / "results", made)
    (folder / "baseline.json").write_text(
        '{"schema": 1, "kind": "baseline", "task": "docs-kind", "value": 0.77}'
    )
    (row,) = flat(folder)
    assert row["baseline"] == 0.77


def test_the_story_tells_what_is_not_worth_having(tmp_path: Path) -> None:
    """The headline compares like with like, and says so where the teacher beats its best student."""
    whole, slow = decoder(TEACHER, "int8"), decoder("cut", "int8")
    slow["token_s"] = whole["token_s"]
    (first, *_) = page_content(write(tmp_path / "results", decoder(TEACHER, "fp32"), whole, slow))["story"]
    assert "no faster than its teacher in int8" in first
    assert "not worth having: teacher, 12 layers in int8" in first


def test_healing_is_told_of_students_of_one_depth(tmp_path: Path) -> None:
    """A deeper cut that was trained is not what training made of a shallower one; far behind is said."""
    results = [decoder(name, "fp32") for name in (TEACHER, "cut", "healed", "distilled")]
    results[3]["subject"]["layers"] = 3
    for made in results[2:]:
        made["quality"]["perplexity"]["value"] = 100 * STUDENTS[TEACHER][2]
    told = page_content(write(tmp_path / "results", *results))["story"]
    healing = next(sentence for sentence in told if sentence.startswith("Cutting layers"))
    assert healing.count(" tokens)") == 1
    assert any(s.startswith("All students stay far behind") and "150k tokens" in s for s in told)


def broken(change: Any) -> str:
    """A good result's text after `change` was done to it."""
    made = decoder("cut", "int8")
    change(made)
    return json.dumps(made)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(decoder("cut", "int8"))[:-40], "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "required property"),
        (broken(lambda r: r.update(schema=2)), "newer toolchain"),
        (broken(lambda r: r.update(schema="1")), "schema"),
        (broken(lambda r: r.update(kind="guess")), "guess"),
        (broken(lambda r: r.pop("subject")), "subject"),
        (broken(lambda r: r["subject"].pop("sha256")), "sha256"),
        (broken(lambda r: r["subject"].update(name=3)), "subject.name"),
        (broken(lambda r: r["device"].pop("name")), "device"),
        (broken(lambda r: r["token_s"].update(median="fast")), "token_s.median"),
        (broken(lambda r: r["token_s"].update(samples=[1, None])), "token_s.samples"),
        (broken(lambda r: r["quality"]["perplexity"].update(value=-1)), "perplexity.value"),
        (broken(lambda r: r["quality"]["perplexity"].update(value=float("nan"))), "not finite"),
        (broken(lambda r: r["subject"]["lineage"].update(compression=[])), "compression"),
        (broken(lambda r: r["subject"]["lineage"]["compression"].update(keep="0,2")), "keep"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str, says: str) -> None:
    """One line with the file's path and what is wrong in it; nothing is written."""
    folder = write(tmp_path / "results", decoder(TEACHER, "int8"))
    (folder / "bad.json").write_text(text)
    with pytest.raises(UserError) as caught:
        report(folder, tmp_path / "out")
    assert "bad.json" in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_reported_are_refused(tmp_path: Path) -> None:
    """A missing folder, an empty one, and an existing --out without --force."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        report(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="holds no results"):
        report(tmp_path / "empty", tmp_path / "out")
    folder = write(tmp_path / "results", decoder(TEACHER, "int8"))
    with pytest.raises(UserError, match="already exists"):
        report(folder, tmp_path / "empty")
