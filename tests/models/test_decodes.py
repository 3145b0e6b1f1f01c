"""Decodes that keep what they gathered give what gathering afresh gives, whoever joins, leaves, grows or comes back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.attention import PagedAttention
from engine.batch import Row
from engine.decodes import ROOM, Decodes
from engine.kv_pool import KeyValuePool
from engine.models.config import load_config
from engine.models.decoder import load_decoder
from engine.params import SamplingParams
from engine.sequence import Sequence

GREEDY = SamplingParams(max_tokens=200, temperature=0.0)


class Line:
    """A decoder over its own pool; `keep_bytes` 0 gathers afresh in every step."""

    def __init__(self, directory: Any, keep_bytes: int, dtype: torch.dtype) -> None:
        self.config = load_config(directory)
        self.decoder = load_decoder(directory, self.config, dtype)
        self.pool = KeyValuePool(self.config, 80, 16, dtype)
        self.decodes = Decodes(self.config, self.pool, keep_bytes)

    def logits(self, rows: list[Row]) -> torch.Tensor:
        rows = sorted(rows, key=lambda row: (row.count > 1, row.start))
        ids = torch.tensor([t for row in rows for t in row.sequence.token_ids[row.start : row.start + row.count]])
        positions = torch.cat([torch.arange(row.start, row.start + row.count) for row in rows])
        attention = PagedAttention(self.config, self.pool, self.decodes, rows)
        with torch.inference_mode():
            return self.decoder.logits(self.decoder.forward(ids, positions, attention))


def sequence_of(number: int, length: int) -> Sequence:
    token_ids = torch.randint(0, 256, (220,), generator=torch.Generator().manual_seed(number)).tolist()
    sequence = Sequence("a", number, token_ids, length, GREEDY)
    sequence.block_table = [number * 14 + block for block in range(14)]
    return sequence


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("llama", torch.float32, 1e-5), ("qwen2", torch.float32, 1e-5), ("llama", torch.bfloat16, 0.1)],
)
def test_keeping_changes_nothing(family: str, dtype: torch.dtype, tolerance: float, build: Callable[..., Any]) -> None:
    directory = build(family).directory
    keeping, fresh = Line(directory, 1 << 22, dtype), Line(directory, 0, dtype)
    sequences = [sequence_of(number, 0) for number in range(5)]
    at = [3, 40, 17, 61, 90]
    running = [0, 1, 2]
    for number, length in enumerate(at):
        for line in (keeping, fresh):
            line.logits([Row(sequences[number], 0, length, False)])
    for step in range(ROOM + 20):
        if step == 10:
            running.append(4)  # joins
        if step == 20:
            running.remove(1)  # leaves
            keeping.decodes.forget(sequences[1])
        if step == 30:
            running.append(1)  # comes back where it was
        if step == 40:
            at[2] -= 5  # goes back a few tokens, as after rejected drafts
        rows = [Row(sequences[number], at[number], 1, True) for number in running]
        if step == 50:
            rows.append(Row(sequences[3], at[3], 7, True))  # a prompt beside them
        torch.testing.assert_close(keeping.logits(rows), fresh.logits(rows), atol=tolerance, rtol=0)
        for number in running:
            at[number] += 1

    assert keeping.decodes._kept
    assert all(group.kept for group in keeping.decodes._kept) == (None in keeping.config.windows)
    assert not any(group.kept for group in fresh.decodes._kept)
