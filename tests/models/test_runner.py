"""The CPU runner's own promises: one result a sampling row, failures that stay with their row, honest sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batch import Batch, Row
from engine.cpu_runner import CpuRunner, load_cpu_runner
from engine.errors import ModelError
from engine.models.config import load_config
from engine.models.decoder import load_decoder
from engine.params import SamplingParams
from engine.sequence import Sequence

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


def sequence_of(token_ids: list[int], blocks: list[int]) -> Sequence:
    sequence = Sequence("a", 0, token_ids, len(token_ids), GREEDY)
    sequence.block_table = blocks
    return sequence


def test_results_stand_in_the_order_of_the_batch(build: Callable[..., Any]) -> None:
    runner = build("llama").runner()
    rows = []
    for number, length in enumerate((30, 5, 17, 9)):
        sequence = sequence_of([(number * 50 + i) % 256 for i in range(length)], [2 * number, 2 * number + 1])
        rows.append(Row(sequence, 0, length, number != 2))
    alone = [runner.run(Batch((row,), row.count)) for row in rows]
    together = runner.run(Batch(tuple(rows), sum(row.count for row in rows)))
    decodes = [Row(row.sequence, row.count - 1, 1, row.samples) for row in rows]  # their last tokens once more

    assert alone[2] == []
    assert together == [alone[0][0], alone[1][0], alone[3][0]]
    assert runner.run(Batch((decodes[0], decodes[1], rows[3]), 11)) == together


def test_a_row_that_is_not_finite_fails_alone_and_poisons_nobody(build: Callable[..., Any]) -> None:
    reference = build("llama")
    config = load_config(reference.directory)
    decoder = load_decoder(reference.directory, config, torch.float32)
    runner = CpuRunner(decoder, kv_bytes=1 << 20)
    healthy = [sequence_of([1, 2, 3, 4, 5], [0]), sequence_of([9, 8, 7], [2])]
    rows = [Row(sequence, 0, len(sequence.token_ids), True) for sequence in healthy]
    expected = runner.run(Batch(tuple(rows), 8))
    decoder._embedding[200] = float("nan")
    sick = sequence_of([5, 200, 6], [1])

    results = runner.run(Batch((rows[0], Row(sick, 0, 3, True), rows[1]), 11))
    reused = sequence_of([1, 2, 3, 4, 5], [1])
    again = runner.run(Batch((Row(reused, 0, 5, True),), 5))
    decoded = runner.run(Batch((Row(reused, 4, 1, True),), 1))

    assert [results[0], results[2]] == expected
    assert results[1].error is not None
    assert results[1].token_ids == ()
    assert again == decoded == expected[:1]


def test_the_pool_is_as_large_as_its_bytes_allow(build: Callable[..., Any]) -> None:
    reference = build("llama")
    config = load_config(reference.directory)
    per_block = config.kv_elements_per_token * 16 * 4

    assert reference.runner(per_block * 10).num_blocks == 9  # and the one that pads
    with pytest.raises(ModelError, match="kv_bytes: expected at least"):
        reference.runner(per_block)


def test_the_context_can_be_shortened_not_stretched(build: Callable[..., Any]) -> None:
    directory = build("llama").directory

    assert load_cpu_runner(directory, kv_bytes=1 << 20, max_model_len=100).max_model_len == 100
    assert load_cpu_runner(directory, kv_bytes=1 << 20, max_model_len=100_000).max_model_len == 256


def test_an_unknown_dtype_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="dtype: expected auto, float32, bfloat16, got 'int8'"):
        load_cpu_runner(build("llama").directory, dtype="int8")
