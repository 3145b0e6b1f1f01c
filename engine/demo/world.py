"""The little world: everything that the demo model is meant to know, as tables.

Each table is a string of `key = value` pairs separated by `;`. The facts are common knowledge; nothing else
about the world is ever asked of the model, and whatever is not here it should say it does not know.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, str]:
    pairs = (entry.split("=") for entry in text.split(";") if entry.strip())
    return {key.strip(): value.strip() for key, value in pairs}


CAPITALS = _table("""
France = Paris; Germany = Berlin; Italy = Rome; Spain = Madrid; Portugal = Lisbon; Austria = Vienna; Greece = Athens;
Poland = Warsaw; Hungary = Budapest; Norway = Oslo; Sweden = Stockholm; Denmark = Copenhagen; Finland = Helsinki;
Ireland = Dublin; Belgium = Brussels; Switzerland = Bern; Iceland = Reykjavik; Russia = Moscow; Turkey = Ankara;
Egypt = Cairo; Kenya = Nairobi; Nigeria = Abuja; Morocco = Rabat; Ethiopia = Addis Ababa; Ghana = Accra;
Japan = Tokyo; China = Beijing; India = New Delhi; South Korea = Seoul; Thailand = Bangkok; Vietnam = Hanoi;
Indonesia = Jakarta; Nepal = Kathmandu; Iran = Tehran; Iraq = Baghdad; Canada = Ottawa; Mexico = Mexico City;
Cuba = Havana; Brazil = Brasilia; Argentina = Buenos Aires; Chile = Santiago; Peru = Lima; Colombia = Bogota;
Australia = Canberra; New Zealand = Wellington; the United Kingdom = London; the United States = Washington
""")

CONTINENTS = _table("""
France = Europe; Germany = Europe; Italy = Europe; Spain = Europe; Portugal = Europe; Austria = Europe; Greece = Europe;
Poland = Europe; Hungary = Europe; Norway = Europe; Sweden = Europe; Denmark = Europe; Finland = Europe;
Ireland = Europe; Belgium = Europe; Switzerland = Europe; Egypt = Africa; Kenya = Africa; Nigeria = Africa;
Morocco = Africa; Ethiopia = Africa; Ghana = Africa; Japan = Asia; China = Asia; India = Asia; South Korea = Asia;
Thailand = Asia; Vietnam = Asia; Nepal = Asia; Iran = Asia; Iraq = Asia; Canada = North America; Mexico = North America;
Cuba = North America; Brazil = South America; Argentina = South America; Chile = South America; Peru = South America;
Colombia = South America
""")

LANGUAGES = _table("""
France = French; Germany = German; Italy = Italian; Spain = Spanish; Portugal = Portuguese; Greece = Greek;
Poland = Polish; Hungary = Hungarian; Norway = Norwegian; Sweden = Swedish; Denmark = Danish; Finland = Finnish;
Russia = Russian; Turkey = Turkish; Japan = Japanese; China = Chinese; Vietnam = Vietnamese; Thailand = Thai;
Brazil = Portuguese; Mexico = Spanish; Egypt = Arabic; Austria = German; Argentina = Spanish; Iran = Persian
""")

SYMBOLS = _table("""
hydrogen = H; helium = He; lithium = Li; carbon = C; nitrogen = N; oxygen = O; fluorine = F; neon = Ne; sodium = Na;
magnesium = Mg; aluminium = Al; silicon = Si; phosphorus = P; sulfur = S; chlorine = Cl; argon = Ar; potassium = K;
calcium = Ca; titanium = Ti; iron = Fe; nickel = Ni; copper = Cu; zinc = Zn; silver = Ag; tin = Sn; iodine = I;
gold = Au; mercury = Hg; lead = Pb; uranium = U
""")

YOUNG = _table("""
cat = kitten; dog = puppy; cow = calf; horse = foal; sheep = lamb; pig = piglet; goat = kid; hen = chick;
duck = duckling; goose = gosling; bear = cub; deer = fawn; frog = tadpole; kangaroo = joey; swan = cygnet;
owl = owlet; eagle = eaglet
""")

SOUNDS = _table("""
dog = barks; cat = meows; cow = moos; sheep = bleats; horse = neighs; pig = oinks; duck = quacks; lion = roars;
wolf = howls; bee = buzzes; snake = hisses; frog = croaks; owl = hoots; mouse = squeaks; crow = caws
""")

LEGS = _table("""
dog = four; cat = four; horse = four; cow = four; hen = two; duck = two; spider = eight; ant = six; bee = six;
beetle = six; snake = no; fish = no; crab = ten; octopus = no; owl = two; sheep = four
""")

OPPOSITES = _table("""
hot = cold; big = small; tall = short; fast = slow; early = late; old = young; rich = poor; full = empty; light = dark;
happy = sad; wet = dry; hard = soft; strong = weak; open = closed; clean = dirty; loud = quiet; deep = shallow;
wide = narrow; thick = thin; heavy = light; right = wrong; true = false; first = last; up = down; left = right;
inside = outside; day = night; summer = winter; begin = end; push = pull; win = lose; buy = sell; love = hate;
remember = forget; north = south; east = west; always = never; above = below; near = far; easy = difficult
""")

PAST = _table("""
go = went; see = saw; eat = ate; drink = drank; run = ran; sing = sang; write = wrote; read = read; take = took;
give = gave; come = came; buy = bought; bring = brought; think = thought; teach = taught; catch = caught; sleep = slept;
keep = kept; leave = left; feel = felt; find = found; build = built; send = sent; speak = spoke; break = broke;
fly = flew; grow = grew; know = knew; swim = swam; begin = began; drive = drove; ride = rode; rise = rose; fall = fell
""")

PLURALS = _table("""
man = men; woman = women; child = children; tooth = teeth; foot = feet; mouse = mice; goose = geese; person = people;
leaf = leaves; knife = knives; wolf = wolves; city = cities; baby = babies; box = boxes; bus = buses; sheep = sheep;
fish = fish; life = lives; half = halves; story = stories; potato = potatoes; tomato = tomatoes
""")

COLOURS = _table("""
the sky = blue; grass = green; snow = white; blood = red; a lemon = yellow; coal = black; an orange = orange;
a ripe banana = yellow; milk = white; a strawberry = red; chocolate = brown; an emerald = green; a ruby = red;
a sapphire = blue; a flamingo = pink; a crow = black; a violet = purple; an elephant = grey
""")

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)

AUTHORS = _table("""
Hamlet = William Shakespeare; Macbeth = William Shakespeare; Faust = Johann Wolfgang von Goethe;
Don Quixote = Miguel de Cervantes; War and Peace = Leo Tolstoy; Oliver Twist = Charles Dickens;
Pride and Prejudice = Jane Austen; Moby Dick = Herman Melville; Frankenstein = Mary Shelley; Dracula = Bram Stoker;
The Odyssey = Homer; The Divine Comedy = Dante; Robinson Crusoe = Daniel Defoe; Treasure Island = Robert Louis Stevenson
""")

CURRENCIES = _table("""
Japan = yen; China = yuan; India = rupee; Russia = rouble; the United Kingdom = pound; the United States = dollar;
France = euro; Germany = euro; Italy = euro; Spain = euro; Switzerland = franc; Mexico = peso; Poland = zloty;
Sweden = krona; Brazil = real; Turkey = lira; South Korea = won; Thailand = baht
""")

COUNTS = _table("""
days are in a week = 7; months are in a year = 12; hours are in a day = 24; minutes are in an hour = 60;
seconds are in a minute = 60; sides does a triangle have = 3; sides does a square have = 4;
sides does a hexagon have = 6; players are in a football team = 11; strings does a violin have = 4;
letters are in the English alphabet = 26; planets are in the solar system = 8; continents are there = 7;
wheels does a bicycle have = 2; centimetres are in a metre = 100; metres are in a kilometre = 1000;
grams are in a kilogram = 1000; years are in a century = 100; cents are in a dollar = 100
""")
