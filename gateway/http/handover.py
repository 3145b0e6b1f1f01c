"""Kept connections go from one process to the next as they are: their clients notice nothing.

A server that closes a kept connection races with the client's next request: it may be on its way already, and is lost.
A connection between two requests has no state but its socket, and a socket can be sent to another process over a unix
socket (SCM_RIGHTS; of kind SEQPACKET, so that messages keep their borders). What the client sends meanwhile waits in
the kernel for whoever reads next. So nothing is closed.
"""

import array
import asyncio
import socket
from collections.abc import Callable, Sequence

AT_ONCE = 64  # descriptors in a message; the kernel takes 253
MARK = b"."


class Sender:
    """The end of who leaves."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self.gone = False  # nobody takes them any more
        self.sent = 0

    def send(self, descriptors: Sequence[int]) -> bool:
        """Hand over at most `AT_ONCE` sockets; the sender still has to close its own. False where that cannot be now.

        Never blocks.
        """
        if self.gone:
            return False
        try:
            socket.send_fds(self._end, [MARK], descriptors)
        except BlockingIOError:
            return False
        except OSError:
            self.gone = True
            return False
        self.sent += len(descriptors)
        return True

    def close(self) -> None:
        """Say that no more are to come."""
        self._end.close()


class Receiver:
    """The end of who comes. Gives each socket to `take`, until the other end is closed; then calls `ended`."""

    def __init__(
        self, end: socket.socket, take: Callable[[socket.socket], None], ended: Callable[[], None] | None = None
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._take = take
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._read)
        self.received = 0

    def close(self) -> None:
        """Take no more."""
        if self.open:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
            if self._ended is not None:
                self._ended()

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return self._end.fileno() >= 0

    def _read(self) -> None:
        """Take what has come: one message at a time, so that others get a turn."""
        try:
            message, ancillary, _, _ = self._end.recvmsg(
                len(MARK), socket.CMSG_SPACE(AT_ONCE * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            message, ancillary = b"", []
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                for descriptor in descriptors:
                    self.received += 1
                    self._take(socket.socket(fileno=descriptor))
        if not message:
            self.close()
