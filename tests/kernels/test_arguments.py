"""Arguments lie in memory as the driver and the emulator read them, and one that does not fit is named."""

import ctypes

import pytest

from engine.errors import LaunchError
from engine.kernels.arguments import Argument, ArgumentBlock
from engine.kernels.registry import Instance

MAP = bytes(range(128))


def block(signature: str) -> ArgumentBlock:
    return ArgumentBlock(Instance("a.cu", "a<1>", signature, (32, 1, 1)))


def read(packed: ArgumentBlock, place: int, size: int) -> bytes:
    """What the void** points to at this place."""
    pointer = ctypes.c_void_p.from_address(packed.address + place * 8).value
    assert pointer is not None
    return ctypes.string_at(pointer, size)


def test_each_pointer_leads_to_its_value() -> None:
    packed = block("iPTufqi")
    packed.pack((-2, 2**64 - 1, MAP, 2**32 - 1, 0.5, -(2**63), 7))

    assert read(packed, 0, 4) == b"\xfe\xff\xff\xff"
    assert read(packed, 1, 8) == b"\xff" * 8
    assert read(packed, 2, 128) == MAP
    assert read(packed, 3, 4) == b"\xff" * 4
    assert read(packed, 4, 4) == b"\x00\x00\x00\x3f"
    assert read(packed, 5, 8) == b"\x00" * 7 + b"\x80"
    assert read(packed, 6, 4) == b"\x07\x00\x00\x00"


def test_eight_bytes_are_aligned_to_eight() -> None:
    packed = block("iPiqiT")
    packed.pack((1, 2, 3, 4, 5, MAP))
    first = ctypes.c_void_p.from_address(packed.address).value or 0
    places = [(ctypes.c_void_p.from_address(packed.address + 8 * place).value or 0) - first for place in range(6)]

    assert places == [0, 8, 16, 24, 32, 40]


def test_a_block_is_written_again_and_again() -> None:
    packed = block("i")
    for value in range(5):
        packed.pack((value,))

        assert read(packed, 0, 4) == value.to_bytes(4, "little")


def test_a_kernel_may_take_nothing() -> None:
    block("").pack(())


@pytest.mark.parametrize(
    ("signature", "arguments", "told"),
    [
        ("Pi", (1,), "takes 2 arguments, 1 were given"),
        ("Pi", (1, 2, 3), "takes 2 arguments, 3 were given"),
        ("TP", (MAP,), "takes 2 arguments, 1 were given"),
        ("Pi", (1, 2**31), "argument 2 of 2 is an int32 (i), got 2147483648"),
        ("Pi", (1, 2.0), "argument 2 of 2 is an int32 (i), got 2.0"),
        ("Pu", (1, -1), "argument 2 of 2 is a uint32 (u), got -1"),
        ("Pi", (-1, 2), "argument 1 of 2 is a pointer (P), got -1"),
        ("fq", (1e39, 2), "argument 1 of 2 is a float (f), got 1e+39"),
        ("fq", (1.0, 2**63), "argument 2 of 2 is an int64 (q), got 9223372036854775808"),
        ("PT", (1, MAP[:64]), "argument 2 of 2 is a tensor map (T), got 64 bytes"),
        ("PT", (1, MAP + b"!"), "argument 2 of 2 is a tensor map (T), got 129 bytes"),
        ("PT", (1, 2), "argument 2 of 2 is a tensor map (T), got 2"),
        ("TP", (MAP, MAP), "argument 2 of 2 is a pointer (P), got 128 bytes"),
    ],
    ids=str,
)
def test_an_argument_that_does_not_fit_is_named_by_its_place(
    signature: str, arguments: tuple[Argument, ...], told: str
) -> None:
    with pytest.raises(LaunchError) as raised:
        block(signature).pack(arguments)

    assert str(raised.value) == f"a.cu: a<1>: {told}"
