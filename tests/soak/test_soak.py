"""Random faults at every place at once, for as long as one likes: what is promised holds, and nothing stays behind.

    SOAK_SECONDS=3600 make prove-soak

The default run has a short one over each kind of store. Which faults met whom stands in `events.jsonl` of its folder.
"""

import os
from pathlib import Path

import pytest

from tests.rig.soak import Findings, run_soak
from tests.rig.soak_site import Soak
from tests.rig.vitals import MB

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SHARED = os.environ.get("SOAK_STORE", "memory") == "redis"
SEED = int(os.environ.get("SOAK_SEED", "1"))
LEAST_KINDS = 40
KEPT = 0.5  # pieces of memory a request: whoever keeps anything of each keeps one at least
MOST_MB = 4  # in the second half: one size of step that was not met before is 3 MB


def check(findings: Findings, folder: Path) -> None:
    print(f"\n{findings.summary()}")
    assert not findings.wrong, "\n".join([*findings.wrong[:40], f"{len(findings.wrong)} in all; see {folder}"])


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "redis"])
async def test_what_is_promised_holds_in_random_weather(tmp_path: Path, shared: bool) -> None:
    findings = await run_soak(Soak(seconds=8.0, shared=shared, calm_s=0.6), tmp_path)

    check(findings, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 600)
async def test_a_long_soak_ends_where_it_began(tmp_path: Path) -> None:
    findings = await run_soak(Soak(seconds=SECONDS, shared=SHARED, warmed=True, seed=SEED), tmp_path)

    check(findings, tmp_path)
    assert len(findings.history.faults()) >= LEAST_KINDS
    assert findings.pieces.flat(allowed=KEPT * findings.num_requests / 2), findings.pieces
    assert findings.memory.flat(allowed=MOST_MB * MB), findings.memory
