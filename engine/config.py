"""What the operator said about the engine's scheduling; frozen after loading."""

from dataclasses import dataclass

from engine.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How much runs at once and how much may wait.

    `max_batch_tokens` bounds one step: its decodes and prefill chunks together. `max_sequences` run at the same time;
    a step has room for a decode of each, so that a decode never waits for a prompt. `max_prefill_chunk` bounds how much
    of one prompt a step computes. `max_waiting` choices may wait before a request is refused. `prefix_cache` lets
    prompts reuse the blocks of earlier ones. `fingerprint` names everything besides tokens and salt that a block's
    content depends on: format version, model, adapter version, KV dtype and layout.
    """

    max_batch_tokens: int = 512
    max_sequences: int = 128
    max_prefill_chunk: int = 256
    max_waiting: int = 1024
    prefix_cache: bool = True
    fingerprint: bytes = b""

    def __post_init__(self) -> None:
        """Raise `InvalidConfig` with the key, the value and what is allowed."""
        for key in ("max_sequences", "max_prefill_chunk", "max_waiting"):
            if getattr(self, key) < 1:
                raise InvalidConfig(key, getattr(self, key), "at least 1")
        if self.max_batch_tokens < self.max_sequences:
            expected = f"at least max_sequences ({self.max_sequences}), so that every running answer gets its token"
            raise InvalidConfig("max_batch_tokens", self.max_batch_tokens, expected)
