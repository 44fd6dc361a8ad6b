"""Libraries that talk while they work, silenced: a command shows one bar, its own."""

from typing import Any


class quiet:  # noqa: N801 - used as a function: `with quiet():`
    """While it lasts transformers says errors only and draws no bars of its own."""

    def __enter__(self) -> None:
        """Remember what transformers said before."""
        from transformers.utils import logging

        self.verbosity, self.bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        """Let it speak as before."""
        from transformers.utils import logging

        logging.set_verbosity(self.verbosity)
        if self.bars:
            logging.enable_progress_bar()
