"""How many tokens a call may produce: granted from outside while it runs, used up by the engine one by one."""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Allowance:
    """What one call's sequences may still produce, all its choices and prompts together.

    Up to `granted` tokens may be produced in all, and nothing from `good_until` on (`time.monotonic()` seconds; None:
    for ever) until it is renewed; a step that began in time may end after it. A sequence that finds nothing left is
    parked, or, once `closed` says that no more will come, ended. `used` counts every token that was produced, stop
    tokens and withheld ones too.

    Two threads meet here without a lock. Who grants writes the first three and calls `Engine.nudge`; the engine's
    thread writes the rest. Each attribute is one reference, so a reader finds the old value or the new one, and an old
    one costs a step. Only a renewal changes two that belong together: who grants writes `granted` before `good_until`,
    so that in between nothing is left, and never too much.
    """

    granted: int
    good_until: float | None = None
    closed: bool = False

    used: int = 0
    step: int = field(default=-1, init=False)  # rations: the step that the next two belong to
    left_at_start: int = field(default=0, init=False)  # rations: what was left when that step began
    spare: int = field(default=0, init=False)  # rations: what that step may still take
    told: int = field(default=-1, init=False)  # rations: the news after which it was last said that nothing is left

    def left(self, now: float) -> int:
        """Tell how many tokens may be produced. Both threads ask here, so that they cannot disagree for long."""
        good_until = self.good_until
        if good_until is not None and now >= good_until:
            return 0
        return max(0, self.granted - self.used)
