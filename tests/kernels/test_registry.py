"""An instance that could never be launched is refused where it is written down."""

import pytest

from engine.kernels.registry import EVERYWHERE, HOPPER, SHARED_BYTES, Instance
from engine.kernels.table import INSTANCES

GOOD = Instance("a.cu", "a<1>", "PiufqT", (32, 4, 1), SHARED_BYTES["sm_90a"], HOPPER)


def instance(**changes: object) -> Instance:
    given = {"source": "a.cu", "expression": "a<1>", "signature": "P", "block": (32, 1, 1), **changes}
    return Instance(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": "Px"},
        {"block": (1024, 2, 1)},
        {"block": (32, 0, 1)},
        {"shared_bytes": 99 * 1024 + 1},
        {"shared_bytes": 227 * 1024 + 1, "archs": HOPPER},
        {"shared_bytes": -1},
        {"archs": ()},
        {"archs": ("sm_100a",)},
    ],
    ids=str,
)
def test_an_instance_that_no_device_takes_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match=r"^a\.cu: a<1>: "):
        instance(**changes)


def test_an_instance_is_named_by_its_file_and_expression() -> None:
    assert str(GOOD) == "a.cu: a<1>"


def test_instances_are_the_same_only_if_they_are_one() -> None:
    assert instance() != instance()
    assert len({GOOD, GOOD}) == 1


def test_what_is_for_every_card_is_for_hopper_too() -> None:
    assert set(HOPPER) < set(EVERYWHERE)


def test_the_table_names_each_kernel_once() -> None:
    names = [str(instance) for instance in INSTANCES]

    assert sorted(names) == sorted(set(names))
