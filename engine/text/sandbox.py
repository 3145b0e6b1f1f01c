"""A Jinja environment for chat templates: what Hugging Face gives them, and bounds on what they may spend.

Jinja's sandbox stops a template from reaching Python's insides. It does not stop `range(100000)` inside
`range(100000)`, `'a' * 10**9` or `'%999999999d' % 1`. Templates are the operator's files, but often somebody else's
work; a bad one must become an error and not a gateway that hangs. So:

- every turn of a loop and every call of a macro spends a step and the length of its literal text (written into the
  syntax tree before it is compiled), every printed value its own length, and each looks at the limits and at processor
  time;
- operators, methods and filters that can make a long value from short ones are refused beforehand when it would be too
  long, and the filters that no chat template needs are gone.

What is left to a hostile author is one expression's worth of time, not a hang.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes, pass_context
from jinja2.filters import do_format, do_indent, do_replace, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

BUDGET = "§budget"  # no name that a template could write, neither this one nor the filters' below
_STEP, _JOIN = "§step", "§join"

_FILTERS = """
abs attr capitalize count d default dictsort e escape first float forceescape groupby int items last length list lower
map max min reject rejectattr reverse round safe select selectattr sort sum title trim unique upper urlencode wordcount
"""
_WIDE_FIELD = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)|\{[^{}]*(?:\d{4}|\{)")
_MAX_INTEGER_BITS = 4096
_ITEM_CHARS = 8  # an item of a list or mapping counts at least as much, so that counting is bounded too


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may spend: steps of loops and macros, characters printed (again by each macro that they pass
    through) or held in one value, seconds of processor time.
    """

    max_steps: int = 1_000_000
    max_chars: int = 8_000_000
    max_seconds: float = 2.0


