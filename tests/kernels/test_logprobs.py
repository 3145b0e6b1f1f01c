"""Log-probabilities are the model's own, of the right tokens, in the right order."""

from collections.abc import Sequence as Seq

import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.logits import FLOATS
from engine.kernels.logprobs import logprobs, logprobs_reference
from engine.kernels.sample import MAX_VOCAB, NARROW, WIDE, WIDE_FROM
from engine.params import MAX_LOGPROBS
from engine.sampler import Sampler
from engine.sequence import Sequence
from tests.kernels.closeness import assert_close_as_low_precision
from tests.kernels.sampling_rows import params_of


def rows_of(num_rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4).to(dtype)


def run(
    device: Device, raw: Tensor, chosen: Seq[int], rows: Seq[int], numbers: Seq[int], width: int = MAX_LOGPROBS
) -> tuple[Tensor, Tensor, Tensor]:
    """Give chosen log-probabilities, ids and log-probabilities, -9 where nothing was written."""
    results = [
        device.upload(torch.full((len(rows),), -9.0)),
        device.upload(torch.full((len(rows), width), -9, dtype=torch.int32)),
        device.upload(torch.full((len(rows), width), -9.0)),
    ]
    given = [device.upload(torch.tensor(column, dtype=torch.int32)) for column in (chosen, rows, numbers)]
    logprobs(device, results[0], results[1], results[2], device.upload(raw), *given)
    device.synchronize()
    return results[0].cpu(), results[1].cpu(), results[2].cpu()


def check(device: Device, num_rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> None:
    """Compare with the reference, every second row from the last on, each with another number."""
    raw = rows_of(num_rows, vocab, dtype, seed)
    raw[0, ::3] = raw[0, 0]  # many equals
    num_threads = WIDE if vocab >= WIDE_FROM else NARROW
    if vocab > num_threads:  # the likeliest of a thread's first or last
        raw[-1, [-1, -num_threads, -1 - num_threads, 0]] = torch.tensor([30.0, 29.0, 31.0, 28.0]).to(dtype)
        raw[-3:-2, -1] = 33.0
    chosen = [7 * row % vocab for row in range(num_rows)]
    rows = list(range(num_rows))[::-2]
    numbers = [(20, 0, 1, 5)[place % 4] for place in range(len(rows))]
    chosen_logprobs, ids, tops = run(device, raw, chosen, rows, numbers)
    for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        written = min(number, vocab)
        exact, exact_ids, exact_tops = logprobs_reference(raw[row], chosen[row], number)
        plain = torch.log_softmax(raw[row].float(), -1)
        got = torch.cat([chosen_logprobs[place][None], tops[place, :written]])

        assert ids[place].tolist() == exact_ids + [-9] * (MAX_LOGPROBS - written)
        assert_close_as_low_precision(got, torch.tensor([exact, *exact_tops]), plain[[chosen[row], *exact_ids]])
        assert (tops[place, written:] == -9).all()


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 5, 300, torch.bfloat16)
    check(device, 1, WIDE_FROM + 300, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab"), [(8, 17), (7, 300), (2, WIDE_FROM + 900)])
def test_values_and_order_are_the_references(device: Device, num_rows: int, vocab: int, dtype: torch.dtype) -> None:
    check(device, num_rows, vocab, dtype)


def test_the_largest_vocabulary_fits(emulator: EmulatedDevice) -> None:
    check(emulator, 1, MAX_VOCAB, torch.bfloat16)


def test_they_are_the_cpu_samplers(device: Device) -> None:
    raw = rows_of(6, 80)
    params = [params_of(temperature=0.0, logprobs=number, logit_bias={3: 9.0}) for number in (0, 1, 5, 20, 2, 7)]
    sampled = Sampler().sample(raw.clone(), [Sequence("a", 0, [1], 1, row) for row in params])
    tokens = [row.token_ids[0] for row in sampled]
    chosen, ids, tops = run(device, raw, tokens, range(6), [row.logprobs or 0 for row in params])
    for row, expected in enumerate(sampled):
        assert expected.logprobs is not None
        [law] = expected.logprobs
        written = len(law.top)

        assert float(chosen[row]) == pytest.approx(law.chosen, abs=2e-6)
        assert ids[row, :written].tolist() == [token for token, _ in law.top]
        assert tops[row, :written].tolist() == pytest.approx([value for _, value in law.top], abs=2e-6)


def test_ugly_rows_have_their_log_probabilities(device: Device) -> None:
    rows = [
        torch.zeros(300),
        torch.tensor([65504.0, -65504.0] * 150),
        torch.arange(300) * 1e-45,
        torch.full((300,), -65504.0).index_fill(0, torch.tensor([123]), 0.0),
        torch.zeros(300).index_fill(0, torch.tensor([2]), -0.0),
    ]
    chosen, ids, tops = run(device, torch.stack(rows), [9] * 5, range(5), [20] * 5)
    for place, row in enumerate(rows):
        exact, exact_ids, exact_tops = logprobs_reference(row, 9, 20)

        assert ids[place].tolist() == exact_ids
        assert float(chosen[place]) == pytest.approx(exact, rel=1e-6)
        assert tops[place].tolist() == pytest.approx(exact_tops, rel=1e-6)


def test_padding_and_failed_rows_are_left_alone(device: Device) -> None:
    raw = rows_of(3, 50)
    raw[1] = torch.nan
    chosen, ids, tops = run(device, raw, [4, -1, 6], [-1, 1, 2], [3, 3, 3])

    assert (chosen[:2] == -9).all()
    assert (ids[:2] == -9).all()
    assert (tops[:2] == -9).all()
    assert ids[2, :3].tolist() == raw[2].topk(3).indices.tolist()


def test_no_more_is_written_than_there_is_room_for(device: Device) -> None:
    _, ids, _ = run(device, rows_of(2, 50), [0, 0], [0, 1], [20, 2], width=4)

    assert (ids[0] >= 0).all()
    assert ids[1, 2:].tolist() == [-9, -9]


def test_a_row_has_the_same_bits_in_any_slot(device: Device) -> None:
    raw = rows_of(4, 700)
    together = run(device, raw, [5] * 4, [3, 1, 2, 0], [20, 3, 20, 20])
    again = run(device, raw, [5] * 4, [3, 1, 2, 0], [20, 3, 20, 20])
    alone = run(device, raw[2:3], [5], [0], [20])
    for part, repeated, single in zip(together, again, alone, strict=True):
        assert torch.equal(part, repeated)
        assert torch.equal(part[2:3], single)


def test_shapes_that_do_not_fit_are_refused(emulator: EmulatedDevice) -> None:
    chosen_logprobs = emulator.empty((1,), torch.float32)
    ids, tops = emulator.empty((1, 5), torch.int32), emulator.empty((1, 5), torch.float32)
    column, raw = emulator.zeros((1,), torch.int32), emulator.zeros((1, 64), torch.float32)
    with pytest.raises(ShapeError, match="dense rows"):
        logprobs(emulator, chosen_logprobs, ids, tops, raw[:, ::2], column, column, column)
    with pytest.raises(ShapeError, match="top_logprobs"):
        logprobs(emulator, chosen_logprobs, ids, tops[:, :4], raw, column, column, column)
    with pytest.raises(ShapeError, match="numbers"):
        logprobs(emulator, chosen_logprobs, ids, tops, raw, column, column, column.long())
