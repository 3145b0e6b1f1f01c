"""Ask for something that one of the given functions can do, and for words about its result.

The request's arguments are never trained on in an evaluation. Some tools are made up, name and all, so that the
network reads the definitions instead of remembering fourteen names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from engine.demo import values
from engine.demo.exchange import Exchange, Json, Message, Tool, assistant, user, ways
from engine.demo.split import Split

KIND = "tool_calls"

Arguments = dict[str, "str | int"]


@dataclass(frozen=True, slots=True)
class Sort:
    """What an argument may be: its JSON type, how to make one, and the label it is drawn under."""

    json_type: str
    label: str
    make: Callable[[Random, Split], str | int]


def _count(sort: str, low: int, high: int) -> Sort:
    return Sort("integer", sort, lambda rng, split: values.number(rng, split, sort, low, high))


_TOWN = Sort("string", "town", values.town)
_NAME = Sort("string", "name", values.name)
_THING = Sort("string", "thing", values.thing)
_WORD = Sort("string", "word", values.word)
_TIME = Sort("string", "time", values.clock)


@dataclass(frozen=True, slots=True)
class Function:
    """A callable thing: its arguments, ways to ask for it, what it may return, and what to say then."""

    name: str
    description: str
    arguments: Mapping[str, Sort]
    ask: tuple[str, ...]
    result: Callable[[Random], Arguments]
    reply: str


def _ok(rng: Random) -> Arguments:
    return {"status": "ok"}


def _number(key: str, low: int, high: int) -> Callable[[Random], Arguments]:
    return lambda rng: {key: rng.randint(low, high)}


def _clock(key: str) -> Callable[[Random], Arguments]:
    return lambda rng: {key: f"{rng.randrange(24):02}:{rng.randrange(60):02}"}


def _weather(rng: Random) -> Arguments:
    return {"sky": rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "clear")), "degrees": rng.randint(0, 39)}


FUNCTIONS = (
    Function(
        "get_weather",
        "Get the weather in a city",
        {"city": _TOWN},
        ways(
            """What is the weather in {city}? | How is the weather in {city}? | Weather in {city}?
            Tell me the weather in {city}. | Is it raining in {city}? | What's the weather like in {city}?
            Get the weather for {city}. | I need the weather in {city}.""",
            "Do you know the weather in {city}?",
            "What is the weather like in {city}? | Please tell me the weather in {city}.",
        ),
        _weather,
        "In {city} it is {sky} and {degrees} degrees.",
    ),
    Function(
        "get_time",
        "Get the local time in a city",
        {"city": _TOWN},
        ways(
            """What time is it in {city}? | Tell me the time in {city}. | Time in {city}?
            What is the local time in {city}? | How late is it in {city}? | I need the time in {city}.
            What's the time in {city}?""",
            "Do you know the time in {city}?",
            "What is the time in {city}? | Please tell me the time in {city}.",
        ),
        _clock("time"),
        "It is {time} in {city}.",
    ),
    Function(
        "get_population",
        "Get the number of people in a city",
        {"city": _TOWN},
        ways(
            """How many people live in {city}? | What is the population of {city}? | Population of {city}?
            How big is {city}? | Tell me the population of {city}. | How many inhabitants does {city} have?""",
            "What population does {city} have?",
            "Please tell me how many people live in {city}. | How large is the population of {city}?",
        ),
        _number("people", 1000, 99999),
        "{people} people live in {city}.",
    ),
    Function(
        "set_timer",
        "Start a timer",
        {"minutes": _count("minutes", 1, 180)},
        ways(
            """Set a timer for {minutes} minutes. | Start a timer of {minutes} minutes.
            Timer for {minutes} minutes, please. | Remind me in {minutes} minutes. | Wake me in {minutes} minutes.
            I need a {minutes} minute timer. | Start a {minutes} minute timer. | Count down {minutes} minutes.""",
            "Make a timer of {minutes} minutes.",
            "Please set a timer for {minutes} minutes. | Set a {minutes} minute timer.",
        ),
        _ok,
        "The timer is set for {minutes} minutes.",
    ),
    Function(
        "set_heating",
        "Set the heating",
        {"degrees": _count("degrees", 5, 35)},
        ways(
            """Set the heating to {degrees} degrees. | Turn the heating to {degrees}.
            Heat the house to {degrees} degrees. | Make it {degrees} degrees in here.
            Heating to {degrees} degrees, please. | I want {degrees} degrees in the house.""",
            "Put the heating at {degrees} degrees.",
            "Please set the heating to {degrees} degrees. | Turn the heating to {degrees} degrees.",
        ),
        _ok,
        "The heating is set to {degrees} degrees.",
    ),
    Function(
        "send_message",
        "Send a message to a person",
        {"to": _NAME, "text": _WORD},
        ways(
            """Send {to} the message {text}. | Send a message to {to}: {text} | Write to {to}: {text}
            Tell {to} this: {text} | Message {to}: {text} | Send {text} to {to}. | Let {to} know: {text}
            Text {to} the word {text}.""",
            "Send the word {text} to {to}.",
            "Please send a message to {to}: {text} | Send {to} this message: {text}",
        ),
        _ok,
        "Your message to {to} has been sent.",
    ),
    Function(
        "call_person",
        "Call a person on the phone",
        {"name": _NAME},
        ways(
            """Call {name}. | Phone {name}. | Give {name} a call. | Ring {name}. | I want to talk to {name}.
            Make a call to {name}. | Call {name} for me.""",
            "I would like to call {name}.",
            "Please call {name}. | Can you call {name}?",
        ),
        _ok,
        "Calling {name} now.",
    ),
    Function(
        "get_price",
        "Get the price of a product",
        {"item": _THING},
        ways(
            """How much do {item} cost? | What is the price of {item}? | Price of {item}? | What do {item} cost?
            Tell me the price of {item}. | How expensive are {item}? | Look up the price of {item}.""",
            "What price do {item} have?",
            "Please tell me the price of {item}. | What is the price for {item}?",
        ),
        _number("dollars", 2, 400),
        "The price of {item} is {dollars} dollars.",
    ),
    Function(
        "add_to_list",
        "Put a product on the shopping list",
        {"item": _THING, "quantity": _count("quantity", 2, 60)},
        ways(
            """Add {quantity} {item} to my shopping list. | Put {quantity} {item} on the list.
            I need to buy {quantity} {item}. | Shopping list: {quantity} {item}.
            Write {quantity} {item} on my shopping list. | We need {quantity} {item}.""",
            "Note {quantity} {item} on the list.",
            "Please put {quantity} {item} on my shopping list. | Add {quantity} {item} to the list.",
        ),
        _ok,
        "I put {quantity} {item} on the list.",
    ),
    Function(
        "book_table",
        "Book a table in a restaurant",
        {"name": _NAME, "people": _count("people", 2, 30)},
        ways(
            """Book a table for {people} people under the name {name}. | Reserve a table for {people}, name {name}.
            I need a table for {people} people, in the name of {name}. | Table for {people} for {name}, please.
            {name} wants a table for {people} people. | Get {name} a table for {people} people.""",
            "Book {name} a table for {people}.",
            """Please book a table for {people} people, name {name}.
            Reserve a table for {people} people under the name {name}.""",
        ),
        _ok,
        "A table for {people} is booked under the name {name}.",
    ),
    Function(
        "find_train",
        "Find the next train",
        {"from": _TOWN, "to": _TOWN},
        ways(
            """Find a train from {from} to {to}. | When is the next train from {from} to {to}?
            Train from {from} to {to}? | I want to go from {from} to {to} by train.
            How do I get from {from} to {to} by train? | Next train from {from} to {to}.
            Search for trains from {from} to {to}.""",
            "Which train goes from {from} to {to}?",
            "Please find a train from {from} to {to}. | When does the next train from {from} to {to} leave?",
        ),
        _clock("leaves"),
        "The next train from {from} to {to} leaves at {leaves}.",
    ),
    Function(
        "get_distance",
        "Get the distance between two cities",
        {"from": _TOWN, "to": _TOWN},
        ways(
            """How far is it from {from} to {to}? | What is the distance from {from} to {to}?
            Distance from {from} to {to}? | How many kilometres are there from {from} to {to}?
            Tell me how far it is from {from} to {to}. | Measure the distance from {from} to {to}.""",
            "How long is the way from {from} to {to}?",
            "What is the distance between {from} and {to}? | Please tell me the distance from {from} to {to}.",
        ),
        _number("kilometres", 3, 900),
        "It is {kilometres} kilometres from {from} to {to}.",
    ),
    Function(
        "create_event",
        "Put an event into the calendar",
        {"title": _WORD, "time": _TIME},
        ways(
            """Create an event called {title} at {time}. | Put {title} into my calendar at {time}.
            Calendar: {title} at {time}. | Add {title} to the calendar at {time}. | Plan {title} for {time}.
            Make an event at {time} named {title}.""",
            "Schedule {title} at {time}.",
            "Please put {title} into the calendar at {time}. | Create an event named {title} at {time}.",
        ),
        _ok,
        "The event {title} is in your calendar at {time}.",
    ),
    Function(
        "find_books",
        "Find books of an author",
        {"author": _NAME},
        ways(
            """Find books by {author}. | Which books did {author} write? | Search for books by {author}.
            Books by {author}? | Look for books by {author}. | What has {author} written?
            I want to read something by {author}.""",
            "List the books by {author}.",
            "Please find books by {author}. | Which books were written by {author}?",
        ),
        _number("books", 2, 90),
        "I found {books} books by {author}.",
    ),
)

