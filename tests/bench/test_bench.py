"""A benchmark, from artifacts to result files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import process, run
from bench.result import place
from bench.run import bench
from bench.settings import TaskRows
from devices.artifact import open_artifact
from devices.errors import UserError
from devices.machine import physical_cores

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def main_line(capsys):
    """`main_line(*args)` runs `toolchain` in this process: exit code and stderr."""
    from toolchain.cli import main

    def run_main(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        return ended.value.code, capsys.readouterr().err

    return run_main


@pytest.fixture(scope="module")
def results(artifacts, corpus_file, tmp_path_factory):
    """Results of all artifacts, two rounds each, and the folder they were written to."""
    out = tmp_path_factory.mktemp("bench") / "results"
    said = []
    found = bench(
        artifacts,
        out,
        rounds=2,
        corpus=corpus_file,
        window=32,
        blocks=4,
        threads=1,
        progress=False,
        say=said.append,
    )
    return found, out, said


def test_one_result_per_artifact(results):
    """Each artifact has a file named after it, the device and the workload, with what was returned in it."""
    found, out, _ = results
    names = {"gpt2-fp32--local--chat.json", "gpt2-int8--local--chat.json", "llama-fp32--local--chat.json"}
    assert {path.name for path in out.iterdir()} == names
    for result in found:
        path = out / f"{result['subject']['name']}--local--chat.json"
        assert json.loads(path.read_text()) == json.loads(json.dumps(result))


def test_raw_samples_stand_beside_the_percentiles(results):
    """One load, one first token and one peak a round; a time for every further token of every round."""
    for result in results[0]:
        steps = result["workload"]["generate"] - 1
        for key, count in {
            "load_s": 2,
            "first_token_s": 2,
            "peak_rss_bytes": 2,
            "token_s": 2 * steps,
        }.items():
            assert len(result[key]["samples"]) == count, key
            assert result[key]["median"] <= result[key]["p95"] <= result[key]["p99"]
            assert all(sample > 0 for sample in result[key]["samples"])
        assert result["sentence_s"] is None
        assert result["rounds"] == 2 and (result["threads"], result["threads_from"]) == (1, "asked")


def test_a_result_says_where_it_comes_from(results, artifacts):
    """Subject, lineage, device and environment are recorded without asking."""
    for result, path in zip(results[0], artifacts, strict=True):
        artifact = open_artifact(path)
        assert result["subject"]["sha256"] == artifact.sha256
        assert result["subject"]["lineage"]["checkpoint"]["sha256"]
        assert result["device"] == {"name": "local", "emulated": False}
        assert result["environment"]["onnxruntime"] and result["environment"]["cores"] >= 1
        assert result["file_bytes"] == artifact.file_bytes


def test_quality_is_measured_on_the_artifact(results):
    """Every decoder has a perplexity with its windows, tokens and text; int8's is near fp32's."""
    values = {}
    for result in results[0]:
        perplexity = result["quality"]["perplexity"]
        assert (perplexity["window"], perplexity["blocks"], perplexity["tokens"]) == (32, 4, 4 * 31)
        assert perplexity["corpus"]["name"] == "corpus.txt" and len(perplexity["corpus"]["sha256"]) == 64
        values[result["subject"]["name"]] = perplexity["value"]
    assert values["gpt2-int8"] == pytest.approx(values["gpt2-fp32"], rel=0.05)


def test_a_scaled_workload_is_told(results):
    """Models of 64 positions cannot chat at full size: the result and a line say so."""
    found, _, said = results
    assert found[0]["workload"]["scaled_from"] == {"prompt": 128, "generate": 64}
    assert "gpt2-fp32 has 64 positions: chat is scaled from 128+64 to 42+22 tokens" in said


def test_measuring_again_replaces_and_other_settings_do_not(results):
    """The same bytes and settings go to the same file; another setting's result stands beside it."""
    found, out, _ = results
    first = out / "gpt2-fp32--local--chat.json"
    assert place(out, found[0]) == first
    assert place(out, {**found[0], "created": "later", "rounds": 9}) == first
    second = out / "gpt2-fp32--local--chat-2.json"
    assert place(out, {**found[0], "threads": 2}) == second
    assert place(out, {**found[0], "subject": {**found[0]["subject"], "sha256": "0" * 64}}) == second


def test_names_cannot_leave_the_folder(results, tmp_path):
    """An artifact may be called anything; its result stays in the folder."""
    found = results[0][0]
    for name in ("../../x", "/etc/x", "..", "a/b", "x" * 300, "日本"):
        path = place(tmp_path, {**found, "subject": {**found["subject"], "name": name}})
        assert path.parent == tmp_path and not path.name.startswith(".") and len(path.name) < 200


