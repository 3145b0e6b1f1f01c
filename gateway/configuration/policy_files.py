"""The policy in force, and the files that it comes from: watched, read anew when they change, swapped in as a whole.

Files are watched by asking for their status a few times a second: that sees editors that rename, links that Kubernetes
swaps and files on any file system alike, and costs some 10 µs. What has changed is read once it has been quiet for a
moment, since half a file may well be a policy too. Whether there is anything new is decided by the contents. What is
wrong is told once, a line for each problem, and the policy in force stays; so it does when a file disappears.

All of it happens on one thread of its own. The loop only reads `current`, which is one reference: whoever asks gets one
policy or the other, whole.
"""

import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.configuration.policy_memory import PolicyMemory
from policies.compile import Source, compile_policy
from policies.document import MAX_CHARS, DocumentError, Mark, Problem
from policies.key import pepper_mark
from policies.policy import Policy

SUFFIX = ".yaml"
MAX_FILES = 1000
MAX_BYTES = 4 * MAX_CHARS
POLL_S = 0.25
PATIENCE = 4  # polls that a file may go on changing before it is read as it is
SHOWN = 20  # problems told of one reading
CLOSE_S = 2.0

Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class PolicyPaths:
    """Where policies stand, and what they are checked against: the served models, and the pepper of their keys.

    A folder stands for every `*.yaml` in it. With a `pepper` of None hashes are not held against it.
    """

    paths: tuple[Path, ...]
    served: Collection[str] = ()
    pepper: str | None = field(default="", repr=False)

    def compile(self, sources: Sequence[Source], *, start: bool = False) -> Policy:
        """Make the policy of what was read. Raises `DocumentError`.

        At the `start` files of public keys must be there; later they may come after the policy that names them.
        """
        mark = None if self.pepper is None else pepper_mark(self.pepper)
        return compile_policy(sources, served=self.served, pepper=mark, is_file=os.path.isfile if start else None)

    def read(self) -> list[Source]:
        """Read every file. Raises `DocumentError` for those that cannot be read."""
        sources: list[Source] = []
        problems: list[Problem] = []
        for path in self.files():
            try:
                sources.append(Source(str(path), _text(path), str(path.parent)))
            except (OSError, ValueError) as error:
                problems.append(_problem(path, error))
        if not sources and not problems:
            problems += [_problem(path, ValueError(f"holds no *{SUFFIX}")) for path in self.paths]
        if problems:
            raise DocumentError(problems)
        return sources

    def files(self) -> list[Path]:
        """Give the files, those of folders if they are there, the others in any case. Raises `DocumentError`."""
        found: dict[Path, None] = {}
        for path in self.paths:
            if not path.is_dir():
                found[path] = None
                continue
            try:
                names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX) and not name.startswith("."))
            except OSError as error:
                raise DocumentError([_problem(path, error)]) from None
            found |= dict.fromkeys(path / name for name in names)
        if len(found) > MAX_FILES:
            raise DocumentError([_problem(self.paths[0], ValueError(f"{len(found)} files, allowed: {MAX_FILES}"))])
        return list(found)

    def signature(self) -> Signature:
        """Tell what would change with the files, without reading them."""
        try:
            files = self.files()
        except DocumentError as error:
            return ((str(error), 0, 0, 0, 0),)
        return tuple(_status(path) for path in files)


