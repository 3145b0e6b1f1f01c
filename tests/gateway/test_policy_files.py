"""Policy files are watched: what is on disk is in force within two polls, and what is wrong never is."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.configuration.policy_files import PATIENCE, SHOWN, PolicyFiles, PolicyPaths
from policies.document import DocumentError
from policies.policy import Policy
from tests.rig.policy_mutants import mutants

EXAMPLES = Path(__file__).parents[2] / "policies" / "examples"
GOOD = "organisations: {acme: {tenants: {web: {limits: [{requests: %d/min}]}}}}\n"
BROKEN = "organisations: {acme: {tenants: {web: {limits: [{requests: -1/min}]}}}}\n"


class Watched:
    """Files in a folder, and what watches them, looked at by hand instead of by a thread."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.file = folder / "acme.yaml"
        self.file.write_text(GOOD % 1)
        self.paths = PolicyPaths(tuple(folder / name for name in names or ["acme.yaml"]), served=("demo",))
        self.said: list[str] = []
        self.now = 1000.0
        first = self.paths.compile(self.paths.read())
        self.files = PolicyFiles(self.paths, first, say=self.said.append, wall_clock=lambda: self.now)
        self.settle()

    def settle(self) -> None:
        """Look as often as it takes for a change to be seen, and to be seen to be over."""
        self.files.look()
        self.files.look()

    def rate(self) -> int:
        """Tell which policy is in force."""
        return rate(self.files.current)


def rate(policy: Policy) -> int:
    tenant = policy.find("acme", None, "web", None)
    assert tenant is not None
    return tenant.terms("demo").account.entry[0].limit.capacity


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def written(watched: Watched, text: str) -> None:
    watched.file.write_text(text)


def renamed(watched: Watched, text: str) -> None:
    other = watched.file.with_suffix(".swp")
    other.write_text(text)
    other.rename(watched.file)


def replaced(watched: Watched, text: str) -> None:
    watched.file.unlink()
    watched.file.write_text(text)


@pytest.mark.parametrize("change", [written, renamed, replaced])
def test_a_change_is_in_force_at_the_second_look(watched: Watched, change: object) -> None:
    assert callable(change)
    change(watched, GOOD % 2)
    watched.files.look()
    before = watched.rate()
    watched.files.look()

    assert (before, watched.rate()) == (1, 2)
    assert (watched.files.applied, watched.files.refused, watched.files.in_step) == (1, 0, True)
    assert watched.said == [f"policy {watched.files.current.version} is in force: 0 keys; nobody can call"]


def test_a_model_that_is_not_served_is_asked_about(watched: Watched) -> None:
    watched.file.write_text((GOOD % 2).replace("limits", "models: [dmeo], limits"))
    watched.settle()

    assert watched.said[1] == (
        f"is this meant? {watched.file}:1:49: organisations.acme.tenants.web.models[0]: "
        "got 'dmeo', and no model of that name is served (did you mean 'demo'?); allowed: demo"
    )


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes updates a volume: the file links into `..data`, which is a link that is replaced."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "acme.yaml").write_text(GOOD % number)
    (tmp_path / "volume").mkdir()
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "volume" / "acme.yaml").symlink_to("../..data/acme.yaml")
    paths = PolicyPaths((tmp_path / "volume",))
    files = PolicyFiles(paths, paths.compile(paths.read()), say=lambda line: None)
    files.look(at_once=True)
    before = rate(files.current)
    (tmp_path / "new").symlink_to("..2")
    (tmp_path / "new").rename(tmp_path / "..data")
    files.look()
    files.look()

    assert (before, rate(files.current)) == (1, 2)


def test_a_file_that_is_still_being_written_is_left_alone(watched: Watched) -> None:
    half = GOOD % 2 + "prices:\n"
    for size in range(len(GOOD % 2), len(half)):
        watched.file.write_text(half[:size])
        watched.files.look()
    during = watched.rate()
    watched.files.look()

    assert (during, watched.rate()) == (1, 2)


def test_a_file_that_never_rests_is_read_all_the_same(watched: Watched) -> None:
    for number in range(PATIENCE + 1):
        watched.file.write_text(GOOD % (2 + number) + "#" * number)
        watched.files.look()

    assert watched.rate() == 2 + PATIENCE


def test_a_broken_file_leaves_the_policy_in_force_and_is_told_once(watched: Watched) -> None:
    version = watched.files.current.version
    watched.file.write_text(BROKEN)
    for _ in range(10):
        watched.files.look()

    assert watched.rate() == 1
    assert (watched.files.refused, watched.files.in_step, watched.files.succeeded_at) == (1, False, 1000.0)
    assert watched.said == [
        f"policy refused: {watched.file}:1:60: organisations.acme.tenants.web.limits[0].requests: got '-1/min', "
        "expected so many a period, like 600/min, 2/10s or 5_000_000/day "
        "(s, min, h, and the UTC calendar's day and month)",
        f"policy {version} stays in force",
    ]


