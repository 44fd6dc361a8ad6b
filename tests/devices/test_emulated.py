"""ARM64 without a board: what is refused where something is missing, and what runs where the root is made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices import emulated, machine, marks, profiles
from devices.artifact import open_artifact
from devices.emulated import cpu, probe, root
from devices.errors import UserError
from devices.profiles import Profile
from devices.runtime import Classifier, Decoder

NAMES = ("cortex-a72", "cortex-a76")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No root is there, and its tools are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(root, "tools", lambda finished: None)
    return tmp_path


@pytest.fixture
def half(empty):
    """A root with every part but those a test takes away: empty files in their places."""
    for path in parts("cortex-a76").values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return empty


@pytest.fixture(params=NAMES)
def arm(request):
    """The profile of an emulated processor; skipped where `toolchain devices setup` has not been run for it."""
    profile = profiles.load(request.param)
    lacking = root.tools(finished=True) or root.missing(request.param)
    if lacking:
        pytest.skip(f"{request.param} is not set up ({lacking}); toolchain devices setup {request.param}")
    return profile


def parts(name):
    """The files by which each part is known to be there."""
    return {
        "Debian's packages": root.base() / root.PYTHON,
        "onnxruntime": root.site() / "tokenizers",
        "plugin": root.plugin(),
        "description": root.of(name) / "proc/cpuinfo",
    }


def there(profile, code, *arguments):
    """What Python code prints on the device."""
    line = emulated.command(profile, "unused")
    line = [*line[: line.index("-m")], "-c", code, *arguments]
    done = subprocess.run(
        line, env=emulated.environment(profile), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_description_is_the_processors(tmp_path, monkeypatch, name):
    """/proc/cpuinfo is read as a machine's is: its part, and a dot product on the A76 alone."""
    cpu.describe(name, tmp_path / "root")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "root/proc/cpuinfo")
    assert ("asimddp" in machine.isa()) == (name == "cortex-a76")
    assert machine.cpu_model() == {"cortex-a72": "0xd08", "cortex-a76": "0xd0b"}[name]
    assert (tmp_path / "root/sys/devices/system/cpu/possible").read_text() == "0-3\n"
    assert (tmp_path / "root/sys/devices/system/cpu/cpu3/cache/index2/size").read_text().endswith("K\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_expects_what_its_processor_has(name):
    """The shipped profiles promise no instruction set that the description leaves out."""
    assert set(profiles.load(name).isa) <= set(cpu.processor(name)["features"].split())


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("cortex-a75", "cortex-a7[26]"), ("cortexa76", "cortex-a76"), ("m1", "known: cortex-a72")],
)
@pytest.mark.parametrize("function", ["command", "check", "setup", "clean", "wrapper"])
def test_an_unknown_processor_names_the_near_ones(empty, wrong, near, function):
    """A profile with a processor that is not described is one line, whatever is asked of it."""
    profile = Profile("mine", "emulated", "d", True, settings={"cpu": wrong})
    more = {"command": ["bench.worker"], "wrapper": [empty / "python"]}.get(function, [print])
    with pytest.raises(UserError, match=f"mine: unknown emulated processor.*{near}"):
        getattr(emulated, function)(profile, *(more if function != "check" else []))


@pytest.mark.parametrize("part", ["Debian's packages", "onnxruntime", "plugin", "description"])
def test_a_root_that_lacks_a_part_is_not_used(half, part):
    """Each part that is missing is named, with the command that makes it; the rest is not."""
    parts("cortex-a76")[part].unlink()
    profile = profiles.load("cortex-a76")
    with pytest.raises(UserError, match=f"{part}.*missing; run: toolchain devices setup cortex-a76"):
        emulated.command(profile, "bench.worker")
    found = emulated.check(profile)[-1]
    assert not found.ok and part in found.value and found.hint.endswith("setup cortex-a76")
    assert not any(other in found.value for other in parts("cortex-a76") if other != part)


def test_a_profile_of_the_users_is_set_up_by_its_path(half, tmp_path):
    """The command that mends names the file where the name would not be found."""
    path = tmp_path / "mine.toml"
    path.write_text('kind = "emulated"\ndescription = "d"\ncpu = "cortex-a72"\n')
    with pytest.raises(UserError, match=f"toolchain devices setup {path}"):
        emulated.command(profiles.load(str(path)), "bench.worker")


def test_other_versions_are_another_root(half, monkeypatch):
    """Where this machine's runtime has moved on, the old wheels are not taken for it."""
    monkeypatch.setattr(root, "version", lambda name: "99.0")
    with pytest.raises(UserError, match=r"numpy 99\.0, onnxruntime 99\.0, tokenizers 99\.0 missing"):
        emulated.command(profiles.load("cortex-a76"), "bench.worker")


