"""Every key of policy files with its meaning, written from their schema: the reference that cannot drift from the code.

What can be said of every scope is described once, and of the scopes only what each has besides.
"""

from collections.abc import Iterator

from msgspec import inspect

from gateway.configuration.settings import default_of, sentence_of, unwrap
from policies.reader import expectation
from policies.schema import Document, Settings

HEADER = """# Policy files

Written by `penstock settings --policies`; a test compares. Examples stand in `policies/examples/`, and
`penstock schema` prints a JSON Schema for editors.

`policies:` of `penstock.yaml` names the files, or folders of them; together they are one policy, in which each name
stands in one file. They are watched: what has changed and is a policy is in force within two seconds, as a whole, for
calls that come in from then on; on SIGHUP they are read at once. What is no policy changes nothing and is told on
stderr and in `penstock_policy_in_step`. Write a file elsewhere and rename it: half a file may be a policy too.

## How scopes add up

A call lies in an organisation, perhaps in a team, in a tenant, and in the key that was shown.

- The limits of all its scopes hold, each on its own. A limit is shared by all that lies in its scope; it is called by
  the scope and what it counts, `acme/search/web tokens/day`, and keeps what it has counted over reloads, also when its
  amount changes. Of an organisation it is called `acme …`, of a team `acme/search/* …`, of a key `acme/web#web-1 …`.
- Of caps and deadlines the smallest holds. A model may be called where every scope allows it.
- Otherwise the nearest word holds: the key's, the tenant's, the team's, the `defaults` of the organisation, its own,
  the document's `defaults`.
- `defaults` stand in for what a tenant does not say itself, key by key: who says `limits: []` has none of theirs. They
  hold for tenants of issuers that no file names, too, from the first request on, and each tenant has such limits alone.
- `per_model` replaces, within its scope, what the scope says for all models. Among `prices`, `per_model` and limits
  with a `model`, a model's own name goes before a pattern, and of patterns the first that matches is taken.

A rate like `600/min` is a bucket: it holds a period's amount (or `burst`), and flows back all the time. `day` and
`month` are UTC calendar budgets. Money is counted in billionths of a dollar, without rounding. A limit on `cost` needs
a price for every served model that it can count.
"""


def describe_policies() -> str:
    """Give the reference as Markdown: a table a section."""
    root, settings = inspect.type_info(Document), inspect.type_info(Settings)
    assert isinstance(root, inspect.StructType)
    assert isinstance(settings, inspect.StructType)
    shared = frozenset(field.encode_name for field in settings.fields)
    scopes = _section("", "Of every scope", settings, frozenset(), " (a scope's)")
    return HEADER + "".join(_section("", "The file", root, shared, "")) + "".join(scopes)


def _section(prefix: str, title: str, kind: inspect.StructType, shared: frozenset[str], suffix: str) -> Iterator[str]:
    of_scope = issubclass(kind.cls, Settings) and bool(shared)
    yield f"\n## {title}\n\n{sentence_of(kind)}{' Besides, what can be said of every scope.' if of_scope else ''}\n"
    own = [field for field in kind.fields if not (of_scope and field.encode_name in shared)]
    inner: list[tuple[str, inspect.StructType]] = []
    if own:
        yield "\n| key | is | default | meaning |\n|---|---|---|---|\n"
    for field in own:
        bare, about = unwrap(field.type)
        name = prefix + field.encode_name
        nested, mark = bare, ""
        if isinstance(bare, inspect.DictType):
            nested, mark = unwrap(bare.value_type)[0], ".NAME"
        elif isinstance(bare, inspect.VarTupleType):
            nested, mark = unwrap(bare.item_type)[0], "[]"
        if isinstance(nested, inspect.StructType) and nested.cls is not Settings:
            inner.append((name + mark, nested))
        allowed = expectation(bare).replace("|", "\\|")
        yield f"| `{field.encode_name}` | {allowed} | {default_of(field)} | {about} |\n"
    for path, nested in inner:
        yield from _section(f"{path}.", path + suffix, nested, shared, suffix)
