"""What torch and safetensors say of a full disk or a full memory, in the words the command line knows."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from devices.errors import UserError

# As their writers put it: torch's says what failed but not why, and then trips over the unfinished file.
DISK = ("no space left", "disk quota exceeded", "pytorchstreamwriter failed", "unexpected pos")
MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def plain_faults() -> Iterator[None]:
    """OSError (ENOSPC) where a library could not write for want of disk, UserError where memory ran out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = str(error).lower()
        if (isinstance(error, OSError) and error.errno) or not said:
            raise
        if any(words in said for words in DISK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        if any(words in said for words in MEMORY):
            raise UserError("out of memory; use a smaller --batch or --window, or a smaller model") from None
        raise
