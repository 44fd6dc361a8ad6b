"""`toolchain clean --executor`: a cluster writes the same bytes, and what it cannot do is one line."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

import toolchain.corpus.clean as cleaning
from toolchain import corpus

pytest.importorskip("datatrove")

sys.path.insert(0, str(Path(__file__).parent))
import standin_slurm as slurm

WORDS = [
    "the",
    "of",
    "and",
    "that",
    "with",
    "to",
    "model",
    "reads",
    "line",
    "words",
    "keeps",
    "where",
    "speaks",
]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A corpus of three parts, with lines that come twice."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 11))) for _ in range(30)]
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join("\n".join(rng.choices(lines, k=rng.randint(1, 4))) for _ in range(24)))
    monkeypatch.setattr(corpus.documents, "PART", file.stat().st_size // 3 + 1)
    monkeypatch.setattr(cleaning, "LOOK", 0.02)
    return file


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The stand-in's folder, its programs on the PATH, and the arguments that lead to it."""
    folder = tmp_path / "slurm"
    for name, value in slurm.install(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def on_slurm(tmp_path):
    """Arguments for Slurm."""
    options = tmp_path / "cluster.toml"
    options.write_text('time = "1:00:00"\npartition = "cpu"\n')
    return ["--executor", "slurm", "--executor-options", options]


def cleaned(folder):
    """A cleaned corpus's files, and its counts."""
    report = json.loads((folder / "clean.json").read_text())
    files = {file.name: file.read_bytes() for file in folder.glob("*.jsonl")}
    return files, [report[key] for key in ("read", "kept", "dropped")]


def test_slurm_writes_the_same_corpus(tmp_path, main, text, cluster, on_slurm):
    """Submitted at once, in arrays that wait for each other; the same command waits for them, then publishes."""
    assert main("clean", text, "--out", tmp_path / "here").code == 0
    command = ["clean", text, "--out", tmp_path / "there", *on_slurm]
    done = main(*command)
    assert (done.code, done.out) == (0, "") and "submitted to Slurm as clean-" in done.err
    first, find, last = slurm.jobs(cluster)
    assert [job["asked"]["array"].split("%")[0] for job in (first, find, last)] == ["0-2"] * 3
    assert find["asked"]["dependency"] == f"afterok:{first['id']}"
    assert last["asked"]["dependency"] == f"afterok:{find['id']}"
    done = main(*command)
    assert done.code == 0 and "3 jobs of it" in done.err and len(slurm.jobs(cluster)) == 3
    done = main("clean", text, "--out", tmp_path / "there")
    assert (
        done.code == 0 and "3 jobs of it" in done.err
    )  # another executor does not do the jobs' work as well
    assert slurm.work_off(cluster) == ["done"] * 3
    done = main(*command)
    assert done.code == 0 and "kept" in done.out, done.err
    assert cleaned(tmp_path / "there") == cleaned(tmp_path / "here")
    assert not (tmp_path / ".there.staging").exists() and len(slurm.jobs(cluster)) == 3


def test_a_failed_job_is_submitted_again_alone(tmp_path, main, text, cluster, on_slurm):
    """What waited for it is cancelled; the same command submits what is left, and loses nothing."""
    assert main("clean", text, "--out", tmp_path / "here").code == 0
    command = ["clean", text, "--out", tmp_path / "there", *on_slurm]
    main(*command)
    broken = cluster / "jobs" / "100.json"
    job = json.loads(broken.read_text())
    broken.write_text(
        json.dumps({**job, "script": job["script"].replace("set -xe", "exit $SLURM_ARRAY_TASK_ID")})
    )
    assert slurm.work_off(cluster) == ["failed", "cancelled", "cancelled"]
    done = main(*command)
    assert done.code == 0 and "going on with the unfinished run" in done.err and "submitted" in done.err
    assert slurm.work_off(cluster)[3:] == ["done"] * 3
    assert main(*command).code == 0
    assert cleaned(tmp_path / "there") == cleaned(tmp_path / "here")


def test_a_wrong_encoding_comes_back_from_the_jobs(tmp_path, main, cluster, on_slurm):
    """One line with the byte, as on this machine, and nothing stands in the way of the mended text."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"a line of text that has more than a few words\n" + "naïve".encode("latin-1"))
    command = ["clean", text, "--out", tmp_path / "there", *on_slurm]
    assert main(*command).code == 0
    assert slurm.work_off(cluster)[0] == "failed"
    done = main(*command)
    assert done.code == 2 and "not UTF-8 at byte 48" in done.err
    assert not (tmp_path / ".there.staging").exists()


def test_a_task_does_not_begin_before_its_stage(tmp_path):
    """Where a cluster starts a stage too early it fails; documents that are not there yet are not taken for none."""
    from toolchain.corpus.clean.steps import After

    done = tmp_path / "filtered" / "completions"
    done.mkdir(parents=True)
    (done / "00000").touch()
    with pytest.raises(RuntimeError, match="filtered: only 1 of 2 tasks are done"):
        After(str(tmp_path / "filtered"), 2).run()
    (done / "00001").touch()
    assert After(str(tmp_path / "filtered"), 2).run() is None


def test_what_slurm_refuses_is_its_own_line(tmp_path, main, text, cluster):
    """sbatch's last words, exit 2."""
    options = tmp_path / "cluster.toml"
    options.write_text('time = "1:00:00"\npartition = "closed"\n')
    done = main("clean", text, "--out", tmp_path / "o", "--executor", "slurm", "--executor-options", options)
    assert (
        done.code == 2 and "sbatch refused a job (exit code 1): sbatch: error: invalid partition" in done.err
    )


@pytest.mark.parametrize(
    ("executor", "toml", "words"),
    [
        ("slurm", None, "--executor-options: name a TOML file that sets time and partition"),
        ("slurm", 'time = "1:00"', "lacks partition, which --executor slurm needs"),
        ("slurm", 'time = "1:00"\npartion = "cpu"', "did you mean partition"),
        ("slurm", 'time = 60\npartition = "cpu"', "time must be of type str, found 60"),
        ("slurm", 'time = "1:00"\npartition = "cpu"', "no sbatch on the PATH"),
        ("slurm", "time =", "not valid TOML"),
        ("ray", "cpus_per_task = true", "cpus_per_task must be a number"),
        ("ray", "tasks = 3", "unknown option of --executor ray 'tasks'"),
        ("ray", "", "needs ray, which is not installed; in the checkout: pip install '.[ray]'"),
        ("local", "x = 1", "--executor local takes no options"),
        ("dask", "", "--executor"),
    ],
)
def test_executors_that_cannot_be_had(tmp_path, main, text, monkeypatch, executor, toml, words):
    """One line on stderr and nothing else, exit 2, and nothing made."""
    monkeypatch.setenv("PATH", str(tmp_path / "no"))
    monkeypatch.setattr("toolchain.corpus.clean.executors.find_spec", lambda name: None)
    options = []
    if toml is not None:
        (tmp_path / "cluster.toml").write_text(toml)
        options = ["--executor-options", tmp_path / "cluster.toml"]
    done = main("clean", text, "--out", tmp_path / "out", "--executor", executor, *options)
    assert done.code == 2 and words in done.err and not done.out, done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / ".out.staging").exists()


def test_a_resumed_run_prints_its_table(capsys):
    """Its seconds are not known, and not printed."""
    from toolchain.cli.clean import table

    none = {"documents": 1, "lines": 2, "characters": 3}
    shown = table({"read": none, "dropped": {}, "kept": none, "seconds": None}, Path("out"))
    assert shown.endswith("out: 1 documents")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_writes_the_same_corpus(tmp_path, main, text):
    """On a Ray of this machine alone, whose tasks are other processes; a wrong encoding is its one line."""
    assert main("clean", text, "--out", tmp_path / "here").code == 0
    done = main("clean", text, "--out", tmp_path / "there", "--executor", "ray")
    assert done.code == 0, done.err
    assert cleaned(tmp_path / "there") == cleaned(tmp_path / "here")
    text.write_bytes(text.read_bytes() + "\nnaïve".encode("latin-1"))
    done = main("clean", text, "--out", tmp_path / "again", "--executor", "ray")
    assert done.code == 2 and "not UTF-8 at byte" in done.err
    assert not (tmp_path / ".again.staging").exists()