def test_a_broken_file_that_is_put_right_is_told_of(watched: Watched) -> None:
    watched.file.write_text(BROKEN)
    watched.settle()
    watched.file.write_text(GOOD % 1)
    watched.now = 2000.0
    watched.settle()

    assert watched.said[-1] == f"policy {watched.files.current.version} is in force, as the files say"
    assert (watched.files.applied, watched.files.in_step, watched.files.succeeded_at) == (0, True, 2000.0)


def test_who_asks_is_told_again_and_at_once(watched: Watched) -> None:
    watched.file.write_text(BROKEN)
    watched.settle()
    told = len(watched.said)
    watched.files.ask()
    watched.files.look(at_once=True)

    assert watched.said[told:] == watched.said[:told]


def test_what_was_read_before_it_was_quiet_is_read_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writings of one length within a tick of the file system's clock look the same from outside."""
    watched.file.write_text(GOOD % 2)
    as_seen = watched.paths.signature()
    monkeypatch.setattr(PolicyPaths, "signature", lambda _: as_seen)
    watched.files.look(at_once=True)
    watched.file.write_text(GOOD % 3)
    watched.files.look()

    assert watched.rate() == 3


def test_a_deleted_file_leaves_the_policy_in_force(watched: Watched) -> None:
    watched.file.unlink()
    watched.settle()

    assert watched.rate() == 1
    assert watched.said[0] == f"policy refused: {watched.file}:1:1: cannot be read: No such file or directory"


def test_a_file_that_is_added_to_a_folder_counts_and_one_that_is_removed_does_not(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ".")
    (tmp_path / "other.yaml").write_text("organisations: {other: {}}")
    (tmp_path / ".hidden.yaml").write_text("not: a policy")
    (tmp_path / "README.md").write_text("not a policy")
    watched.settle()
    with_other = watched.files.current.find("other", None, "x", None)
    (tmp_path / "other.yaml").unlink()
    watched.settle()

    assert with_other is not None
    assert watched.files.current.find("other", None, "x", None) is None
    assert watched.rate() == 1


def test_an_emptied_file_leaves_the_policy_in_force(watched: Watched) -> None:
    watched.file.write_text("# nothing\n")
    watched.settle()

    assert watched.rate() == 1
    assert watched.said[0] == f"policy refused: {watched.file}:1:1: says nothing; remove the file if that is meant"


def test_who_asks_for_what_is_in_force_already_is_told_so(watched: Watched) -> None:
    watched.files.ask()
    watched.files.look(at_once=True)

    assert watched.said == [f"policy {watched.files.current.version} is in force, as the files say"]


def test_a_folder_that_is_emptied_leaves_the_policy_in_force(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ".")
    watched.file.unlink()
    watched.settle()

    assert watched.rate() == 1
    assert watched.said[0] == f"policy refused: {tmp_path}:1:1: holds no *.yaml"


def test_a_name_in_two_files_is_told_with_both_places(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ".")
    (tmp_path / "more.yaml").write_text("defaults: {}\norganisations:\n  acme: {}\n")
    watched.settle()

    assert watched.said[0] == (
        f"policy refused: {tmp_path}/more.yaml:3:3: organisations.acme: "
        f"stands in {tmp_path}/acme.yaml:1 already; each name in one file"
    )


@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "binary"])
def test_what_is_no_text_file_is_refused_without_being_waited_for(watched: Watched, kind: str) -> None:
    watched.file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(watched.file)
        case "folder":
            watched.file.mkdir()
        case "huge":
            with watched.file.open("w") as file:
                file.truncate(1 << 40)
        case "binary":
            watched.file.write_bytes(b"prices:\n  \xff\xfe")
    watched.settle()
    expected = {
        "pipe": "1:1: is no file",
        "folder": "holds no *.yaml",
        "huge": "1:1: has 1",
        "binary": "2:3: not UTF-8",
    }

    assert watched.rate() == 1
    assert expected[kind] in watched.said[0]


def test_a_file_that_cannot_be_read_is_tried_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        watched.file.write_text(GOOD % 2)
        watched.settle()
        watched.settle()
    during = watched.rate()
    watched.files.look()

    assert (during, watched.rate(), watched.files.refused) == (1, 2, 1)


