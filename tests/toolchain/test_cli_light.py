import subprocess
import sys

import pytest

from toolchain.cli import COMMANDS

HEAVY = (
    *(
        "torch",
        "transformers",
        "datasets",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "sklearn",
        "altair",
        "pandas",
        "numpy",
    ),
    *("tokenizers", "scipy", "optimum", "accelerate"),
)
# What the fresh interpreter runs.
HELP = f"""
import sys
from click.testing import CliRunner
from toolchain.cli import toolchain
made = CliRunner().invoke(toolchain, sys.argv[1:])
print(made.output)
print("HEAVY", sorted(set(sys.modules) & set({HEAVY!r})))
raise SystemExit(made.exit_code)
"""


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    """A fresh interpreter that only asks for help, and then says which heavy packages it has imported."""
    return subprocess.run([sys.executable, "-c", HELP, *args], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    """`toolchain --help` answers in a blink: it lists every command and imports none of the big packages."""
    made = run("--help")
    assert made.returncode == 0, made.stderr
    assert "HEAVY []" in made.stdout
    assert all(f"  {name}" in made.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Its help imports nothing heavy and ends with an example of that very command."""
    made = run(name, "--help")
    assert made.returncode == 0, made.stderr
    assert "HEAVY []" in made.stdout
    example = made.stdout.split("Example:")
    assert len(example) == 2 and f"toolchain {name}" in example[1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["comprss"], "compress"),
        (["exprot", "--help"], "export"),
        (["bench", "--rnds", "3"], "No such option"),
        (["report"], "Missing argument"),
        (["report", "results"], "Missing option"),
        (["report", "nowhere", "--out", "x"], "no such folder"),
        (["list", "selektors"], "selectors"),
        (["zzzzzzzz"], "known:"),
    ],
)
def test_a_slip_of_the_hand_is_one_line(args: list[str], says: str) -> None:
    """Exit 2 and one line on stderr with what was likely meant; never a traceback."""
    made = subprocess.run(
        [sys.executable, "-m", "toolchain", *args], capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert says in made.stderr and made.stderr.count("\n") == 1
    assert "Traceback" not in made.stderr