class Budget:
    """What one rendering has spent. `clock` gives processor seconds of this thread. Raises
    `jinja2.TemplateRuntimeError`.
    """

    __slots__ = ("_chars", "_clock", "_ends", "_limits", "_looks", "_steps")

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._ends = clock() + limits.max_seconds
        self._steps = 0
        self._chars = 0
        self._looks = 0

    def step(self, num_chars: int) -> None:
        self._steps += 1
        if self._steps > self._limits.max_steps:
            raise jinja2.TemplateRuntimeError(f"the template ran more than {self._limits.max_steps} steps")
        self.print(num_chars)

    def print(self, num_chars: int) -> None:
        self._chars += num_chars
        self.fits(self._chars)
        self._looks += 1
        if self._looks % 16 == 0 and self._clock() > self._ends:
            raise jinja2.TemplateRuntimeError(f"the template ran longer than {self._limits.max_seconds} s")

    def fits(self, size: int) -> None:
        """Refuse a value of more items or characters than a text may have."""
        if size > self._limits.max_chars:
            raise jinja2.TemplateRuntimeError(f"the template made more than {self._limits.max_chars} characters")

    def weigh(self, value: object) -> int:
        """About how long a value's text is; refuses too long ones. A list that is held many times counts each time."""
        total = 0
        waiting = [value]
        while waiting:
            match waiting.pop():
                case str() as text:
                    total += len(text)
                case Mapping() as mapping:
                    waiting.extend(mapping)
                    waiting.extend(mapping.values())
                case list() | tuple() as items:
                    waiting.extend(items)
            total += _ITEM_CHARS
            self.fits(total + len(waiting))
        return total


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. A rendering needs its `Budget` among the variables, under the name `BUDGET`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: Callable[[], datetime]) -> None:
        extensions = [Generation, jinja2.ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_printed)
        kept = _FILTERS.split()
        self.filters = {name: held for name, held in self.filters.items() if name in kept}
        self.filters |= {"tojson": _tojson, "replace": _replace, "join": _join, "indent": _indent, "format": _format}
        self.filters |= {"string": _string, _STEP: _step, _JOIN: _concat}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.globals |= {"raise_exception": _raise, "strftime_now": lambda form: now().strftime(form)}

    def compile_chat(self, source: str) -> jinja2.Template:
        """Raises `jinja2.TemplateError`."""
        tree = _Meter().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse before computing what would be too long."""
        budget: Budget = context.parent[BUDGET]
        match operator, left, right:
            case "**", int(), int():
                _check_number(left.bit_length() * right)
            case "*", int(), int():
                _check_number(left.bit_length() + right.bit_length())
            case "*", _, int():
                budget.fits(_size(left) * right)
            case "*", int(), _:
                budget.fits(_size(right) * left)
            case "%", str(), _:
                _check_fields(budget, left, right)
            case "+", _, _:
                budget.fits(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Refuse methods of texts and numbers that would make too long ones."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `str.format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            budget: Budget = __context.parent[BUDGET]
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, int):
                    budget.fits(argument)
            match method.__name__, args:
                case "replace", (old, new, *_):
                    budget.fits(_replaced_size(owner, old, new))
                case "join", (items,):
                    args = (_joinable(budget, owner, items),)
                case "format" | "format_map", _:
                    _check_fields(budget, str(owner), [list(args), kwargs])
                case "expandtabs" | "translate", _:
                    raise jinja2.TemplateRuntimeError(f"{method.__name__} is not for chat templates")
        return super().call(__context, __obj, *args, **kwargs)


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - jinja reads it so

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _Meter(NodeTransformer):
    """Writes the steps into a template's syntax tree, and bounds `~`, which the sandbox cannot intercept."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        spend = _spend(node)
        self.generic_visit(node)
        if node.test is None:
            node.body.insert(0, nodes.ExprStmt(spend, lineno=node.lineno))
        else:  # a turn that the test leaves out costs too
            node.test = nodes.And(spend, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        spend = _spend(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(spend, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOIN)


def _spend(node: nodes.Node) -> nodes.Expr:
    literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    return _filter(nodes.Const(1 + literal, lineno=node.lineno), _STEP)


def _filter(value: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


@pass_context
def _step(context: Context, num_chars: int) -> bool:
    context.parent[BUDGET].step(num_chars)
    return True


@pass_context
def _printed(context: Context, value: object) -> object:
    budget: Budget = context.parent[BUDGET]
    budget.print(len(value) if isinstance(value, str) else budget.weigh(value))
    return value


@pass_context
def _string(context: Context, value: object) -> str:
    if isinstance(value, str):
        return value
    context.parent[BUDGET].weigh(value)
    return str(value)


@pass_context
def _concat(context: Context, values: list[object]) -> str:
    return "".join(_joinable(context.parent[BUDGET], "", [_string(context, value) for value in values]))


@pass_context
def _join(context: Context, value: Iterable[Any], d: object = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    separator = str(d)
    return separator.join(_joinable(context.parent[BUDGET], separator, [_string(context, item) for item in value]))


@pass_context
def _replace(context: Context, s: object, old: str, new: str, count: int | None = None) -> str:
    text = _string(context, s)
    context.parent[BUDGET].fits(_replaced_size(text, old, new))
    return do_replace(context.eval_ctx, text, old, new, count)


@pass_context
def _indent(context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    context.parent[BUDGET].fits(len(s) + (s.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return do_indent(s, width, first, blank)


@pass_context
def _format(context: Context, value: str, *args: object, **kwargs: object) -> str:
    _check_fields(context.parent[BUDGET], value, [list(args), kwargs])
    return do_format(value, *args, **kwargs)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face has it: no escaping for HTML, and `json.dumps`' options."""
    budget: Budget = context.parent[BUDGET]
    budget.weigh(value)
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 16:
        raise jinja2.TemplateRuntimeError("tojson: an indent of at most 16")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget.fits(len(text))
    return text


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _replaced_size(text: Any, old: Any, new: Any) -> int:
    size: int = len(text) + text.count(old) * len(new)
    return size


def _joinable(budget: Budget, separator: Any, items: Iterable[Any]) -> list[Any]:
    held = list(items)
    budget.fits(sum(map(_size, held)) + len(held) * len(separator))
    return held


def _check_number(bits: int) -> None:
    if bits > _MAX_INTEGER_BITS:
        raise jinja2.TemplateRuntimeError("the template computed too large a number")


def _check_fields(budget: Budget, form: str, values: object) -> None:
    if _WIDE_FIELD.search(form):
        raise jinja2.TemplateRuntimeError("the template formats a field wider than 999 characters")
    budget.fits(len(form) + (form.count("%") + form.count("{")) * (999 + budget.weigh(values)))