def test_of_many_problems_the_first_are_told(watched: Watched) -> None:
    watched.file.write_text("".join(f"unknown{number}: 1\n" for number in range(5000)))
    watched.settle()

    assert len(watched.said) == SHOWN + 1
    assert watched.said[-1].startswith("80 more problems; policy ")


def test_the_thread_sees_changes_and_ends(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text(GOOD % 1)
    paths = PolicyPaths((tmp_path,))
    heard = threading.Event()
    files = PolicyFiles(paths, paths.compile(paths.read()), say=lambda line: heard.set(), poll_s=0.01)
    files.start()
    (tmp_path / "acme.yaml").write_text(GOOD % 2)
    seen = heard.wait(60)
    after = rate(files.current)
    heard.clear()
    (tmp_path / "acme.yaml").write_text(BROKEN)
    told = heard.wait(60)
    files.close()

    assert (seen, after, told, rate(files.current)) == (True, 2, True, 2)
    assert not any(thread.name == "policy-files" for thread in threading.enumerate())


def bombs() -> Iterator[str]:
    """Documents that are small to write and would be large to read, or long to complain of."""
    yield "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    yield "prices: " + "[" * 100_000
    yield "{" * 100_000
    yield "- " * 100_000
    yield "? " * 100_000
    yield "prices:\n" + "  x: {}\n" * 50_000
    yield "".join(f"%TAG !{number}! x\n" for number in range(200_000)) + "--- {}"
    yield "organisations: {acme: {limits: [" + "{requests: 1/min}, " * 20_000 + "]}}"
    yield "organisations: {acme: {limits: [{requests: " + "9" * 1_000_000 + "/min}]}}"
    yield "prices: {demo: {input: 0." + "0" * 1_000_000 + "1, output: 1}}"
    yield "x" * 1_000_000 + ": 1"
    yield "'" + "''" * 1_000_000
    teams = ", ".join(f"t{number}: {{}}" for number in range(5_000))
    tenants = ", ".join(f"n{number}: {{team: tt{number}}}" for number in range(5_000))
    yield f"organisations: {{acme: {{teams: {{{teams}}}, tenants: {{{tenants}}}}}}}"
    yield "? " + "x" * 2_000_000
    yield ("? " + "x" * 20_000 + "\n: 1\n") * 150
    yield "a: !" + "x" * 1_000_000 + " 1"
    yield "a: *" + "x" * 1_000_000
    yield "x" * ((4 << 20) + 1)


@pytest.mark.parametrize("text", list(bombs()), ids=range(18))
def test_a_bomb_is_refused_in_few_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    paths = PolicyPaths((tmp_path / "bomb.yaml",))

    with pytest.raises(DocumentError) as refused:
        paths.compile(paths.read())

    assert 0 < len(refused.value.problems) <= 100
    assert len(str(refused.value)) < 100_000


def test_whatever_is_written_the_policy_in_force_is_a_valid_one_and_a_refusal_names_the_line(tmp_path: Path) -> None:
    """Each of 300 mutants is compared with what a fresh reading of it says; a reader looks on from another thread."""
    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))]
    file = tmp_path / "policy.yaml"
    file.write_text((EXAMPLES / "company.yaml").read_text())
    paths = PolicyPaths((file,), served=("demo", "big"))
    said: list[str] = []
    files = PolicyFiles(paths, paths.compile(paths.read()), say=said.append)
    files.look(at_once=True)
    seen: set[str] = set()
    over = threading.Event()

    def read_on() -> None:
        while not over.is_set():
            policy = files.current
            seen.add(policy.version)
            for key in policy.keys.values():
                assert policy.keys[key.id] is key
                key.tenant.terms("demo")

    readers = [threading.Thread(target=read_on)]
    for reader in readers:
        reader.start()
    valid = {files.current.version}
    refusals = applications = 0
    try:
        for mutant in mutants(texts, 300):
            if mutant is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(mutant)
            before, told = files.current, len(said)
            files.look(at_once=True)
            try:
                fresh = paths.compile(paths.read())
            except DocumentError as error:
                refusals += 1
                refusal = (files.current is before, files.in_step, said[told : told + 1])
                first = f"policy refused: {error.problems[0]}"

                assert refusal in [(True, False, [first]), (True, False, [])]  # what is wrong as before is not repeated
            else:
                applications += files.current is not before
                valid.add(fresh.version)

                assert (files.current.version, files.in_step) == (fresh.version, True)
    finally:
        over.set()
        for reader in readers:
            reader.join()

    assert refusals > 150
    assert applications > 20
    assert seen <= valid
    assert all(re.match(rf"policy refused: {file}:[1-9][0-9]*:[1-9]", line) for line in said if "refused" in line)
    assert "blake2b:" not in "".join(said).replace("blake2b:…", "")
