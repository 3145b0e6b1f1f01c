"""The arguments of a launch as the driver reads them: an array of pointers to values.

The array and the memory that it points into are made once for each kernel. A launch writes the values with one call of
`struct.pack_into`; the driver copies them before the launch returns, so that the block may be written again at once.
"""

import ctypes
import struct

from engine.errors import LaunchError
from engine.kernels.registry import LETTERS, Instance

Argument = int | float | bytes
NAMES = {"P": "a pointer", "i": "an int32", "u": "a uint32", "f": "a float", "q": "an int64", "T": "a tensor map"}


class ArgumentBlock:
    """Memory for one kernel's arguments. `address` is that of the `void**`. One thread at a time."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        layout, offsets, end = "<", [], 0
        for letter in instance.signature:
            code, size = LETTERS[letter]
            padding = -end % min(size, 8)
            offsets.append(end + padding)
            layout += "x" * padding + code
            end += padding + size
        self._struct = struct.Struct(layout)
        self._memory = bytearray(max(end, 1))
        start = ctypes.addressof((ctypes.c_char * len(self._memory)).from_buffer(self._memory))
        self._pointers = (ctypes.c_void_p * max(len(offsets), 1))(*(start + offset for offset in offsets))
        self.address = ctypes.addressof(self._pointers)
        self._maps = tuple(place for place, letter in enumerate(instance.signature) if letter == "T")

    def pack(self, arguments: tuple[Argument, ...]) -> None:
        """Write the values. Raises `LaunchError` that names the one that does not fit."""
        for place in self._maps:  # struct would pad or cut bytes of another length, and say nothing
            if place < len(arguments) and not _is_map(arguments[place]):
                raise self._refusal(arguments)
        try:
            self._struct.pack_into(self._memory, 0, *arguments)
        except (struct.error, OverflowError) as error:
            raise self._refusal(arguments) from error

    def _refusal(self, arguments: tuple[Argument, ...]) -> LaunchError:
        signature = self._instance.signature
        if len(arguments) != len(signature):
            return LaunchError(str(self._instance), f"takes {len(signature)} arguments, {len(arguments)} were given")
        for place, (letter, value) in enumerate(zip(signature, arguments, strict=True)):
            try:
                struct.pack(f"<{LETTERS[letter][0]}", value)
                fits = letter != "T" or _is_map(value)
            except (struct.error, OverflowError):
                fits = False
            if not fits:
                shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
                return LaunchError(
                    str(self._instance),
                    f"argument {place + 1} of {len(signature)} is {NAMES[letter]} ({letter}), got {shown}",
                )
        raise AssertionError("each argument fits by itself, and all together do not")


def _is_map(value: Argument) -> bool:
    return isinstance(value, bytes) and len(value) == LETTERS["T"][1]
