"""Log-probabilities in OpenAI's two shapes: a list of objects for chats, four parallel lists for completions."""

import codecs
from collections.abc import Sequence

from gateway.call import Json, PromptEncoder, TokenLogprob

LOWEST = -9999.0  # OpenAI's number for what JSON cannot hold


def spell(token: bytes) -> str:
    """A token by itself; bytes that are no character alone show as the replacement character, as `bytes` tells."""
    return token.decode("utf-8", "replace")


def chat_logprobs(encoder: PromptEncoder, entries: Sequence[TokenLogprob]) -> Json:
    """Give the `logprobs` of a chat's choice, or of a chunk of it."""

    def one(token_id: int, logprob: float) -> dict[str, Json]:
        token = encoder.token_bytes(token_id)
        return {"token": spell(token), "logprob": max(logprob, LOWEST), "bytes": list(token)}

    content: list[Json] = [
        {**one(entry.token_id, entry.logprob), "top_logprobs": [one(*alternative) for alternative in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """Gives the `logprobs` of one choice of a completion piece by piece.

    `text_offset` counts characters from the beginning of the choice's text. A character whose bytes are spread over
    several tokens belongs to the first of them.
    """

    def __init__(self, encoder: PromptEncoder, offset: int) -> None:
        self._encoder = encoder
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, entries: Sequence[TokenLogprob]) -> dict[str, Json]:
        """Give the lists for the next entries."""
        tokens: list[Json] = []
        offsets: list[Json] = []
        tops: list[Json] = []
        for entry in entries:
            token = self._encoder.token_bytes(entry.token_id)
            tokens.append(spell(token))
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token))
            tops.append({spell(self._encoder.token_bytes(other)): max(value, LOWEST) for other, value in entry.top})
        return {
            "tokens": tokens,
            "token_logprobs": [max(entry.logprob, LOWEST) for entry in entries],
            "top_logprobs": tops if any(entry.top for entry in entries) else None,
            "text_offset": offsets,
        }
