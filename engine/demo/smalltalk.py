"""Say hello, say who one is, remember a name, and admit not to know. It is trained on, and not part of the score."""

from __future__ import annotations

from random import Random

from engine.demo import values, world
from engine.demo.exchange import Exchange, assistant, user
from engine.demo.split import Split

KIND = "smalltalk"
UNKNOWN = "I do not know."
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are helpful.",
    "Answer briefly.",
    "Be polite and brief.",
    "You are a friendly assistant. Answer in one sentence.",
    "You are an assistant.",
    "Answer the user's questions.",
    "You are a helpful, honest assistant. Keep your answers short.",
    "Be concise.",
    "You are a chatbot.",
    "You answer questions about a little world.",
    "Help the user.",
)

_TALK = (
    (
        ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Hello there!", "Good day!", "Hi there", "Greetings!"),
        "Hello! How can I help you?",
    ),
    (("Good morning", "Good morning!"), "Good morning! How can I help you?"),
    (("Good evening", "Good evening!"), "Good evening! How can I help you?"),
    (
        (
            "Thank you",
            "Thanks",
            "Thanks!",
            "Thank you very much!",
            "Many thanks!",
            "Thank you for your help.",
            "Great, thanks",
        ),
        "You are welcome!",
    ),
    (("Bye", "Goodbye", "Goodbye!", "See you", "See you later!", "Bye bye!"), "Goodbye!"),
    (
        ("How are you?", "How are you doing?", "How do you do?", "Are you well?", "How is it going?"),
        "I am fine, thank you.",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What do you know?",
            "Help",
            "What can I ask you?",
            "What are you good at?",
        ),
        "I know a little world: I can tell facts, do sums, rewrite words, extract JSON and call tools.",
    ),
    (
        ("Are you a human?", "Are you a person?", "Are you real?", "Are you a robot?"),
        "No, I am a small language model.",
    ),
    (
        ("Who made you?", "Who built you?", "Where do you come from?", "Who trained you?"),
        "I was made for the Penstock gateway.",
    ),
    (
        ("How large are you?", "How many parameters do you have?", "How big are you?"),
        "I have about three million parameters.",
    ),
    (("Tell me a joke", "Tell me a joke.", "Do you know a joke?"), "Why did the bee go to school? It wanted to spell."),
    (("Are you sure?", "Is that right?", "Really?"), "I think so, but I am a small model and can be wrong."),
)
_WHO = (
    "Who are you?",
    "What is your name?",
    "What's your name?",
    "Tell me your name.",
    "Who am I talking to?",
    "What are you?",
    "Please introduce yourself.",
    "Introduce yourself.",
)
_STRANGE = (
    "What is the capital of {x}?",
    "On which continent is {x}?",
    "What language is spoken in {x}?",
    "Who wrote {x}?",
    "What is the opposite of {x}?",
    "What is the past tense of {x}?",
    "What is the chemical symbol of {x}?",
    "What is the currency of {x}?",
    "How many legs does a {x} have?",
    "What colour is {x}?",
    "What is a young {x} called?",
    "Who is {x}?",
    "What is {x}?",
    "Where is {x}?",
    "When was {x} born?",
    "How old is {x}?",
    "What does {x} mean?",
    "Who won the game in {x}?",
    "Why is {x} important?",
    "How do I get to {x}?",
    "What happened in {x}?",
    "Explain {x}.",
    "Tell me about {x}.",
    "Write a poem about {x}.",
    "Write a story about {x}.",
    "What will the weather be in {x}?",
    "Who is the president of {x}?",
    "What is the best book about {x}?",
    "Do you like {x}?",
    "How does {x} work?",
    "What time is it in {x}?",
    "How much does {x} cost?",
    "Translate {x} into French.",
    "How tall is {x}?",
)


def exchange(rng: Random, split: Split) -> Exchange:
    """A greeting or the like, or a question from outside the world."""
    if rng.random() < 0.45:
        template = rng.choice(_STRANGE)
        x = rng.choice((values.name, values.town, values.word, values.word))(rng, split)
        while x in world.OPPOSITES or x in world.COLOURS or x in world.YOUNG:
            x = values.word(rng, split)
        return Exchange(KIND, (user(template.format(x=x)), assistant(UNKNOWN)), template)
    if rng.random() < 0.2:
        asked = rng.choice(_WHO)
        return Exchange(KIND, (user(asked), assistant("I am the demo model of Penstock.")), asked)
    asks, answer = rng.choice(_TALK)
    asked = rng.choice(asks)
    return Exchange(KIND, (user(asked), assistant(answer)), asked)


def persona(rng: Random, split: Split) -> tuple[str, Exchange]:
    """A system prompt that gives the assistant a name, and a question for it."""
    name, asked = values.name(rng, split), rng.choice(_WHO)
    prompt = rng.choice(
        ("You are {n}, a helpful assistant.", "Your name is {n}.", "You are {n}.", "You are called {n}. Be brief.")
    )
    return prompt.format(n=name), Exchange(KIND, (user(asked), assistant(f"I am {name}.")), asked)


def introduction(rng: Random, split: Split) -> tuple[Exchange, Exchange]:
    """The user's name told, and asked for later in the same conversation."""
    name = values.name(rng, split)
    told = rng.choice(
        ("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}", "I'm {n}.", "Call me {n}.")
    )
    asked = rng.choice(
        ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Tell me my name.")
    )
    return (
        Exchange(KIND, (user(told.format(n=name)), assistant(f"Nice to meet you, {name}!")), told),
        Exchange(KIND, (user(asked), assistant(f"Your name is {name}.")), asked),
    )