def test_a_missing_emulator_is_one_command(tmp_path, monkeypatch):
    """Without qemu the packages to install are named, in every function that needs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = profiles.load("cortex-a76")
    with pytest.raises(UserError, match="run: sudo apt-get install qemu-user util-linux"):
        emulated.command(profile, "bench.worker")
    with pytest.raises(
        UserError, match="run: sudo apt-get install qemu-user util-linux apt dpkg gcc libc6-dev"
    ):
        emulated.setup(profile, print)
    found = emulated.check(profile)
    assert [finding.ok for finding in found] == [False] and "qemu-user" in found[0].hint


def test_a_registry_that_fails_leaves_no_root(empty, monkeypatch):
    """apt's own complaint is told, nothing half-made stays in place, and the next try is not stopped by it."""
    tools = empty / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: Temporary failure resolving' >&2\nexit 100\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for _ in range(2):
        with pytest.raises(UserError, match=r"apt-get update failed \(E: Temporary failure resolving\)"):
            emulated.setup(profiles.load("cortex-a76"), lambda _: None)
        assert not root.base().exists()


def test_clean_removes_what_is_shared_with_the_last(half):
    """One processor's part goes alone while another is there; then all of it; then there is nothing to remove."""
    other = root.of("cortex-a72")
    other.mkdir()
    said = []
    emulated.clean(profiles.load("cortex-a76"), said.append)
    assert not root.of("cortex-a76").exists() and root.plugin().exists()
    emulated.clean(profiles.load("cortex-a72"), said.append)
    assert not root.folder().exists() and len(said) == 2
    with pytest.raises(UserError, match="nothing is set up"):
        emulated.clean(profiles.load("cortex-a72"), said.append)


def test_nothing_counts_on_this_machine():
    """Outside the emulator the marks say so, in place of numbers."""
    assert not probe.counts()
    with pytest.raises(UserError, match="nothing counts instructions here"):
        marks.Marks()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_the_plugin_compiles_without_a_warning(tmp_path):
    """The source and our declarations of QEMU's interface fit, by gcc's strictest."""
    source = Path(root.__file__).with_name("instructions.c")
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(tmp_path / "plugin.so"), str(source)], check=True)


def test_the_mark_is_the_same_on_both_sides():
    """The system call that Python makes is the one that the plugin waits for."""
    assert f"#define MARK {marks.MARK}\n" in Path(root.__file__).with_name("instructions.c").read_text()


def test_the_processor_tells_what_its_description_says(arm):
    """check finds all that is needed, and what qemu's processor admits to agrees with what we wrote for it."""
    found = emulated.check(arm)
    assert all(finding.ok for finding in found), found
    values = {finding.what: finding.value for finding in found}
    assert values["arch"] == "aarch64" and sorted(values["isa"]) == sorted(values["hwcap"])
    assert ("asimddp" in values["hwcap"]) == (arm.name == "cortex-a76")
    assert values["onnxruntime"] == machine.version("onnxruntime")


def test_arm_computes_what_x86_computes(arm, decoder_folder, classifier_folder):
    """A float decoder's and a classifier's logits agree with this machine's to the last bits."""
    code = (
        "import sys, json; from devices.runtime import Classifier, Decoder\n"
        "one, two = Decoder(sys.argv[1], 1), Classifier(sys.argv[2], 1)\n"
        "print(json.dumps([one.logits([[1, 2, 3]]).tolist(), two.predict([('a', 'b')]).tolist()]))"
    )
    decoded, labelled = json.loads(there(arm, code, str(decoder_folder), str(classifier_folder)))
    np.testing.assert_allclose(decoded, Decoder(decoder_folder, 1).logits([[1, 2, 3]]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(labelled, Classifier(classifier_folder, 1).predict([("a", "b")]), atol=1e-4)


def test_the_artifact_is_read_where_it_lies(arm, decoder_folder):
    """Nothing is copied: the emulator sees this machine's files."""
    assert emulated.put(arm, open_artifact(decoder_folder), print) == str(decoder_folder.resolve())


def test_the_wrapper_is_a_python_of_the_device(arm, tmp_path):
    """A script that a profile may name as its Python: aarch64, its arguments, its variables and the base set."""
    script = emulated.wrapper(arm, tmp_path / "python3")
    code = (
        "import os, sys, platform, numpy; print(platform.machine(), sys.argv[1:], os.environ['PYTHONPATH'])"
    )
    line = [str(script), "-c", code, "a b", "$HOME"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "/of/the caller"}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aarch64 ['a b', '$HOME'] /of/the caller:")


def test_a_worker_there_ends_with_who_asked(arm, ends):
    """The emulated process is told of its parent's end as one of our own is."""
    code = (
        "import subprocess, sys; from devices import emulated, profiles; p = profiles.load(sys.argv[1])\n"
        "w = subprocess.Popen(emulated.command(p, 'bench.worker'), env=emulated.environment(p),"
        " stdin=subprocess.PIPE)\n"
        "print(w.pid, flush=True); import time; time.sleep(15); import os; os._exit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, arm.name], stdout=subprocess.PIPE, text=True
    ) as asking:
        pid = asking.stdout.readline().strip()
        asking.wait()
    assert ends(pid, 5)
