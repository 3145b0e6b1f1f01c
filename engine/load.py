"""From a model directory to the parts of an engine."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from engine import demo
from engine.batch import Runner
from engine.config import EngineConfig
from engine.cpu_runner import BLOCK_SIZE, DTYPES, choose_dtype, load_cpu_runner
from engine.defaults import GenerationDefaults
from engine.errors import InvalidConfig, ModelError
from engine.loop import Engine
from engine.models.checkpoint import fingerprint
from engine.models.config import load_config
from engine.order import Order
from engine.output import Output
from engine.sequence import Sequence
from engine.text.stops import StopStrings
from engine.text.stream import TextStream
from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from engine.threads import set_threads

DEMO = "demo"
KV_FORMAT = b"penstock kv 1"  # raised when the meaning of a block's content changes
MOST_KV_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how a model runs. `None` means what the model, or the machine, allows.

    `device` is cpu, cuda, cuda:1 and so on, emulator (a GPU's kernels run on the CPU, for tests), or auto: a GPU where
    there is one. `num_blocks` (of 16 tokens) or `kv_bytes` bounds the KV pool; by default, on a CPU, a quarter of the
    free memory and at most a gigabyte, on a GPU what is left beside the weights and a step of `max_batch_tokens` for
    `max_sequences`. `threads` are torch's, of the whole process. `deterministic`: on a GPU, attention's bits do not
    depend on who else is in a step.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    num_blocks: int | None = None
    kv_bytes: int | None = None
    threads: int | None = None
    max_batch_tokens: int = 512
    max_sequences: int = 128
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run. `template` is None where the model only continues texts.

    `fingerprint` names weights, configuration, KV format and type: equal ones may share KV blocks.
    """

    directory: Path
    runner: Runner
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    fingerprint: bytes

    def open_engine(
        self,
        deliver: Callable[[list[Output]], None],
        config: EngineConfig | None = None,
        order: Order | None = None,
    ) -> Engine:
        """An engine over this model, not started yet. `deliver` gets the outputs of each step, on the engine's thread.

        One engine a model: the runner's KV pool is its own.
        """
        config = replace(config or EngineConfig(), fingerprint=self.fingerprint)
        return Engine(self.runner, config, self.new_text_stream, deliver, order)

    def new_text_stream(self, sequence: Sequence) -> TextStream:
        """The detokeniser of one answer."""
        prompt_ids = sequence.token_ids[: sequence.num_prompt]
        params = sequence.params
        stops = StopStrings(params.stop) if params.stop else None
        return self.tokenizer.stream(prompt_ids, stops, include_stop=params.include_stop)


def model_directory(name: str) -> Path:
    """The directory that a name means: `demo` is the model that is shipped, anything else a path."""
    return Path(demo.__file__).parent / "model" if name == DEMO else Path(name)


def load(directory: Path, options: LoadOptions | None = None) -> LoadedModel:
    """Read a Hugging Face model directory. Raises `ModelError` or `InvalidConfig`, naming what is wrong."""
    options = options or LoadOptions()
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory")
    set_threads(options.threads)
    tokenizer = Tokenizer.from_dir(directory)
    template = ChatTemplate.from_dir(directory, tokenizer)
    defaults = GenerationDefaults.from_dir(directory)
    kind = _device(options.device)
    opened = _on_cpu(directory, options) if kind == "cpu" else _on_device(directory, options, kind)
    _check_ids(tokenizer, opened.runner.vocab_size)
    identity = b"\0".join((KV_FORMAT, opened.family, opened.dtype.encode(), fingerprint(directory)))
    return LoadedModel(
        directory, opened.runner, tokenizer, template, defaults, hashlib.blake2b(identity, digest_size=16).digest()
    )


class _Opened(NamedTuple):
    """A runner, and what of it decides whether KV blocks may be shared."""

    runner: Runner
    family: bytes
    dtype: str


def _device(asked: str) -> str:
    """Say what runs it. Raises `InvalidConfig`."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda", "emulator") and not asked.startswith("cuda:"):
        raise InvalidConfig("device", asked, "auto, cpu, cuda, cuda:1 or emulator")
    return asked


def _on_cpu(directory: Path, options: LoadOptions) -> _Opened:
    if options.dtype not in ("auto", *DTYPES):
        raise InvalidConfig("dtype", options.dtype, f"auto, {', '.join(DTYPES)}")
    dtype = choose_dtype(load_config(directory)) if options.dtype == "auto" else options.dtype
    kv_bytes = _kv_bytes(directory, options, DTYPES[dtype].itemsize)
    runner = load_cpu_runner(directory, dtype=dtype, kv_bytes=kv_bytes, max_model_len=options.max_model_len)
    return _Opened(runner, b"cpu", dtype)


def _on_device(directory: Path, options: LoadOptions, kind: str) -> _Opened:
    from engine import cuda_runner  # not for those who have no GPU
    from engine.device import open_device

    config = load_config(directory)
    dtype = cuda_runner.choose_dtype(config, options.dtype)
    num_blocks = options.num_blocks
    if num_blocks is None and options.kv_bytes is not None:
        num_blocks = options.kv_bytes // (
            config.kv_elements_per_token * BLOCK_SIZE * cuda_runner.DTYPES[dtype].itemsize
        )
    runner = cuda_runner.load_cuda_runner(
        open_device(kind),
        directory,
        dtype=dtype,
        num_blocks=num_blocks,
        max_model_len=options.max_model_len,
        max_batch_tokens=options.max_batch_tokens,
        max_sequences=options.max_sequences,
        deterministic=options.deterministic,
    )
    return _Opened(runner, b"cuda", dtype)


def _kv_bytes(directory: Path, options: LoadOptions, itemsize: int) -> int:
    if options.num_blocks is not None:
        config = load_config(directory)
        per_block = config.kv_elements_per_token * BLOCK_SIZE * itemsize
        return (options.num_blocks + 1) * per_block  # the runner keeps one for itself
    if options.kv_bytes is not None:
        return options.kv_bytes
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MOST_KV_BYTES, free // 4)


def _check_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model below {vocab_size}")
    if strange := [token_id for token_id in tokenizer.stop_ids if not 0 <= token_id < vocab_size]:
        raise ModelError(f"eos_token_id: expected ids from 0 to {vocab_size - 1}, got {strange[0]}")