class PolicyFiles:
    """`current` is the policy in force; it is replaced, never changed. Watches from `start` until `close`.

    `applied` and `refused` count readings of something new, `in_step` says whether what is on disk is in force, and
    `succeeded_at` when that was last found (unix seconds). `say` tells the operator a line. With a `memory`, what a
    worker before us had in force goes before `current`.
    """

    def __init__(
        self,
        where: PolicyPaths,
        current: Policy,
        *,
        say: Callable[[str], None],
        memory: PolicyMemory | None = None,
        wall_clock: Callable[[], float] = time.time,
        poll_s: float = POLL_S,
    ) -> None:
        remembered = None if memory is None else memory.recall()
        self.current = current if remembered is None else where.compile(remembered)
        self.applied = self.refused = 0
        self.in_step = True
        self.succeeded_at = wall_clock()
        self._where = where
        self._say = say
        self._memory = memory
        self._wall_clock = wall_clock
        self._poll_s = poll_s
        self._last: Signature = ()  # as of the last poll
        self._changing = 0  # polls in a row that found another one
        self._judged: Signature | None = None  # of what was last read
        self._told = ""  # what was last said to be wrong
        self._asked = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="policy-files", daemon=True)

    def outcomes(self) -> dict[str, int]:
        """Count what became of new policies, for metrics."""
        return {"applied": self.applied, "refused": self.refused}

    def start(self) -> None:
        """Catch up with the files, and watch them from now on."""
        self._doubt()
        self._last = self._where.signature()
        self.look()
        self._thread.start()

    def ask(self) -> None:
        """Have the files read now, changed or not; what is wrong is told again."""
        self._told = ""
        self._asked.set()

    def close(self) -> None:
        """Watch no more."""
        self._closed = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def look(self, *, at_once: bool = False) -> None:
        """Look at the files, and read them if they have changed and are quiet, or `at_once`."""
        found = self._where.signature()
        if not at_once:
            if found == self._judged:
                self._changing = 0
                return
            if found != self._last and self._changing < PATIENCE:
                self._last = found
                self._changing += 1
                return
        self._last, self._changing = found, 0
        try:
            sources = self._where.read()
        except DocumentError as error:
            self._refuse(error)  # and read again: a file that could not be opened may open without having changed
            return
        if self._where.signature() != found:
            return  # it changed under our eyes
        # What was not quiet when it was read may still change within one tick of the file system's clock, unseen.
        self._judged = None if at_once else found
        self._take(sources, tell=at_once)

    def _take(self, sources: Sequence[Source], *, tell: bool) -> None:
        try:
            policy = self._where.compile(sources)
        except DocumentError as error:
            self._refuse(error)
            return
        if policy.version != self.current.version:
            self.current = policy
            self.applied += 1
            self._say(f"policy {policy.version} is in force: {described(policy)}")
            self._remember(sources)
            self._doubt()
        elif tell or not self.in_step:
            self._say(f"policy {policy.version} is in force, as the files say")
            self._doubt()
        self.in_step = True
        self.succeeded_at = self._wall_clock()
        self._told = ""

    def _doubt(self) -> None:
        for doubt in self.current.doubts[:SHOWN]:
            self._say(f"is this meant? {doubt}")

    def _remember(self, sources: Sequence[Source]) -> None:
        if self._memory is None:
            return
        try:
            self._memory.keep(sources)
        except OSError as error:
            self._say(f"policy {self.current.version} cannot be remembered for the next worker: {error.strerror}")

    def _refuse(self, error: DocumentError) -> None:
        self.in_step = False
        if str(error) == self._told:
            return
        self._told = str(error)
        self.refused += 1
        for problem in error.problems[:SHOWN]:
            self._say(f"policy refused: {problem}")
        more = f"{len(error.problems) - SHOWN} more problems; " if len(error.problems) > SHOWN else ""
        self._say(f"{more}policy {self.current.version} stays in force")

    def _watch(self) -> None:
        try:
            while not self._closed:
                asked = self._asked.wait(self._poll_s)
                self._asked.clear()
                if not self._closed:
                    self.look(at_once=asked)
        finally:
            if not self._closed:
                self.in_step = False
                self._say(f"the policy files are not watched any more; policy {self.current.version} stays in force")


def described(policy: Policy) -> str:
    """Say in a few words whom a policy knows."""
    keys, issuers = len(policy.keys), len(policy.issuers)
    who = f"{keys} key{'' if keys == 1 else 's'}"
    if issuers:
        who += f", {issuers} issuer{'' if issuers == 1 else 's'}"
    return who if keys or issuers else f"{who}; nobody can call"


def _text(path: Path) -> str:
    """Read a file, if it is one and no pipe or device that might never end. Raises `OSError`, `ValueError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no file")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"has {found.st_size} bytes, allowed: {MAX_BYTES}")
        return file.read(MAX_BYTES).decode("utf-8")


def _status(path: Path) -> tuple[str, int, int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        return str(path), error.errno or -1, 0, 0, 0
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _problem(path: Path, error: OSError | ValueError) -> Problem:
    match error:
        case UnicodeDecodeError():
            before = error.object[: error.start]
            mark = Mark(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
            return Problem(str(path), mark, (), "not UTF-8")
        case OSError():
            return Problem(str(path), Mark(1, 1), (), f"cannot be read: {error.strerror}")
    return Problem(str(path), Mark(1, 1), (), str(error))
