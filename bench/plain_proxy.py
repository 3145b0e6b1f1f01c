"""Penstock with the stages of a plain proxy alone: `python -m bench.plain_proxy serve --config FILE`.

No limits (`Throttle`, `Meter`) and no register of calls (`Track`), to tell what these cost where no policy asks for
them.
"""

import sys
from collections.abc import Sequence

from gateway import app, cli
from gateway.call import Handler, Stage, compose
from gateway.stages.meter import Meter
from gateway.stages.throttle import Throttle
from gateway.stages.track import Track


def without_limits(stages: Sequence[Stage], last: Handler) -> Handler:
    """Compose all stages but those."""
    return compose([stage for stage in stages if not isinstance(stage, Meter | Throttle | Track)], last)


if __name__ == "__main__":
    app.compose = without_limits  # type: ignore[attr-defined]
    sys.exit(cli.main())
