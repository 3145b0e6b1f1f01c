"""Configuration is read strictly, and every mistake is told with its place, its value and what is allowed."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from policies.document import MAX_DEPTH, DocumentError, Flaw, Problem, parse
from policies.reader import read
from policies.secret import Secret


class Bucket(Struct, frozen=True, kw_only=True):
    rate: Annotated[float, Meta(gt=0, le=100)]
    burst: Annotated[int, Meta(ge=1, le=10)] = 5
    mode: Literal["hard", "soft"] = "hard"


class Policy(Struct, frozen=True, kw_only=True):
    name: str = ""
    shared: bool = False
    bucket: Bucket | None = None
    tags: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    buckets: dict[Annotated[str, Meta(pattern="^[a-z]+$")], Bucket] = {}
    key: Secret | None = None


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        read(text, "p.yaml", Policy)
    return [str(problem) for problem in caught.value.problems]


def test_a_right_document_becomes_its_struct() -> None:
    text = "name: a\nshared: true\nbucket: {rate: 1.5}\ntags: [x, y]\nkey: env:K\n"
    text += "buckets:\n  b: {rate: 2, burst: 3, mode: soft}\n"

    assert read(text, "p.yaml", Policy) == Policy(
        name="a",
        shared=True,
        bucket=Bucket(rate=1.5),
        tags=("x", "y"),
        buckets={"b": Bucket(rate=2.0, burst=3, mode="soft")},
        key=Secret("env", "K"),
    )


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "bucket:\n", "tags:\nbuckets:\n", "null", "{}"])
def test_what_is_left_empty_has_its_default(text: str) -> None:
    assert read(text, "p.yaml", Policy) == Policy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "nmae: a",
            "p.yaml:1:1: nmae: unknown key (did you mean 'name'?); allowed: bucket, buckets, key, name, shared, tags",
        ),
        ("bucket:\n  rate: 200", "p.yaml:2:9: bucket.rate: got '200', expected a number above 0, at most 100"),
        ("bucket: {rate: fast}", "p.yaml:1:16: bucket.rate: got 'fast', expected a number above 0, at most 100"),
        ("bucket: {rate: .inf}", "p.yaml:1:16: bucket.rate: got '.inf', expected a number above 0, at most 100"),
        ("bucket: {rate: 1, burst: 1.5}", "p.yaml:1:26: bucket.burst: got '1.5', expected a whole number from 1 to 10"),
        ("bucket: {rate: 1, burst: '3'}", "p.yaml:1:26: bucket.burst: got '3', expected a whole number from 1 to 10"),
        ("bucket: {rate: 1, burst: 07}", "p.yaml:1:26: bucket.burst: got '07', expected a whole number from 1 to 10"),
        ("bucket: {rate: 1, mode: firm}", "p.yaml:1:25: bucket.mode: got 'firm', expected one of hard, soft"),
        ("bucket: {burst: 1}", "p.yaml:1:9: bucket.rate: missing; expected a number above 0, at most 100"),
        ("bucket: 3", "p.yaml:1:9: bucket: got a single value, expected a mapping of keys to values"),
        ("shared: yes", "p.yaml:1:9: shared: got 'yes', expected true or false"),
        ("name: [a]", "p.yaml:1:7: name: got a list, expected text"),
        ("name:", "p.yaml:1:6: name: got nothing, expected text; leave the key out instead"),
        ("tags: [a, '']", "p.yaml:1:11: tags[1]: got '', expected text that is not empty"),
        ("tags: a", "p.yaml:1:7: tags: got a single value, expected a list, each text that is not empty"),
        ("buckets: {B1: {rate: 1}}", "p.yaml:1:11: buckets.B1: got 'B1', expected text like ^[a-z]+$"),
        ("name: a\nname: b", "p.yaml:2:1: duplicate key 'name'; it stands in line 1 already"),
        ("name: &a x\ntags: [*a]", "p.yaml:2:8: an alias (*a); write the value out"),
        ("bucket: {<<: {rate: 1}}", "p.yaml:1:10: a merge key (<<); write the values out"),
        (
            "name: !!python/object:os.system x",
            "p.yaml:1:7: a tag (tag:yaml.org,2002:python/object:os.system); tags are not supported",
        ),
        ("name: a\n---\nname: b", "p.yaml:2:1: a second document; one file holds one"),
        ("? [a]\n: b", "p.yaml:1:3: a key must be a single value"),
        ("- a", "p.yaml:1:1: got a list, expected a mapping of keys to values"),
        ("name: a\n\tshared: true", "p.yaml:2:1: not YAML: found a tab character that violates indentation"),
        ("name: \x07", "p.yaml:1:7: not YAML: control characters are not allowed"),
    ],
)
def test_a_mistake_is_told_with_its_place_its_value_and_what_is_allowed(text: str, expected: str) -> None:
    assert [expected] == problems(text)


def test_all_mistakes_are_told_at_once_in_the_files_order() -> None:
    found = problems("shared: 3\nbucket:\n  rate: 0\n  bust: 1\ntags: [{}]\n")

    assert [line.split(": ")[0] for line in found] == ["p.yaml:1:9", "p.yaml:3:9", "p.yaml:4:3", "p.yaml:5:8"]


def test_text_stays_as_written_where_text_is_expected() -> None:
    for written in ("no", "007", "1:30", "2026-01-01", "1e3", "0x1f"):
        assert written == read(f"name: {written}", "p.yaml", Policy).name


def test_a_literal_secret_is_refused_and_never_repeated() -> None:
    [told] = problems("key: sk-very-secret")

    assert told == (
        "p.yaml:1:6: key: a secret is given by reference, env:NAME or file:/path, and never written into the file"
    )


def test_a_check_points_to_the_place_of_its_path() -> None:
    with pytest.raises(DocumentError) as caught:
        read("name: a\ntags:\n- x\n- y\n", "p.yaml", Policy, lambda _: [Flaw(("tags", 1), "no y")])

    assert str(caught.value) == "p.yaml:4:3: tags[1]: no y"


def test_nesting_is_bounded_without_recursion() -> None:
    with pytest.raises(DocumentError, match=f"nested deeper than {MAX_DEPTH}"):
        parse("[" * 100_000, "p.yaml")


def test_an_alias_bomb_is_refused_at_its_first_alias() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]

    with pytest.raises(DocumentError, match=r"p\.yaml:2:10: an alias"):
        parse("\n".join(lines), "p.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        read(text, "p.yaml", Policy)
    except DocumentError as error:
        problems = error.problems

    assert all(problem.mark.line >= 1 and problem.mark.column >= 1 for problem in problems)


def test_a_secret_is_fetched_from_the_environment_or_a_file(tmp_path) -> None:
    (tmp_path / "key").write_text("from-file\n")

    assert Secret.from_text("env:KEY").resolve({"KEY": "from-env"}) == "from-env"
    assert Secret.from_text(f"file:{tmp_path}/key").resolve({}) == "from-file"


@pytest.mark.parametrize(
    ("reference", "environ", "message"),
    [
        ("env:KEY", {}, "the environment variable KEY is not set"),
        ("env:KEY", {"KEY": " "}, "env:KEY is empty"),
        ("env:KEY", {"KEY": "a\nb"}, "env:KEY holds no usable secret"),
        ("file:/does/not/exist", {}, "cannot read /does/not/exist: No such file or directory"),
    ],
)
def test_a_secret_that_cannot_be_had_says_where_it_was_looked_for(
    reference: str, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Secret.from_text(reference).resolve(environ)