def test_rounds_are_interleaved_and_shuffled(artifacts, tmp_path, monkeypatch):
    """Each round has every artifact once, in an order of its own that the seed decides."""
    asked = []

    def answer(request, name):
        if request["action"] != "measure":
            return {}
        asked.append(Path(name).name)
        times = {"load_s": 1.0, "first_token_s": 1.0, "token_s": [1.0], "peak_rss_bytes": 1, "threads": 1}
        return {**times, "environment": {}}

    monkeypatch.setattr(run, "ask", answer)
    bench(artifacts, tmp_path / "a", rounds=8, threads=1, progress=False)
    rounds = [tuple(asked[at : at + 3]) for at in range(0, 24, 3)]
    assert all(set(one) == {path.name for path in artifacts} for one in rounds)
    assert len(set(rounds)) > 1
    again, asked[:] = list(asked), []
    bench(artifacts, tmp_path / "b", rounds=8, threads=1, progress=False)
    assert asked == again


def test_threads_are_chosen_before_the_rounds(artifacts, tmp_path, monkeypatch):
    """Without --threads a process of its own chooses, once for each artifact; every round is told its number."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests = []

    def answer(request, name):
        requests.append(request)
        return process.ask(request, name)

    monkeypatch.setattr(run, "ask", answer)
    found = bench(artifacts[:2], tmp_path / "out", rounds=2, progress=False)
    actions = [request["action"] for request in requests]
    assert [action for action in actions if action != "bandwidth"] == ["threads"] * 2 + ["measure"] * 4
    requests = [request for request in requests if request["action"] != "bandwidth"]
    chosen = {Path(path).name: one["threads"] for path, one in zip(artifacts, found, strict=False)}
    assert all(request["threads"] == chosen[Path(request["artifact"]).name] for request in requests[2:])
    assert {one["threads_from"] for one in found} == {"sweep"}
    if physical_cores() > 1:
        again = bench(artifacts[:1], tmp_path / "out", rounds=1, progress=False)
        assert (again[0]["threads"], again[0]["threads_from"]) == (found[0]["threads"], "remembered")


BAD = {
    "no artifact": ([], {}),
    "no rounds": (None, {"rounds": 0}),
    "unknown device": (None, {"device": "lokal"}),
    "unknown workload": (None, {"workload": "chta"}),
    "a classifier's workload": (None, {"workload": "classify"}),
    "no corpus": (None, {"corpus": Path("none.txt")}),
    "corpus a folder": (None, {"corpus": ROOT}),
    "window over positions": (None, {"corpus": "real", "window": 65}),
    "text below a window": (None, {"corpus": "short"}),
    "empty text": (None, {"corpus": "empty"}),
    "no UTF-8": (None, {"corpus": "latin"}),
    "task for decoders": (None, {"task": TaskRows("t", "accuracy", [("a", None)], len)}),
    "artifact twice": ("twice", {}),
    "no folder": ([Path("nothing")], {}),
    "changed byte": ("changed", {}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_result(artifacts, corpus_file, tmp_path, name):
    """What cannot be measured is told in one line, and no result is there."""
    which, settings = BAD[name]
    texts = {"short": b"one two", "empty": b" ", "latin": b"caf\xe9 " * 400, "real": corpus_file.read_bytes()}
    if isinstance(settings.get("corpus"), str):
        (tmp_path / "text.txt").write_bytes(texts[settings["corpus"]])
        settings = {**settings, "corpus": tmp_path / "text.txt"}
    paths = artifacts[:1] if which is None else which
    if which == "twice":
        paths = [artifacts[0], artifacts[0] / ".." / artifacts[0].name]
    if which == "changed":
        paths = [tmp_path / "copy"]
        shutil.copytree(artifacts[0], paths[0])
        with (paths[0] / "model.onnx.data").open("r+b") as file:
            file.seek(100)
            file.write(b"\x42\x42")
    with pytest.raises(UserError) as caught:
        bench(paths, tmp_path / "out", progress=False, **{"rounds": 1, **settings})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_out_that_is_a_file_is_told_before_measuring(artifacts, tmp_path, monkeypatch):
    """A place that cannot hold results is known before the first round."""
    (tmp_path / "out").write_text("x")
    monkeypatch.setattr(run, "ask", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--out names a folder"):
        bench(artifacts, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.stderr.write('a: b; c\\n'); sys.exit(2)", "^a: b; c$"),
        ("raise ValueError('odd')", "art: the worker failed .ValueError: odd"),
        ("import os; os.kill(os.getpid(), 9)", "art: the worker was ended by SIGKILL; out of memory"),
        ("import os; os.kill(os.getpid(), 11)", "art: the worker was ended by SIGSEGV"),
        ("print('hello')", "art: the worker answered no JSON"),
        ("", "art: the worker answered no JSON"),
    ],
)
def test_a_worker_that_fails_is_one_line(monkeypatch, code, message):
    """However the worker ends, one line names the artifact and what happened."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        process.subprocess, "Popen", lambda _, **rest: popen([sys.executable, "-c", code], **rest)
    )
    with pytest.raises(UserError, match=message) as caught:
        process.ask({"a": "x" * 100_000}, "art")
    assert "\n" not in str(caught.value)


