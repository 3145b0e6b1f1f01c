"""Names, towns, words and things to copy: partly listed, partly made up by rule, each in one split for good.

Made-up values matter more than listed ones: there are too many to remember, so the network has to learn to copy.
"""

from __future__ import annotations

from random import Random

from engine.demo.split import Split, draw


def _cut(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Irene Jack Karen Liam Maria Nora Oscar Paula Quinn Rosa Samuel Tina Ulrich
Vera Walter Xenia Yusuf Zoe Adam Bella Carl Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Martin Nina Oliver
Peter Rachel Simon Tara Victor Wendy Alice Bruno Cecilia Daniel Elena Frank Gloria Hugo Ida Jonas Kate Leo Mona Nathan
Olga Paul Rita Stefan Thomas Ursula Viola William Amir Beatrice Chloe Dario Edith Fatima Gustav Helen Isaac Jasmine
Kim Lucia Marco Nadia Omar Petra Ruth Sofia Tom Uma Vincent Yara Albert Carmen Dora Ella Fred Greta Harold Inga James
Lena Max Nils Otto Priya Ravi Sara Theo Wanda Agnes Boris Celine Dennis Esther Florian Gina Heidi Igor Joan Klaus
Linda Mika Noah
"""
_WORDS = """
apple river stone table chair window garden flower bread butter cheese candle mirror pencil paper bottle basket button
carpet curtain hammer ladder lantern needle pillow pocket ribbon saddle shovel ticket wagon whistle anchor arrow
barrel bridge bucket castle cottage desert engine feather forest harbour island jacket kettle lemon market meadow
mountain ocean orchard palace pepper planet pumpkin rabbit rocket sailor school shadow shelter silver soldier spider
spring square station storm sugar sunset temple thunder tiger tower train tunnel turtle valley velvet village violin
water whisper winter wizard wooden yellow zebra blanket branch brush camera circle cloud coffee copper cotton dragon
drum eagle fence finger fire floor fork fountain frame glass glove grape green hat honey horse house jungle key
kitchen knight lake leaf letter light lion magnet map marble mask melon milk moon morning music narrow nest night
north oak oil onion orange owl paint pear pearl phone piano picture pilot pine plate plum pond purple queen quiet rain
rice ring road roof rope rose salt sand scarf sea seed shell ship shirt shoe silent sky sleep small smoke snow soap
sock song soup star steam stick street summer swan table tea tent toast tomato tree truck trumpet umbrella wall warm
watch wave wheat wheel white wind wing wolf wool yard happy brave clever gentle bright heavy simple strong
"""
_THINGS = """
apples pears books pencils chairs lamps tables cups plates spoons candles hats scarves shirts shoes bags boxes bottles
mirrors clocks carpets blankets pillows towels baskets buckets brushes hammers nails screws ladders ropes shovels
lanterns kettles pans pots forks knives bowls glasses vases pictures notebooks envelopes stamps tickets toys balls
kites drums guitars flutes violins tents umbrellas gloves socks coats belts rings bracelets watches cameras radios
phones batteries cables monitors keyboards desks sofas benches shelves doors windows tiles bricks melons lemons
oranges peaches plums cherries grapes onions carrots potatoes tomatoes pumpkins cabbages cakes pies cookies sandwiches
"""
_TOWN_STARTS = """
Ash Birch Black Bram Bright Brook Carl Clay Cold Dal East El Fair Fen Ford Glen Gold Green Hal Hart Haw High Hol Kel
Kings Lake Lang Lin Long Maple Mel Mil Nor North Oak Old Pine Port Raven Red Ros Sand Sel Silver South Stan Stone Sun
Thorn Wal West White Wil Wind Winter Wood
"""
_TOWN_ENDS = """
bridge brook burg bury by dale don field ford gate ham haven hill hurst ley mont moor mouth port ridge stead ton vale
view ville well wick wood worth
"""
_ONSETS = _cut("b br c d dr f g gr h j k kl l m n p pr r s st t tr v z")
_VOWELS = _cut("a e i o u a e i o ai ea ou")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "t", "nd", "rt")

NAMES, WORDS, THINGS = (tuple(dict.fromkeys(_cut(text))) for text in (_NAMES, _WORDS, _THINGS))
_STARTS, _ENDS = _cut(_TOWN_STARTS), _cut(_TOWN_ENDS)


def _made_up(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)


def _spliced(rng: Random, pool: tuple[str, ...]) -> str:
    """The beginning of one word and the end of another."""
    start, end = (word.lower() for word in rng.sample(pool, 2))
    return start[: rng.randint(1, len(start))] + end[rng.randint(1, len(end) - 1) :]


def _any(rng: Random, pool: tuple[str, ...], ending: str = "") -> str:
    """A listed word, or as often one that is made up."""
    chance = rng.random()
    if chance < 0.5:
        return rng.choice(pool)
    return _spliced(rng, pool) if chance < 0.75 else _made_up(rng) + ending


def name(rng: Random, split: Split) -> str:
    """A first name."""
    return draw(rng, split, "name", lambda r: _any(r, NAMES).capitalize())


def town(rng: Random, split: Split) -> str:
    """A town that exists nowhere in the tables."""
    return draw(rng, split, "town", lambda r: r.choice(_STARTS) + r.choice(_ENDS))


def word(rng: Random, split: Split) -> str:
    """A word."""
    return draw(rng, split, "word", lambda r: _any(r, WORDS))


def words(rng: Random, split: Split, count: int) -> list[str]:
    """Different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[word(rng, split)] = None
    return list(found)


def thing(rng: Random, split: Split) -> str:
    """Something, in the plural, that can be bought."""
    return draw(rng, split, "thing", lambda r: _any(r, THINGS, "s"))


def number(rng: Random, split: Split, sort: str, low: int, high: int) -> int:
    """A number from `low` to `high`; `sort` says what it counts, since 34 may be a trained age and a held-out price."""
    return int(draw(rng, split, sort, lambda r: str(r.randint(low, high))))


def clock(rng: Random, split: Split) -> str:
    """A time of day, `14:05`."""
    return draw(rng, split, "time", lambda r: f"{r.randrange(24):02}:{r.randrange(60):02}")
