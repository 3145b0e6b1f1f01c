"""What a worker had in force is there for the next one, whenever the first one died."""

import os

import pytest

from gateway.configuration.policy_memory import PolicyMemory
from policies.compile import Source


def sources(number: int) -> list[Source]:
    return [Source(f"{name}.yaml", f"text {number} of {name}" * number, "/etc") for name in ("a", "b")]


def test_what_was_kept_last_is_recalled() -> None:
    memory = PolicyMemory()
    before = memory.recall()
    recalled = []
    for number in range(5):
        memory.keep(sources(number))
        recalled.append(memory.recall())

    assert before is None
    assert recalled == [sources(number) for number in range(5)]


@pytest.mark.parametrize("written", [0, 1, 16, 40])
def test_a_death_while_writing_leaves_what_was_kept_before(written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PolicyMemory()
    memory.keep(sources(1))
    memory.keep(sources(2))
    write = os.pwrite

    def die(place: int, content: bytes, offset: int) -> int:
        write(place, content[:written], offset)
        raise InterruptedError

    monkeypatch.setattr(os, "pwrite", die)
    with pytest.raises(InterruptedError):
        memory.keep(sources(3))
    monkeypatch.undo()
    after = memory.recall()
    memory.keep(sources(4))

    assert (after, memory.recall()) == (sources(2), sources(4))


def test_a_forked_process_leaves_it_to_its_parent() -> None:
    memory = PolicyMemory()
    pid = os.fork()
    if pid == 0:
        memory.keep(sources(7))
        os._exit(0)
    os.waitpid(pid, 0)

    assert memory.recall() == sources(7)
