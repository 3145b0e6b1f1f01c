"""What may become of a policy file: seeded mutations of sound ones, most of them no policies any more."""

import random
from collections.abc import Iterator, Sequence

SEED = 20261120


def mutants(texts: Sequence[str], count: int) -> Iterator[bytes | None]:
    """Give texts cut short, shifted, negative, misspelt, doubled, bombed, made binary; None is a deleted file."""
    rng = random.Random(SEED)
    for _ in range(count):
        text = rng.choice(texts)
        lines = text.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        match rng.randrange(10):
            case 0:
                yield text[: rng.randrange(len(text))].encode()
            case 1:
                lines[at] = " " * rng.randrange(1, 5) + lines[at]
                yield "".join(lines).encode()
            case 2:
                numbers = [place for place, char in enumerate(text) if char.isdigit() and text[place - 1] in ": "]
                place = rng.choice(numbers)
                yield (text[:place] + "-" + text[place:]).encode()
            case 3:
                colon = rng.choice([place for place, char in enumerate(text) if char == ":"])
                yield (text[:colon] + "x" + text[colon:]).encode()
            case 4:
                lines.insert(at, lines[at])
                yield "".join(lines).encode()
            case 5:
                yield (text + "\nbomb: &a [" + "*a, " * 1000 + "]\n").encode()
            case 6:
                broken = bytearray(text.encode())
                broken[rng.randrange(len(broken))] = rng.choice([0, 0x1B, 0x7F, 0x80, 0xC0, 0xFF])
                yield bytes(broken)
            case 7:
                del lines[at]
                yield "".join(lines).encode()
            case 8:
                place = rng.randrange(len(text))
                yield (text[:place] + rng.choice("{}[]&*!|>'\"%@`#\t?-:,") + text[place:]).encode()
            case 9:
                yield None
