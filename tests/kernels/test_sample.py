"""The kernel draws the tokens that the CPU sampler draws, from the law that the parameters describe."""

from collections.abc import Sequence as Seq
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.emulator import Emulator
from engine.kernels.logits import logits_reference
from engine.kernels.sample import (
    MAX_VOCAB,
    NARROW,
    NOT_FINITE,
    NOTHING_ALLOWED,
    WIDE_FROM,
    draw_reference,
    law_reference,
    sample,
)
from engine.kernels.sources import Sources, installed_sources
from engine.params import SamplingParams
from engine.philox import uniforms
from engine.sampler import Sampler
from engine.sequence import Sequence
from tests.kernels.chi_square import counted, excess_over_independence, excess_over_law
from tests.kernels.sampling_rows import draw, draw_there, draws_of, params_of, places_of, uniform_of

INF = float("inf")
HAIR = 2e-6  # what rounding may move a border of a law by


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def divided(raw: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Give the logits as the `logits` kernel leaves them: this kernel is tested by itself."""
    return logits_reference(raw, torch.tensor([row.temperature for row in params]))


def any_params(rng: np.random.Generator) -> SamplingParams:
    return params_of(
        temperature=float(rng.choice([0.0, 0.5, 1.0, 1.5])),
        top_k=int(rng.choice([0, 0, 1, 5, 50, 1000])),
        top_p=float(rng.choice([1.0, 0.9, 0.5, 0.999])),
        min_p=float(rng.choice([0.0, 0.0, 0.05, 0.3])),
        seed=int(rng.integers(2**63)) * 2 + int(rng.integers(2)),
    )


def cpu_tokens(raw: Tensor, params: Seq[SamplingParams], positions: Seq[int]) -> list[int]:
    """Give the tokens of the CPU sampler."""
    sequences = [
        Sequence("a", 0, [0] * position, position, row) for row, position in zip(params, positions, strict=True)
    ]
    return [sampled.token_ids[0] for sampled in Sampler().sample(raw.clone(), sequences)]


def is_steady(row: Tensor, params: SamplingParams, position: int) -> bool:
    """Whether the token stays the same when every border moves by a hair, so that rounding cannot change it."""
    uniform = uniform_of(params, position)
    tokens = set()
    for move_p, move_min in product((-HAIR, HAIR), repeat=2):
        top_p = params.top_p if params.top_p == 1 else params.top_p + move_p
        law = law_reference(row, params.top_k, top_p, params.min_p * (1 + move_min))
        tokens |= set(draw_reference(law, np.clip([uniform - HAIR, uniform + HAIR], 0, 1 - HAIR)).tolist())
    return len(tokens) == 1


def check_against_cpu(device: Device, vocab: int, num_rows: int, seed: int = 0) -> int:
    """Compare random rows with the CPU sampler; give how many of the drawn ones were away from every border."""
    rng = np.random.default_rng(seed)
    params = [any_params(rng) for _ in range(num_rows)]
    positions = rng.integers(1, 80, num_rows).tolist()
    raw = randn(num_rows, vocab, seed=seed) * torch.from_numpy(rng.choice([1.0, 3.0, 6.0], (num_rows, 1))).float()
    expected = cpu_tokens(raw, params, positions)
    processed = divided(raw, params)
    tokens, errors = draw(device, processed, draws_of(device, params, positions))

    assert not errors.any()
    steady = 0
    for row, (got, wanted) in enumerate(zip(tokens.tolist(), expected, strict=True)):
        if params[row].temperature == 0:
            assert got == wanted
            continue
        if got != wanted:
            assert not is_steady(processed[row], params[row], positions[row]), (row, params[row], got, wanted)
        steady += got == wanted
    return steady


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check_against_cpu(device, 300, 40)
    check_against_cpu(device, 2000, 10)
    check_against_cpu(device, WIDE_FROM + 900, 6, seed=1)
    check_flat(device, 2000)
    check_flat(device, 2 * WIDE_FROM + 77)
    check_narrow(device, 512)
    check_narrow(device, 513)
    check_random_numbers(device, 64)
    check_equals(device, {"top_k": 8, "top_p": 0.625})
    check_equals_below(device, likeliest=207)
    check_failures(device)


@pytest.mark.parametrize(("vocab", "num_rows"), [(17, 60), (300, 60), (2000, 20), (WIDE_FROM + 900, 12)])
def test_the_tokens_are_the_cpu_samplers(device: Device, vocab: int, num_rows: int) -> None:
    assert check_against_cpu(device, vocab, num_rows) > num_rows / 2


def test_thousands_of_tokens_are_the_cpu_samplers(fastest: Device) -> None:
    assert check_against_cpu(fastest, 257, 4000, seed=5) > 2900


def test_the_largest_vocabulary_fits(fastest: Device) -> None:
    check_against_cpu(fastest, MAX_VOCAB, 3, seed=2)
    equal = torch.zeros(1, MAX_VOCAB)
    params = params_of(seed=8)
    tokens, _ = draw(fastest, equal, draws_of(fastest, [params], [3]))

    assert tokens.tolist() == [int(uniform_of(params, 3) * MAX_VOCAB)]


def check_flat(device: Device, vocab: int) -> None:
    """Hold nearly flat laws to the reference: of a large vocabulary more is left, at some levels, than is listed."""
    narrow = randn(vocab, seed=3) * 0.01
    narrow[5] = -INF
    steps = torch.randint(200, (vocab,), generator=torch.Generator().manual_seed(4)) * 2.0**-23
    edges = steps * 2**18  # each on the edge of a bin
    cases: list[tuple[Tensor, dict[str, float]]] = [
        (narrow, {"top_k": vocab * 3 // 4}),
        (narrow, {"top_p": 0.9}),
        (narrow, {"top_k": vocab * 5 // 6, "top_p": 0.8, "min_p": 0.985}),
        (narrow, {"top_k": 10**6}),
        (narrow, {"top_k": vocab * 3 // 8}),
        (narrow, {"top_p": 0.4}),
        (steps, {"top_k": vocab * 3 // 8}),
        (steps, {"top_p": 0.3}),
        (edges, {"top_k": vocab // 9}),
        (edges, {"top_p": 0.7}),
    ]
    params = [params_of(seed=seed, **fields) for seed, (_, fields) in enumerate(cases)]
    logits = torch.stack([row for row, _ in cases])
    tokens, _ = draw(device, logits, draws_of(device, params, [9] * len(params)))
    for token, row, wanted in zip(tokens.tolist(), logits, params, strict=True):
        law = law_reference(row, wanted.top_k, wanted.top_p, wanted.min_p)
        lowest, highest = draw_reference(law, uniform_of(wanted, 9) + np.array([-HAIR, HAIR])).tolist()

        assert lowest <= token <= highest
        assert law[token] > 0


@pytest.mark.parametrize("vocab", [2000, 2 * WIDE_FROM + 77])
def test_a_flat_law_is_cut_where_it_should(device: Device, vocab: int) -> None:
    check_flat(device, vocab)


def check_random_numbers(device: Device, vocab: int) -> None:
    """Of tokens that are equally likely, 2 to the power of n, the token is the number's first n bits."""
    places = [
        (0, 1, 0),
        (-1, 1, 0),
        (2**64 - 1, 7, 3),
        (2**63, 2**32 + 5, 1),
        (12345, 2**40, 7),
        (-(2**63), 1, 2**31 - 1),
    ]
    params = [params_of(seed=seed) for seed, _, _ in places]
    draws = draws_of(device, params, [place[1] for place in places], [place[2] for place in places])
    tokens, _ = draw(device, torch.full((len(places), vocab), -3.25), draws)

    assert tokens.tolist() == [int(uniforms(seed, choice, position, 1)[0] * vocab) for seed, position, choice in places]


@pytest.mark.parametrize("vocab", [64, 1024])
def test_the_random_number_is_that_of_seed_position_and_choice(device: Device, vocab: int) -> None:
    check_random_numbers(device, vocab)


def check_equals(device: Device, fields: dict[str, float]) -> None:
    """Hold filters that leave five of ten equals to the five with the lowest ids."""
    logits = torch.full((1, 400), -70.0)
    equals = [3, 50, 51, 120, 200, 201, 202, 250, 333, 399]
    logits[0, equals] = 11.0
    params = [params_of(seed=seed, **fields) for seed in range(60)]
    tokens, _ = draw(device, logits.expand(60, -1), draws_of(device, params, [1] * 60))

    assert set(tokens.tolist()) == set(equals[:5])


@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_p": 0.5}, {"top_k": 8, "top_p": 0.625}])
def test_of_equals_at_the_border_those_with_the_lowest_ids_are_kept(device: Device, fields: dict[str, float]) -> None:
    check_equals(device, fields)


def check_equals_below(device: Device, likeliest: int) -> None:
    """Hold a filter that leaves the likeliest and three of twenty equals to the three with the lowest ids."""
    logits = torch.full((1, 300), -2.0)
    logits[0, 200:220] = 0.5
    logits[0, likeliest] = 1.0
    law = law_reference(logits[0], 4, 1.0, 0.0)
    params = [params_of(seed=seed, top_k=4) for seed in range(50)]
    tokens, _ = draw(device, logits.expand(50, -1), draws_of(device, params, [1] * 50))

    assert set(tokens.tolist()) == {likeliest, 200, 201, 202}
    assert tokens.tolist() == [int(draw_reference(law, np.array([uniform_of(row, 1)]))) for row in params]


@pytest.mark.parametrize("likeliest", [100, 207, 290])
def test_equals_below_the_likeliest_are_cut_the_same_way(device: Device, likeliest: int) -> None:
    check_equals_below(device, likeliest)


def check_narrow(device: Device, vocab: int) -> None:
    """Hold filters that leave one token to the likeliest, wherever it stands."""
    fields = [{"top_k": 1}, {"top_p": 1e-12}, {"min_p": 1.0}, {"temperature": 0.0}]
    params = [params_of(seed=seed, **chosen) for seed, chosen in enumerate(fields)] * 3
    logits = randn(12, vocab, seed=vocab)
    logits[4:8, 0] = logits[8:, -1] = 9.0
    tokens, _ = draw(device, logits, draws_of(device, params, [4] * 12))

    assert torch.equal(tokens.long(), logits.argmax(-1))


@pytest.mark.parametrize("vocab", [1, 2, 17, 512, 513, WIDE_FROM])
def test_the_narrowest_filters_are_greedy(device: Device, vocab: int) -> None:
    check_narrow(device, vocab)


def test_greedy_takes_the_lowest_id_among_equals_and_minus_zero_is_zero(device: Device) -> None:
    logits = torch.full((3, 5000), -1.0)
    logits[0, [4000, 17, 3]] = 1.0
    logits[1, [4999, 7]] = torch.tensor([0.0, -0.0])
    tokens, _ = draw(device, logits, draws_of(device, [params_of(temperature=0.0)] * 3, [1] * 3))

    assert tokens.tolist() == [3, 7, 0]


def test_ugly_rows_give_a_token_that_has_mass(device: Device) -> None:
    vocab = 200
    only = torch.full((vocab,), -INF)
    only[77] = -65504.0
    masked = randn(vocab, seed=1)
    masked[::2] = -INF
    ends = torch.tensor([-65504.0, 65504.0] * (vocab // 2))
    tiny = torch.arange(vocab) * 1e-45
    rows = [only, masked, ends, tiny, torch.full((vocab,), 3e38), -torch.arange(vocab) * 1e36, torch.zeros(vocab)]
    filters = [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.5}, {"top_k": 90, "top_p": 0.99, "min_p": 1e-4}]
    cases = list(product(range(len(rows)), filters, range(3)))
    params = [params_of(seed=seed, **fields) for _, fields, seed in cases]
    tokens, errors = draw(
        device, torch.stack([rows[row] for row, _, _ in cases]), draws_of(device, params, [1] * len(cases))
    )

    assert not errors.any()
    for token, (row, fields, seed) in zip(tokens.tolist(), cases, strict=True):
        law = law_reference(rows[row], fields.get("top_k", 0), fields.get("top_p", 1.0), fields.get("min_p", 0.0))
        assert law[token] > 0, (row, fields, seed, token)


def check_failures(device: Device) -> None:
    logits = randn(6, 300, seed=4)
    params: list[SamplingParams | None] = [params_of(seed=row, top_k=20, top_p=0.9) for row in range(6)]
    params[5] = params_of(temperature=0.0)
    expected, _ = draw(device, logits, draws_of(device, params, [2] * 6))
    logits[1, 299] = torch.nan
    logits[2, 0] = INF
    logits[4] = -INF
    logits[5, 7] = -torch.tensor(torch.nan)
    tokens, errors = draw(device, logits, draws_of(device, params, [2] * 6))

    assert errors.tolist() == [0, NOT_FINITE, NOT_FINITE, 0, NOTHING_ALLOWED, NOT_FINITE]
    assert tokens.tolist() == [int(expected[0]), -1, -1, int(expected[3]), -1, -1]


def test_a_row_that_is_not_finite_or_allows_nothing_fails_alone(device: Device) -> None:
    check_failures(device)


def test_padding_is_left_alone_and_what_lies_between_rows_is_not_read(device: Device) -> None:
    store = device.upload(torch.full((4, 320), torch.nan))
    store[0, :300] = device.upload(randn(300, seed=6))
    store[2, :300] = store[0, :300]
    params = [params_of(seed=1, top_p=0.9), None, params_of(seed=1, top_p=0.9), None]
    tokens, errors = draw_there(device, store[:, :300], draws_of(device, params, [5] * 4))

    assert tokens[0] == tokens[2] >= 0
    assert tokens[[1, 3]].tolist() == errors[[1, 3]].tolist() == [-9, -9]


@pytest.mark.parametrize("fields", [{}, {"top_k": 30}, {"top_p": 0.8}, {"top_k": 40, "top_p": 0.95, "min_p": 0.02}])
def test_a_token_depends_on_no_slot_no_batch_and_no_word_that_cannot_come(
    device: Device, fields: dict[str, float]
) -> None:
    """The same row in a vocabulary that is longer by impossible words is drawn by another instance of the kernel."""
    row = randn(900, seed=7) * 3
    long = torch.cat([row, torch.full((WIDE_FROM,), -INF)])
    others = randn(9, 900, seed=8)
    mates: list[SamplingParams | None] = [params_of(seed=seed, top_k=seed * 9, top_p=0.7) for seed in range(9)]
    for seed in range(3):
        params = params_of(seed=seed, **fields)
        alone, _ = draw(device, row[None], draws_of(device, [params], [6]))
        wide, _ = draw(device, long[None], draws_of(device, [params], [6]))

        assert torch.equal(wide, alone)
        for slot in (0, 4, 9):
            batch = torch.cat([others[:slot], row[None], others[slot:]])
            draws = draws_of(device, [*mates[:slot], params, *mates[slot:]], [1] * slot + [6] + [1] * (9 - slot))
            tokens, _ = draw(device, batch, draws)
            again, _ = draw(device, batch, draws)

            assert tokens[slot] == alone[0]
            assert torch.equal(tokens, again)


LAWS: list[dict[str, float]] = [{}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}]


def drawn(device: Device, row: Tensor, number: int, fields: dict[str, float]) -> Tensor:
    """Draw many tokens from one row, which lies in memory once."""
    rows = device.upload(row[None]).expand(number, -1)
    tokens, errors = draw_there(device, rows, places_of(device, params_of(**fields), number))

    assert not errors.any()
    return tokens


@pytest.mark.parametrize("fields", LAWS)
def test_20_000_draws_follow_the_law_in_every_slot(fastest: Device, fields: dict[str, float]) -> None:
    row = randn(300, seed=9) * 2
    law = law_reference(row, int(fields.get("top_k", 0)), fields.get("top_p", 1.0), fields.get("min_p", 0.0))
    tokens = drawn(fastest, row, 20_000, fields)

    assert excess_over_law(counted(tokens, 300), law) < 1

    cells = torch.full((300,), 20)  # the twenty likeliest have their own
    cells[law.argsort(descending=True)[:20]] = torch.arange(20)
    slots = torch.arange(20_000) % 8
    table = torch.bincount(slots * 21 + cells[tokens.long()], minlength=8 * 21).view(8, 21)

    assert excess_over_independence(table[:, table.sum(0) > 0]) < 1


def test_a_sum_that_is_short_of_one_token_is_caught(
    kernel_cache: DiskCache, emulator: EmulatedDevice, tmp_path: Path
) -> None:
    """The test of the law has teeth: each warp's part, planted, ends one token early."""
    right = "const int part_end = min(part_begin + size, end);"
    text = (installed_sources() / "sample.cu").read_text()
    assert text.count(right) == 1
    (tmp_path / "sample.cu").write_text(text.replace(right, right.replace("size, end)", "size, end) - 1")))
    broken = EmulatedDevice(Emulator(kernel_cache, Sources(tmp_path, installed_sources())), emulator.mode)
    row = randn(2 * NARROW, seed=9)
    row[[NARROW - 1, 2 * NARROW - 1]] = 4.0  # the last of the two parts
    law = law_reference(row, 0, 1.0, 0.0)

    assert excess_over_law(counted(drawn(emulator, row, 2_000, {}), len(row)), law) < 1
    assert excess_over_law(counted(drawn(broken, row, 2_000, {}), len(row)), law) > 1


@pytest.mark.parametrize("fields", [*LAWS, {"top_p": 0.95}, {"top_k": 1000}, {"min_p": 1e-3}])
def test_the_reference_follows_the_law_of_a_large_vocabulary(fields: dict[str, float]) -> None:
    row = randn(128_256, seed=10) * 3
    top_k, top_p, min_p = int(fields.get("top_k", 0)), fields.get("top_p", 1.0), fields.get("min_p", 0.0)
    law = law_reference(row, top_k, top_p, min_p)
    tokens = draw_reference(law, uniforms(11, 0, 0, 500_000))

    assert excess_over_law(counted(tokens, 128_256), law) < 1
    assert excess_over_law(counted((tokens + 1).clamp(max=128_255), 128_256), law) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fields", [*LAWS, {"top_p": 0.95}, {"top_k": 1000}, {"min_p": 1e-3}])
def test_two_million_draws_on_a_card_follow_the_law_of_a_large_vocabulary(
    card: Device, fields: dict[str, float]
) -> None:
    row = randn(128_256, seed=10) * 3
    law = law_reference(row, int(fields.get("top_k", 0)), fields.get("top_p", 1.0), fields.get("min_p", 0.0))

    assert excess_over_law(counted(drawn(card, row, 2_000_000, fields), 128_256), law) < 1


def test_shapes_that_do_not_fit_are_refused(emulator: EmulatedDevice) -> None:
    draws = draws_of(emulator, [params_of()] * 2, [1, 1])
    tokens, errors = (emulator.empty((2,), torch.int32) for _ in range(2))
    rows = emulator.zeros((2, 64), torch.float32)
    for bad in (rows[:, ::2], rows.to(torch.bfloat16), rows[:1], rows[:, :0]):
        with pytest.raises(ShapeError):
            sample(emulator, tokens, errors, bad, draws)
    with pytest.raises(ShapeError, match="errors"):
        sample(emulator, tokens, errors.long(), rows, draws)
