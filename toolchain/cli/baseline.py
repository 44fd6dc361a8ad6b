"""`toolchain bench --check`: what goes with it, and what is done with the results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def prepare(out: Path | None, baseline: Path | None, renew: bool, device: str) -> None:
    """UserError for options that do not go together, and for a baseline that is none, before an hour's counting."""
    from bench import check
    from devices import profiles
    from devices.errors import UserError

    if baseline is None:
        if renew:
            raise UserError("--renew writes a baseline: name its file with --check FILE")
        if out is None:
            raise UserError("--out is missing: name the folder that the results are added to")
        return
    profile = profiles.load(device)
    if not profile.emulated:
        raise UserError(
            f"{profile.name}: has times, and --check compares instructions, which only emulated devices count; name "
            "one with --device, such as cortex-a76"
        )
    if not renew:
        check.known_for(baseline, profile.name)
        return
    if not baseline.absolute().parent.is_dir():
        raise UserError(f"{baseline}: there is no folder {baseline.parent}; make it, or name another file")
    if baseline.exists():
        try:
            check.read(baseline)
        except UserError as error:
            raise UserError(f"{error}; or delete it, and --renew writes it anew") from None


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """`out`, or a folder that goes again."""
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="toolchain-") as folder:
        yield Path(folder)


def check_or_renew(
    baseline: Path, results: list[dict[str, Any]], threshold: float, renew: bool, say: Callable[[str], None]
) -> None:
    """Write the baseline, or compare with it: CheckFailed where something grew."""
    from bench import check

    if renew:
        check.renew(baseline, results)
        say(f"{baseline}: renewed")
        return
    for line in check.check(baseline, results, threshold):
        say(line)
    say(f"{baseline}: instructions per token did not grow by more than {threshold:g} %")
