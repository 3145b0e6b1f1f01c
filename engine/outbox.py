"""Turns what the scheduler accepted into outputs: tokens, their text and the stop strings in it."""

from engine.batch import Logprobs
from engine.output import Output
from engine.scheduler import Progress
from engine.sequence import FinishReason, Sequence
from engine.text.stream import Piece, TextStream


class Draft:
    """What is not yet out of one answer: its text stream, and the tokens whose text is still withheld."""

    __slots__ = ("logprobs", "num_read", "stream", "token_ids")

    def __init__(self, stream: TextStream | None) -> None:
        self.stream = stream
        self.num_read = 0
        self.token_ids: tuple[int, ...] = ()
        self.logprobs: tuple[Logprobs, ...] = ()

    def read(self, token_ids: tuple[int, ...], min_tokens: int) -> Piece:
        """Push tokens into the stream, without looking for stop strings in the first `min_tokens` of an answer."""
        if self.stream is None or not token_ids:
            return Piece("", len(token_ids))
        unscanned = min_tokens - self.num_read
        if unscanned <= 0 or unscanned >= len(token_ids):
            piece = self.stream.push(token_ids, scan=unscanned <= 0)
        else:
            first = self.stream.push(token_ids[:unscanned], scan=False)
            piece = _joined(first, self.stream.push(token_ids[unscanned:]))
        self.num_read += piece.num_read
        return piece

    def read_rest(self, piece: Piece) -> Piece:
        """Add what is withheld at the end of an answer; a character that stays unfinished may end a stop string."""
        if self.stream is None:
            return piece
        return _joined(piece, self.stream.finish())


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
        """Take in one step's tokens; None if nothing may go out yet and nobody counts. `finish` closes the draft.

        A stop string wins over the length limit that the same token reached, and over tokens accepted behind it.
        """
        sequence, finish = progress.sequence, progress.finish
        if progress.error is not None:
            return self.close(sequence, FinishReason.ERROR, progress.error)
        draft = self._drafts[sequence]
        token_ids = draft.token_ids + progress.token_ids
        logprobs = draft.logprobs + (progress.logprobs or ())
        num_generated = sequence.num_generated
        piece = draft.read(progress.token_ids, sequence.params.min_tokens)
        if piece.stop is not None:
            num_generated = draft.num_read
        elif finish is not None:
            piece = draft.read_rest(piece)
        num_out = piece.num_tokens
        if piece.stop is not None:
            finish = FinishReason.STOP
        elif finish is not None:
            num_out = len(token_ids)
        elif not num_out and not piece.text:
            draft.token_ids, draft.logprobs = token_ids, logprobs
            return None if sequence.allowance is None else _nothing(sequence)
        if finish is None:
            draft.token_ids, draft.logprobs = token_ids[num_out:], logprobs[num_out:]
        else:
            del self._drafts[sequence]
        return Output(
            sequence.request_id,
            sequence.index,
            token_ids[:num_out],
            piece.text,
            None if sequence.params.logprobs is None else logprobs[:num_out],
            finish,
            progress.stop if piece.stop is None else piece.stop,
            sequence.num_prompt,
            sequence.num_cached,
            num_generated,
            None,
            progress.limited and finish is FinishReason.LENGTH,
        )

    def close(self, sequence: Sequence, finish: FinishReason, error: str | None = None) -> Output:
        """End an answer from outside; text that is still withheld stays so. Who never ran has cost no prompt."""
        del self._drafts[sequence]
        output = _nothing(sequence)
        output.finish, output.error = finish, error
        if not sequence.begun:
            output.num_prompt = 0
        return output

    def pause(self, sequence: Sequence) -> Output:
        """Say that an answer can go no further for now: its allowance has nothing left."""
        output = _nothing(sequence)
        output.short = True
        return output


def _nothing(sequence: Sequence) -> Output:
    return Output(
        sequence.request_id,
        sequence.index,
        (),
        "",
        num_prompt=sequence.num_prompt,
        num_cached=sequence.num_cached,
        num_generated=sequence.num_generated,
    )


def _joined(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        first.num_tokens + second.num_tokens,
        second.stop,
        first.num_read + second.num_read,
    )
