"""Turns what the scheduler accepted into outputs: tokens, their text and the stop strings in it."""

from collections.abc import Sequence as Seq

from engine.batch import Logprobs
from engine.output import Output
from engine.scheduler import Progress
from engine.sequence import FinishReason, Sequence
from engine.text.stream import TextStream


class Draft:
    """What is known of one answer and not yet out: its text stream, and the tokens whose text is still withheld."""

    __slots__ = ("logprobs", "num_pushed", "stream", "token_ids")

    def __init__(self, stream: TextStream | None) -> None:
        self.stream = stream
        self.num_pushed = 0
        self.token_ids: list[int] = []
        self.logprobs: list[Logprobs] = []

    def read(self, token_ids: Seq[int], min_tokens: int) -> tuple[str, int, str | None]:
        """Push tokens into the stream; give the text, how many tokens are out with it, and the stop string that it hit.

        The first `min_tokens` of an answer do not end it.
        """
        if self.stream is None:
            return "", len(token_ids), None
        text, num_out = "", 0
        unscanned = min(max(min_tokens - self.num_pushed, 0), len(token_ids))
        for part, scan in ((token_ids[:unscanned], False), (token_ids[unscanned:], True)):
            if part:
                piece = self.stream.push(part, scan=scan)
                self.num_pushed += piece.num_read
                text += piece.text
                num_out += piece.num_tokens
                if piece.stop is not None:
                    return text, num_out, piece.stop
        return text, num_out, None


class Outbox:
    """Holds the draft of each unfinished sequence. `sequence in outbox` tells whether its last output is still owed."""

    def __init__(self) -> None:
        self._drafts: dict[Sequence, Draft] = {}

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._drafts

    def open(self, sequence: Sequence, stream: TextStream | None) -> None:
        """Begin an answer; without a stream its outputs carry no text."""
        self._drafts[sequence] = Draft(stream)

    def push(self, progress: Progress) -> Output | None:
        """Take in one step's tokens; None if nothing may go out yet. An output with `finish` closes the draft.

        A stop string wins over the length limit that the same token reached, and over tokens accepted behind it.
        """
        sequence, token_ids, logprobs, finish, stop_id, _, error = progress
        if error is not None:
            return self.close(sequence, FinishReason.ERROR, error)
        draft = self._drafts[sequence]
        if token_ids:
            draft.token_ids += token_ids
            draft.logprobs += logprobs or ()
        text, num_out, stop = draft.read(token_ids, sequence.params.min_tokens)
        num_generated = sequence.num_generated
        if stop is None and finish is not None:
            if draft.stream is not None:
                rest = draft.stream.finish()
                text, num_out, stop = text + rest.text, num_out + rest.num_tokens, rest.stop
            if stop is None:
                num_out = len(draft.token_ids)
        elif stop is not None:
            num_generated = draft.num_pushed
        if stop is not None:
            finish = FinishReason.STOP
        if finish is None and not num_out and not text:
            return None
        released = tuple(draft.token_ids[:num_out])
        asked = sequence.params.logprobs is not None
        output = Output(
            sequence.request_id,
            sequence.index,
            released,
            text,
            tuple(draft.logprobs[:num_out]) if asked else None,
            finish,
            stop if stop is not None else stop_id,
            sequence.num_prompt,
            sequence.num_cached,
            num_generated,
        )
        if finish is not None:
            del self._drafts[sequence]
        else:
            del draft.token_ids[:num_out], draft.logprobs[:num_out]
        return output

    def close(self, sequence: Sequence, finish: FinishReason, error: str | None = None) -> Output:
        """End an answer from outside; text that is still withheld stays so."""
        del self._drafts[sequence]
        return Output(
            sequence.request_id,
            sequence.index,
            (),
            "",
            finish=finish,
            num_prompt=sequence.num_prompt,
            num_cached=sequence.num_cached,
            num_generated=sequence.num_generated,
            error=error,
        )
