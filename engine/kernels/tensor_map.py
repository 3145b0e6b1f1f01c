"""What TMA is told of a tensor: innermost dimension first, strides in bytes, and a box to copy at once."""

from dataclasses import dataclass

MAP_BYTES = 128
MAX_RANK = 4  # the hardware's is 5; no kernel here needs it
MAX_BOX = 256
SWIZZLES = (0, 32, 64, 128)
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a tensor map says, innermost dimension first. `strides_bytes` leaves out the innermost, which is dense."""

    address: int
    data_type: int
    element_bytes: int
    sizes: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    box: tuple[int, ...]
    swizzle_bytes: int

    @property
    def rank(self) -> int:
        return len(self.sizes)