def test_an_interrupt_ends_the_worker(monkeypatch):
    """Ctrl-C while a worker runs kills it before it is passed on."""
    started = []
    popen = subprocess.Popen

    def start(_, **rest):
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **rest))
        return started[0]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_read", interrupt)
    monkeypatch.setattr(process.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        process.ask({}, "art")
    assert started[0].returncode == -signal.SIGKILL


def heed_interrupts():
    """A child of a shell's background job ignores SIGINT; a terminal's does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_nothing_that_looks_finished(artifacts, tmp_path):
    """Interrupted in the middle, the command exits 130 in one line and writes no result."""
    command = [sys.executable, "-m", "toolchain", "bench", str(artifacts[0]), "--rounds", "500"]
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")  # a worker: it is measuring
    while not children.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip().splitlines()[-1].startswith("toolchain: interrupted")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def alive(pid):
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(true, seconds=60):
    """Whether `true()` comes to hold in time."""
    deadline = time.monotonic() + seconds
    while not (held := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


@pytest.mark.parametrize("after", [0.0, 2.0])  # while it starts, and while it works
def test_a_worker_ends_with_its_parent(artifacts, tmp_path, after):
    """However who asked is ended, no worker goes on behind it: here one whose text never comes."""
    os.mkfifo(tmp_path / "text")
    request = {"action": "perplexity", "artifact": str(artifacts[0]), "threads": 1, "blocks": None}
    request |= {"corpus": str(tmp_path / "text"), "window": None}
    asking = f"from bench.process import ask; ask({request!r}, 'art')"
    parent = subprocess.Popen([sys.executable, "-c", asking], cwd=ROOT, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    assert until(lambda: children.read_text())
    time.sleep(after)
    (worker,) = children.read_text().split()
    parent.kill()
    parent.wait(timeout=60)
    try:
        assert until(lambda: not alive(worker), 20)
    finally:
        if alive(worker):
            os.kill(int(worker), signal.SIGKILL)


def test_too_many_threads_are_told_before_a_process_starts(artifacts, tmp_path, main_line, monkeypatch):
    """--threads beyond what the machine can take exits 2 in one line, and nothing was started."""
    monkeypatch.setattr(run, "ask", lambda *_: pytest.fail("started"))
    code, err = main_line("bench", artifacts[0], "--threads", 9999, "--out", tmp_path / "out")
    assert code == 2 and "threads is 9999; this machine takes at most" in err and err.count("\n") == 1


def test_the_command_prints_a_table(artifacts, cli, tmp_path, corpus_file):
    """The command measures, writes and ends with a table of medians, their roofs and where the results are."""
    done = cli(
        "bench",
        *artifacts[:2],
        "--rounds",
        1,
        "--corpus",
        corpus_file,
        "--blocks",
        2,
        "--out",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    head, *rows, where = done.stdout.splitlines()
    rows, roofs = rows[:2], rows[2:]
    assert len(roofs) == 2 and all("a token reads" in line and "GB/s" in line for line in roofs)
    assert head.split()[:1] == ["artifact"] and "ms/token" in head and "peak MB" in head
    assert [row.split()[0] for row in rows] == ["gpt2-fp32", "gpt2-int8"]
    assert "perplexity" in rows[0] and where.endswith("out")


@pytest.mark.parametrize(
    "options",
    [
        ["--rounds", "0"],
        ["--threads", "0"],
        ["--window", "1"],
        ["--blocks", "0"],
        ["--device", "mars"],
        ["--workload", "x"],
    ],
)
def test_bad_options_exit_2(artifacts, cli, tmp_path, options):
    """Sizes that mean nothing and names nobody knows: one line, exit 2."""
    done = cli("bench", artifacts[0], *options, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("toolchain: ")
