"""What the compiler's log says of a kernel: registers, stack, spills, and warnings that cost speed.

ptxas is asked for it with `-v` and `--warn-on-spills`, and NVRTC hands its text on in the program's log. A stack frame
means that something is indexed at run time that should live in registers; a spill, that registers ran out. Warnings
such as C7510 say that ptxas made wgmma wait where the source did not.
"""

import re
from dataclasses import dataclass

REGISTERS = re.compile(r"Used (\d+) registers")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
SHARED = re.compile(r"(\d+) bytes smem")
WARNING = re.compile(r"^.*(?:\(C\d+\)|[Ww]arning).*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel takes of the hardware. Sizes in bytes a thread, shared memory (static) a block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    warnings: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing in memory that should be in a register, and nothing that the compiler warned of."""
        return not (self.stack or self.spill_stores or self.spill_loads or self.warnings)

    def __str__(self) -> str:
        told = (
            f"{self.registers} registers, {self.stack} bytes of stack, {self.spill_stores + self.spill_loads} spilled"
        )
        return "; ".join((told, *self.warnings))


def read_log(log: str) -> Usage:
    """Read the log of a program that holds one kernel. Functions that are not inlined count to it."""
    memory = [tuple(map(int, found)) for found in MEMORY.findall(log)]
    return Usage(
        registers=max(map(int, REGISTERS.findall(log)), default=0),
        stack=max((stack for stack, _, _ in memory), default=0),
        spill_stores=sum(stores for _, stores, _ in memory),
        spill_loads=sum(loads for _, _, loads in memory),
        static_shared=max(map(int, SHARED.findall(log)), default=0),
        warnings=tuple(dict.fromkeys(line.strip() for line in WARNING.findall(log))),
    )
