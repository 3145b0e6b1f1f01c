"""The access log: one JSON line a request, written beside the event loop and never by it.

Lines are encoded a batch at a time (one among other work costs twice what it costs in a row) and join a buffer. A
timer, armed only while something waits, hands the buffer to a thread, so that a slow disk or a full pipe stalls nobody.
When the thread falls behind by more than `max_buffer_bytes`, further lines are dropped and counted. Prompts, answers
and keys are not in a record.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from gateway.telemetry.log_line import LineWriter
from gateway.telemetry.record import RequestRecord

FLUSH_EVERY_S = 0.25
BATCH = 64  # lines encoded in a row, in 0.2 ms
CLOSE_WITHIN_S = 2.0


class AccessLog:
    """Writes records as JSON lines to a file descriptor. `dropped` counts lines that found no room or no disk."""

    def __init__(self, descriptor: int, *, owned: bool = False, max_buffer_bytes: int = 8 << 20) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._owned = owned
        self._max_buffer_bytes = max_buffer_bytes
        self._line = LineWriter().write
        self._records: list[RequestRecord] = []  # not yet encoded
        self._lines: list[bytes] = []
        self._buffered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[tuple[int, int]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="access-log")

    @classmethod
    def open(cls, path: str) -> "AccessLog":
        """Append to the file at `path`, made if it is missing. Raises `OSError`."""
        return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640), owned=True)

    def write(self, record: RequestRecord) -> None:
        """Take a finished request; its line is on its way within `FLUSH_EVERY_S`. Call on the event loop."""
        self._records.append(record)
        if len(self._records) == BATCH:
            self._encode()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self._flush)

    async def aclose(self) -> None:
        """Write what is buffered, at most for `CLOSE_WITHIN_S`, and close the file if it is ours."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=CLOSE_WITHIN_S)
        self._encode()
        if self._writing is None and self._lines:
            self._start_writing()
            assert self._writing is not None
            await asyncio.wait([self._writing], timeout=CLOSE_WITHIN_S)
        stuck = self._writing is not None
        self._thread.shutdown(wait=not stuck, cancel_futures=True)
        if self._owned and not stuck:
            os.close(self._descriptor)

    def _encode(self) -> None:
        records, self._records = self._records, []
        for record in records:
            line = self._line(record)
            if self._buffered + len(line) > self._max_buffer_bytes:
                self.dropped += 1
            else:
                self._lines.append(line)
                self._buffered += len(line) + 1

    def _flush(self) -> None:
        self._timer = None
        self._encode()
        if self._writing is None and self._lines:
            self._start_writing()

    def _start_writing(self) -> None:
        lines, self._lines = self._lines, []
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write_out, lines)
        self._writing.add_done_callback(self._written)

    def _write_out(self, lines: list[bytes]) -> tuple[int, int]:
        """Write on the thread; gives how many bytes left the buffer, and how many lines did not arrive."""
        data = memoryview(b"\n".join([*lines, b""]))
        size = len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # disk full, pipe closed: the lines are lost, requests go on
            return size, bytes(data).count(b"\n")
        return size, 0

    def _written(self, writing: "asyncio.Future[tuple[int, int]]") -> None:
        self._writing = None
        if writing.cancelled():
            return
        size, lost = writing.result()
        self._buffered -= size
        self.dropped += lost
        if self._lines and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self._flush)
