"""The proof of the proof: kernels that were made wrong on purpose are found to be wrong.

By default a few mutants of one small kernel, so that the machinery is known to work; `make prove-kernels` is all of
them. A survivor must stand in `excused.txt` with a reason.
"""

import pytest

from tests.kernels.mutation.hunt import Fate, all_stems, excused, hunt, mutants_of
from tests.kernels.mutation.mutants import mutants


def survivors(stem: str, every: int = 1) -> set[str]:
    """Mutants of a kernel that nobody noticed and nobody excused."""
    return {one.mutant.name for one in hunt(stem, every) if one.fate is Fate.SURVIVED} - excused().keys()


def test_some_mutants_of_a_small_kernel_are_caught() -> None:
    found = hunt("silu_mul", every=4)
    fates = [one.fate for one in found]

    assert Fate.CAUGHT in fates
    assert {one.mutant.name for one in found if one.fate is Fate.SURVIVED} <= excused().keys()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("stem", all_stems())
def test_every_mutant_is_caught_or_excused(stem: str) -> None:
    assert survivors(stem) == set()


@pytest.mark.slow
def test_an_excuse_is_of_a_mutant_that_there_is() -> None:
    there_are = {mutant.name for stem in all_stems() for mutant, _ in mutants_of(stem, all_stems())}

    assert excused().keys() <= there_are


def test_an_excuse_says_why() -> None:
    reasons = excused()

    assert all(reason.startswith(("equivalent: ", "beyond: ", "open: ")) for reason in reasons.values()), reasons


def changes(line: str) -> set[str]:
    """What becomes of a line."""
    return {mutant.after for mutant in mutants("a.cu", line)}


def test_what_orders_is_left_out_and_what_counts_is_shifted() -> None:
    assert changes("  __syncthreads();") == {"((void)0);"}
    assert changes("cp_async_wait<kStages - 2>();") == {"((void)0);", "cp_async_wait<(kStages - 2) + 1>();"}
    assert changes("mbar_wait(&full[stage], (step / 2) & 1);") == {
        "((void)0);",
        "mbar_wait(&full[stage], ((step / 2) & 1) ^ 1);",
    }
    assert changes("if (lane == 0) mbar_expect_tx(full, kBytes);") == {
        "if (lane == 0) ((void)0);",
        "if (lane == 0) mbar_expect_tx(full, (kBytes) + 16);",
        "if (lane == 0) mbar_expect_tx(full, (kBytes) - 16);",
    }


def test_bounds_and_guards_take_one_more_and_one_less() -> None:
    assert changes("for (int i = 0; i < n; i++) {") == {
        "for (int i = 0; i <= n; i++) {",
        "for (int i = 0; i < (n) - 1; i++) {",
    }
    assert changes("if (row < rows && column < columns) {") == {
        "if (row <= rows && column < columns) {",
        "if (row < rows && column <= columns) {",
        "if (row < rows) {",
        "if (column < columns) {",
    }
    assert changes("cp_async16(to, from, there);") == {"cp_async16(to, from, true);"}


def test_what_is_no_code_is_left_alone() -> None:
    assert changes("// for (int i = 0; i < n; i++)") == set()
    assert changes("#if __CUDA_ARCH__ >= 900") == set()
    assert changes("template <int n, bool wide>") == set()
    assert changes("wgmma_regs_fence(d);") == set()
