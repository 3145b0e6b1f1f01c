"""A gateway whose policy files change while it serves: what is a policy is in force, what is none changes nothing."""

import re
import signal
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policies.compile import Source, compile_policy
from policies.document import DocumentError
from policies.key import kept, new_key
from tests.process.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.rig.gateways import Gateway, eventually
from tests.rig.policy_mutants import mutants

KEY = new_key("web-1", lambda size: bytes(range(size)))
PEPPER = "a pepper of some length"
BODY = b'{"model": "gpt", "messages": [{"role": "user", "content": "Hello"}]}'
APPLIED, REFUSED = (f'penstock_policy_reloads_total{{outcome="{outcome}"}}' for outcome in ("applied", "refused"))
POLICY = f"""\
prices:
  gpt: {{input: 1.25, cached_input: 0.125, output: 10}}
organisations:
  acme:
    limits:
      - {{cost: 4_000_000/day}}
      - {{requests: 1_000_000/min, burst: 1_000_000}}
    tenants:
      web:
        max_input_tokens: 1000
        queue_deadline_s: 5
        keys:
          web-1: {{hash: "{kept(KEY, PEPPER)}"}}
"""


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with scripted_upstream() as server:
        yield server


def begin(folder: Path, upstream: ScriptedUpstream, policy: str) -> Gateway:
    folder.joinpath("policy.yaml").write_text(policy)
    return Gateway(
        folder,
        f"""\
listen: {{port: 0}}
models: {{gpt: {{upstreams: [u]}}}}
upstreams: {{u: {{url: "{upstream.url}"}}}}
policies: [policy.yaml]
key_pepper: env:PEPPER
telemetry: {{access_log: ./access.log}}
""",
        {"PEPPER": PEPPER},
    )


@contextmanager
def serving(folder: Path, upstream: ScriptedUpstream, policy: str = POLICY) -> Iterator[Gateway]:
    gateway = begin(folder, upstream, policy)
    try:
        gateway.wait()
        yield gateway
    finally:
        gateway.process.end()


def ask(gateway: Gateway, key: str = KEY) -> int:
    request = urllib.request.Request(
        f"{gateway.url}/v1/chat/completions",
        BODY,
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def hear(gateway: Gateway, after: int, beginning: str) -> None:
    """Wait until it says a line that begins so, among those behind the first `after`."""
    eventually(lambda: any(line.startswith(beginning) for line in gateway.said[after:]))


def judged(text: bytes | None, path: Path) -> str:
    """What the gateway should say of a file: which policy it is, or what is first wrong with it."""
    if text is None:
        return f"policy refused: {path}:1:1: cannot be read: No such file or directory"
    try:
        source = Source(str(path), text.decode(), str(path.parent))
        policy = compile_policy([source], served=("gpt",), pepper=None)
    except UnicodeDecodeError:
        return f"policy refused: {path}:"
    except DocumentError as error:
        return f"policy refused: {error.problems[0]}"
    return f"policy {policy.version} is in force"


def test_a_key_of_the_policy_opens_and_its_removal_shuts(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    file = tmp_path / "policy.yaml"
    with serving(tmp_path, upstream) as gateway:
        before = (ask(gateway), ask(gateway, KEY[:-1] + "A"), ask(gateway, "another.key"))
        file.write_text(POLICY.replace("web-1:", "web-2:"))
        eventually(lambda: ask(gateway) == 401)
        eventually(lambda: gateway.metrics()[APPLIED] == 1)

    assert before == (200, 401, 401)


def test_a_limit_of_the_policy_holds_and_a_lower_one_after_a_change(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    file = tmp_path / "policy.yaml"
    with serving(tmp_path, upstream, POLICY.replace("1_000_000/min, burst: 1_000_000", "3/h")) as gateway:
        before = [ask(gateway) for _ in range(4)]
        file.write_text(POLICY.replace("1_000_000/min, burst: 1_000_000", "5/h"))
        eventually(lambda: gateway.metrics()[APPLIED] == 1)
        after = [ask(gateway) for _ in range(3)]

    assert before == [200, 200, 200, 429]
    assert after == [200, 200, 429]  # what was used under the old amount stays used


def test_a_signal_has_the_files_read_and_the_answer_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    with serving(tmp_path, upstream) as gateway:
        gateway.process.send(signal.SIGHUP)
        gateway.process.expect("is in force, as the files say")
        (tmp_path / "policy.yaml").write_text("prices:\n  gpt: {input: -1}\n")
        gateway.process.send(signal.SIGHUP)
        first = gateway.process.expect("policy refused")
        second = gateway.process.expect("policy refused")
        kept_on = gateway.process.expect("stays in force")
        status = ask(gateway)
        metrics = gateway.metrics()

    assert "policy.yaml:2:8: prices.gpt.output: missing" in first
    assert "policy.yaml:2:16: prices.gpt.input: got '-1'" in second
    assert (kept_on.startswith("penstock: policy "), status) == (True, 200)
    assert metrics[REFUSED] >= 1
    assert metrics["penstock_policy_in_step"] == 0


def test_a_wrong_policy_at_the_start_is_told_whole_and_nothing_starts(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    gateway = begin(tmp_path, upstream, "x: 1\norganisations: {a/b: {}}\n")
    status = gateway.process.wait()
    gateway.process.end()

    assert status != 0
    assert [line.partition("policy.yaml:")[2].partition(": ")[0] for line in gateway.said] == ["1:1", "2:17"]


def test_a_worker_that_dies_beside_broken_files_leaves_its_policy_to_the_next(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    file = tmp_path / "policy.yaml"
    with serving(tmp_path, upstream) as gateway:
        file.write_text(POLICY.replace("web-1:", "web-2:"))  # the key is taken away
        gateway.process.expect("is in force")
        file.unlink()
        gateway.process.expect("stays in force")
        gateway.kill()
        gateway.wait()
        status = ask(gateway)

    assert status == 401


def test_whatever_is_written_under_load_the_gateway_serves_by_a_valid_policy(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """300 mutants, each judged before the next is written; callers are answered meanwhile, never by our error."""
    file = tmp_path / "policy.yaml"
    answers: Counter[int] = Counter()
    over = threading.Event()
    with serving(tmp_path, upstream) as gateway:

        def call() -> None:
            while not over.is_set():
                answers[ask(gateway)] += 1

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        try:
            for mutant in mutants([POLICY], 300):
                after = len(gateway.said)
                if mutant is None:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(mutant)
                expected = f"penstock: {judged(mutant, file)}"
                gateway.process.send(signal.SIGHUP)
                hear(gateway, after, expected)
            file.write_text(POLICY)
            eventually(lambda: gateway.metrics()["penstock_policy_in_step"] == 1 and ask(gateway) == 200)
        finally:
            over.set()
            for caller in callers:
                caller.join()
        said = gateway.said
        worker_ended = any("ended" in line for line in said)
        refused = [line for line in said if "policy refused" in line]

    assert set(answers) <= {200, 400, 401, 403, 429}
    assert answers[200] > 0
    assert not worker_ended
    assert len(refused) > 100
    assert all(re.search(r"policy\.yaml:[1-9][0-9]*:[1-9]", line) for line in refused)
