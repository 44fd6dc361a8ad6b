"""A study: a TOML file names a grid of this toolchain's own commands, and one command walks it."""
