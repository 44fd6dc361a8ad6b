"""`python -m toolchain` is the `toolchain` command."""

from toolchain.cli import main

main()