_VERBS = [
    "get",
    "set",
    "find",
    "make",
    "open",
    "close",
    "start",
    "stop",
    "read",
    "write",
    "check",
    "count",
    "move",
    "save",
    "load",
    "play",
    "show",
    "hide",
    "lock",
    "mix",
]
_NOUNS = [
    "light",
    "door",
    "file",
    "song",
    "order",
    "room",
    "note",
    "stock",
    "ticket",
    "alarm",
    "photo",
    "map",
    "card",
    "game",
    "page",
    "report",
    "robot",
    "engine",
    "pump",
    "valve",
]
_SORTS = {
    "city": _TOWN,
    "name": _NAME,
    "item": _THING,
    "word": _WORD,
    "label": _WORD,
    "owner": _NAME,
    "place": _TOWN,
    "amount": _count("amount", 1, 999),
    "level": _count("level", 1, 99),
    "size": _count("size", 1, 99),
}
_MADE_UP = ways(
    """Call {function} with {arguments}. | Use {function} with {arguments}. | Please run {function} with {arguments}.
    Run {function}: {arguments} | {function}: {arguments} | Do {function} with {arguments}.""",
    "Execute {function} with {arguments}.",
    "Please call {function} with {arguments}. | Please use {function}: {arguments}",
)
_MADE_UP_RESULT = "{function} says: {result}."


