"""What a kernel instance is: one template `__global__` function with its arguments chosen, and how it is launched.

An instance is named by a C++ expression, such as `rms_norm<bf16, 256, true>`, and is compiled by itself to one small
cubin, so that a process loads only what it launches and a start never waits for what it does not use. The tables of
instances (`INSTANCES` in each `engine/kernels/<stem>.py`, all of them in `table.py`) are constants: what is not in a
table is never compiled and never launched.
"""

from dataclasses import dataclass

# What a letter of a signature stands for: its code in `struct` and its size in bytes.
LETTERS = {
    "P": ("Q", 8),  # a pointer
    "i": ("i", 4),  # int
    "u": ("I", 4),  # unsigned
    "f": ("f", 4),  # float
    "q": ("q", 8),  # long long
    "T": ("128s", 128),  # a TensorMap, by value
}

HOPPER = ("sm_90a",)
EVERYWHERE = ("sm_80", "sm_89", "sm_90", *HOPPER)

MAX_THREADS = 1024
# Of a block, static and dynamic together.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_90a": 227 * 1024}
REGISTERS = 65536  # of a multiprocessor; a warp takes them by 256


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """One kernel as it is compiled and launched. Compared by identity: a table holds the only one of its kind."""

    source: str
    """The file under `cuda/` that defines the template."""

    expression: str
    """The C++ name with its template arguments, as NVRTC takes name expressions."""

    signature: str
    """One letter of `LETTERS` for each parameter."""

    block: tuple[int, int, int]
    """Threads of a block."""

    shared_bytes: int = 0
    """Dynamic shared memory of a block."""

    archs: tuple[str, ...] = EVERYWHERE
    """What it is compiled for."""

    overlaps: bool = False
    """May start before its predecessor in the stream has ended: every block calls `pdl_wait()` first of all, also one
    that has nothing to do, since who comes next trusts that what came before this kernel ended before it did."""

    def __post_init__(self) -> None:
        threads = self.block[0] * self.block[1] * self.block[2]
        assert set(self.signature) <= LETTERS.keys(), f"{self}: a signature is made of {''.join(LETTERS)}"
        assert 0 < threads <= MAX_THREADS, f"{self}: {threads} threads in a block"
        assert self.archs, f"{self}: no arch"
        assert set(self.archs) <= set(EVERYWHERE), f"{self}: unknown arch"
        most = min(SHARED_BYTES[arch] for arch in self.archs)
        assert 0 <= self.shared_bytes <= most, f"{self}: {self.shared_bytes} bytes of shared memory, of {most}"

    def __str__(self) -> str:
        return f"{self.source}: {self.expression}"
