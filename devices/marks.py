"""Marks between which the emulator counts instructions: the program's side of devices/emulated/instructions.c."""

import ctypes
import os
import struct

from devices.errors import UserError

MARK = 7220  # the system call's number, which Linux does not have; the plugin's source names it too
RECORD = struct.Struct("=QQ")

Counts = tuple[int, int]  # instructions so far, of the thread that asks and of all threads


class Marks:
    """Asks the plugin for counts; they are read when the work is over, so that reading is not counted.

    UserError, here and in `read`, where nothing counts.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.call = ctypes.CDLL(None).syscall
        self.arguments = ctypes.c_long(MARK), ctypes.c_long(self.writer)
        self.set()
        self.read()

    def set(self) -> None:
        """One more mark; a pipe holds 4096 of them."""
        self.call(*self.arguments)

    def read(self) -> list[Counts]:
        """Counts at the marks since the last reading."""
        try:
            found = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            raise UserError(
                "nothing counts instructions here; name an emulated device, and run `toolchain devices setup` "
                "with its name again"
            ) from None
        return [RECORD.unpack_from(found, at) for at in range(0, len(found), RECORD.size)]