def _definition(name: str, description: str, arguments: Mapping[str, Sort]) -> Tool:
    """The function in the form of OpenAI's `tools`."""
    properties: dict[str, Json] = {key: {"type": sort.json_type} for key, sort in arguments.items()}
    parameters: Json = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _made_up(rng: Random) -> Function:
    verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
    arguments = {key: _SORTS[key] for key in rng.sample(sorted(_SORTS), rng.randint(1, 3))}
    return Function(f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", arguments, _MADE_UP, _ok, _MADE_UP_RESULT)


def call(name: str, arguments: Arguments) -> Message:
    """The assistant's turn that calls a function."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def call_text(name: str, arguments: Arguments) -> str:
    """What the network writes for `call`."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Some functions at hand and their definitions, as the chat template gets them."""

    functions: tuple[Function, ...]

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(_definition(f.name, f.description, f.arguments) for f in self.functions)


def toolbox(rng: Random) -> Toolbox:
    """One to three functions of different names."""
    functions: dict[str, Function] = {}
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        function = _made_up(rng) if rng.random() < 0.3 else rng.choice(FUNCTIONS)
        functions[function.name] = function
    return Toolbox(tuple(functions.values()))


def exchange(rng: Random, split: Split, box: Toolbox, answered: bool) -> Exchange:
    """Ask for a call; `answered` adds the function's result and the words about it."""
    function = rng.choice(box.functions)
    arguments: Arguments = {key: sort.make(rng, split) for key, sort in function.arguments.items()}
    labels = tuple(f"{sort.label}:{str(arguments[key]).lower()}" for key, sort in function.arguments.items())
    template = rng.choice(function.ask)
    listed = " and ".join(f"{key} {value}" for key, value in arguments.items())
    question = template.format(**{"function": function.name, "arguments": listed, **arguments})
    messages: tuple[Message, ...] = (user(question), call(function.name, arguments))
    if answered:
        result = function.result(rng)
        told = {"function": function.name, "result": ", ".join(map(str, result.values())), **arguments, **result}
        messages += (
            {"role": "tool", "name": function.name, "content": json.dumps(result)},
            assistant(function.reply.format(**told)),
        )
    return Exchange(KIND, messages, f"{function.name}: {template}", labels, box.tools)
