"""One choice of one request: its tokens, its blocks and how far it has come."""

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from engine.allowance import Allowance
from engine.params import SamplingParams


class Status(Enum):
    """Where a sequence stands with the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of one request. Identity is the object's own.

    `token_ids` holds the prompt and, behind it, what was generated. The keys and values of the first `num_computed` of
    them are in the blocks of `block_table`; one step computes a further range. `salt` and `order_key` are opaque: the
    first separates prefix caches, the second is what the fair order counts by. All sequences of a call share its
    `allowance`; None where nothing limits it.
    """

    request_id: str
    index: int
    token_ids: list[int]
    num_prompt: int
    params: SamplingParams
    priority: int = 0
    arrival: int = 0
    deadline: float | None = None
    salt: bytes = b""
    order_key: str = ""
    weight: float = 1.0
    allowance: Allowance | None = None

    status: Status = field(default=Status.WAITING, init=False)  # scheduler
    finish: FinishReason | None = field(default=None, init=False)  # scheduler
    begun: bool = field(default=False, init=False)  # scheduler: whether it was ever admitted
    num_computed: int = field(default=0, init=False)  # blocks
    num_cached: int = field(default=0, init=False)  # scheduler: prompt tokens found in the index when first admitted
    num_preemptions: int = field(default=0, init=False)  # scheduler
    block_table: list[int] = field(default_factory=list, init=False)  # blocks
    block_keys: list[bytes] = field(default_factory=list, init=False)  # blocks: chain keys of the full blocks

    @property
    def num_generated(self) -> int:
        """How many tokens behind the prompt."""
        return len(self.token_ids) - self.num_prompt
