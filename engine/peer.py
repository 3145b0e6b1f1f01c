"""transformers on the same model, for the benchmark: one stream, static batches and its continuous batching.

The package is no part of an installation: it is looked for when a benchmark asks. It gets the form that serves it best
on a CPU: the fused attention, prompts padded on the left, no end-of-text token so that every answer has the asked
length, and for static batches also a second arm that sorts the requests by their answers' length and halves the batch,
so that short answers wait less for long ones.
"""

import contextlib
import importlib
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.errors import EngineError

WAIT_S = 120.0


class Request(NamedTuple):
    """A prompt, and how many tokens to answer with."""

    prompt_ids: tuple[int, ...]
    num_tokens: int


class Run(NamedTuple):
    """What one run of all requests took and brought."""

    seconds: float
    answers: list[tuple[int, ...]]


class Peer:
    """A model loaded into transformers. Raises `EngineError` where the package is not installed."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        try:
            self._package: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise EngineError("the benchmark's peer is not installed: pip install transformers") from error
        self.version = str(self._package.__version__)
        self._package.utils.logging.set_verbosity_error()
        self._package.utils.logging.disable_progress_bar()
        model = self._package.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
        self._model: Any = model.eval()
        for config in (self._model.config, self._model.generation_config):
            config.eos_token_id = None

    def one_by_one(self, requests: Sequence[Request]) -> Run:
        """`generate`, one request at a time."""
        return self._static([[number] for number in range(len(requests))], requests)

    def together(self, requests: Sequence[Request]) -> Run:
        """`generate`, all requests in one batch."""
        return self._static([list(range(len(requests)))], requests)

    def in_halves(self, requests: Sequence[Request]) -> Run:
        """`generate`, two batches: the requests with the shorter and with the longer answers."""
        order = sorted(range(len(requests)), key=lambda number: requests[number].num_tokens)
        middle = (len(order) + 1) // 2
        return self._static([order[:middle], order[middle:]], requests)

    def continuously(self, requests: Sequence[Request]) -> Run:
        """Continuous batching; its set-up is not counted. Raises `EngineError` when it dies or hangs."""
        generation = self._package.GenerationConfig(
            max_new_tokens=max(request.num_tokens for request in requests),
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        tokens = sum(len(request.prompt_ids) + request.num_tokens for request in requests)
        paging = self._package.ContinuousBatchingConfig(
            max_batch_tokens=512, num_blocks=2 * tokens // 256 + len(requests), allow_block_sharing=False
        )
        answers: dict[str, tuple[int, ...]] = {}
        context = self._model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=paging, timeout=5
        )
        with warnings.catch_warnings(), _silenced(), context as manager:
            warnings.simplefilter("ignore")
            started = time.perf_counter()
            names = [
                manager.add_request(list(request.prompt_ids), max_new_tokens=request.num_tokens) for request in requests
            ]
            while len(answers) < len(requests):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    answers[result.request_id] = tuple(result.generated_tokens)
                elif not manager.is_running() or time.perf_counter() - started > WAIT_S:
                    raise EngineError("transformers' continuous batching ended before its requests")
            seconds = time.perf_counter() - started
        return Run(seconds, [answers[name] for name in names])

    def _static(self, batches: list[list[int]], requests: Sequence[Request]) -> Run:
        answers: list[tuple[int, ...]] = [()] * len(requests)
        started = time.perf_counter()
        for batch in batches:
            for number, answer in zip(batch, self._batch([requests[number] for number in batch]), strict=True):
                answers[number] = answer
        return Run(time.perf_counter() - started, answers)

    def _batch(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        width = max(len(request.prompt_ids) for request in requests)
        num_tokens = max(request.num_tokens for request in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [
            tuple(row[width : width + request.num_tokens].tolist()) for row, request in zip(out, requests, strict=True)
        ]


@contextlib.contextmanager
def _silenced() -> Any:
    """Keep the package's own log lines out of the table."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
