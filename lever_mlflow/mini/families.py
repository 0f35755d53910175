"""Lists the question families of the embedded data set: what is asked about a handwritten digit, and the true answers.

A family asks one question about a digit that takes outside knowledge, in three phrasings. The third phrasing shares no content
word with the first, so that the overlap of words does not show that both ask the same.

Twenty-two families train the tiny VLM. Twelve of them (``weight > 0``) make up the data set. They are so few that a random pool
of 64 holds a demonstration of the same family and digit for at least half of the queries.

A family's ``known`` are the digits for which the tiny VLM learns the true answer. For any other digit it can only copy the
answer from a demonstration of the same family and digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["FAMILIES", "Family", "dataset_families"]


@dataclass(frozen=True)
class Family:
    """Describes one kind of question about a digit.

    Attributes:
        name: short identifier, also the OK-VQA ``question_type`` label.
        phrasings: three wordings of the same question.
        answers: digit -> true answer, for each digit for which the question makes sense.
        known: digits whose answer the tiny VLM is taught.
        weight: relative frequency in the data set; 0 where the family only trains the tiny models.
    """

    name: str
    phrasings: tuple[str, str, str]
    answers: dict[int, str]
    known: frozenset[int]
    weight: float


def _family(
    name: str,
    phrasings: tuple[str, str, str],
    answers: str,
    *,
    start: int = 1,
    known: Iterable[int] = (),
    weight: float = 0.0,
) -> Family:
    table = dict(enumerate(answers.split(), start=start))
    return Family(name, phrasings, table, frozenset(known), weight)


FAMILIES: tuple[Family, ...] = (
    _family(
        "planet",
        (
            "which planet is at this position from the sun?",
            "name the planet with this number, counted from the sun outwards.",
            "what world would an astronomer give this rank in our solar system?",
        ),
        "mercury venus earth mars jupiter saturn uranus neptune",
        known=range(1, 9),
        weight=5,
    ),
    _family(
        "weekday",
        (
            "which day of the week has this number?",
            "what day of the week is it when this many have begun?",
            "name the entry in this column of a calendar page that opens with monday.",
        ),
        "monday tuesday wednesday thursday friday saturday sunday",
        known=range(1, 8),
        weight=3,
    ),
    _family(
        "polygon",
        (
            "what do you call a polygon with this many sides?",
            "name the polygon that has this number of sides.",
            "which flat shape is bounded by so many straight edges?",
        ),
        "triangle square pentagon hexagon heptagon octagon nonagon",
        start=3,
        known=range(3, 10),
        weight=3,
    ),
    _family(
        "month",
        (
            "which month of the year has this number?",
            "what month of the year is written like this in a short date?",
            "counting from january, where in the calendar are we?",
        ),
        "january february march april may june july august september",
        known=(1, 2, 3, 5, 6, 7, 9),
        weight=1,
    ),
    _family(
        "music_group",
        (
            "what do you call a music group with this many players?",
            "name a group of this many players of music.",
            "which word describes an ensemble when so many musicians perform together?",
        ),
        "duo trio quartet quintet sextet septet octet nonet",
        start=2,
        known=(2, 3, 4),
        weight=1,
    ),
    _family(
        "german",
        (
            "how do you say this number in german?",
            "what is the german word for this number?",
            "someone from berlin counts aloud: which term do you hear?",
        ),
        "null eins zwei drei vier fuenf sechs sieben acht neun",
        start=0,
        weight=4,
    ),
    _family(
        "element",
        (
            "which chemical element has this atomic number?",
            "name the chemical element with so many protons, its atomic number.",
            "what substance fills this box of the periodic table?",
        ),
        "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine",
        weight=5,
    ),
    _family(
        "roman",
        (
            "how is this number written as a roman numeral?",
            "what is the roman numeral for this number?",
            "which letters would caesar have carved for it?",
        ),
        "i ii iii iv v vi vii viii ix",
        weight=1,
    ),
    _family(
        "zodiac",
        (
            "which sign of the zodiac is at this place in the order?",
            "name the zodiac sign with this place, when aries comes first.",
            "what constellation do horoscopes list here?",
        ),
        "aries taurus gemini cancer leo virgo libra scorpio sagittarius",
        weight=5,
    ),
    _family(
        "birthstone",
        (
            "which gem is the birthstone of the month with this number?",
            "name the birthstone for a birth in the month with this number.",
            "what jewel brings luck to people born so far into the year?",
        ),
        "garnet amethyst aquamarine diamond emerald pearl ruby peridot sapphire",
        weight=1,
    ),
    _family(
        "rainbow",
        (
            "which colour of the rainbow has this place, counted from the outside?",
            "name the rainbow colour at this place.",
            "what hue stands here when a prism splits light?",
        ),
        "red orange yellow green blue indigo violet",
        weight=3,
    ),
    _family(
        "solfa",
        (
            "which note of the scale is at this step when singing?",
            "name the note that singers use for this step of the scale.",
            "what syllable does a choir practise for this degree, beginning with do?",
        ),
        "do re mi fa sol la ti",
        weight=1,
    ),
    _family(
        "english",
        (
            "what is the english word for this number?",
            "how do you spell this number in english?",
            "write the digit out in letters.",
        ),
        "zero one two three four five six seven eight nine",
        start=0,
        known=range(10),
    ),
    _family(
        "french",
        (
            "how do you say this number in french?",
            "what is the french word for this number?",
            "someone from paris counts aloud: which term do you hear?",
        ),
        "zéro un deux trois quatre cinq six sept huit neuf",
        start=0,
        known=range(10),
    ),
    _family(
        "spanish",
        (
            "how do you say this number in spanish?",
            "what is the spanish word for this number?",
            "someone from madrid counts aloud: which term do you hear?",
        ),
        "cero uno dos tres cuatro cinco seis siete ocho nueve",
        start=0,
        known=range(10),
    ),
    _family(
        "ordinal",
        (
            "what is the ordinal form of this number?",
            "which ordinal belongs to this number?",
            "in a race, what place is that?",
        ),
        "first second third fourth fifth sixth seventh eighth ninth",
        known=range(1, 10),
    ),
    _family(
        "italian",
        (
            "how do you say this number in italian?",
            "what is the italian word for this number?",
            "someone from rome counts aloud: which term do you hear?",
        ),
        "nulla uno due tre quattro cinque sei sette otto nove",
        start=0,
    ),
    _family(
        "nato",
        (
            "which nato word stands for the letter at this place in the alphabet?",
            "name the nato word of the letter with this number.",
            "how would a pilot spell that position over the radio?",
        ),
        "alpha bravo charlie delta echo foxtrot golf hotel india",
    ),
    _family(
        "greek",
        (
            "which greek letter is at this place in the alphabet?",
            "name the greek letter with this number.",
            "what symbol would homer write as entry number so and so?",
        ),
        "alpha beta gamma delta epsilon zeta eta theta iota",
    ),
    _family(
        "chinese_year",
        (
            "which animal has this place in the chinese years?",
            "name the animal of the chinese year with this number.",
            "what creature finished here in the great race of the jade emperor?",
        ),
        "rat ox tiger rabbit dragon snake horse goat monkey",
    ),
    _family(
        "president",
        (
            "who was the president of the united states with this number?",
            "name the united states president with this number.",
            "what statesman held the highest office in washington so early in history?",
        ),
        "washington adams jefferson madison monroe quincy jackson buren harrison",
    ),
    _family(
        "resistor",
        (
            "which colour codes this digit on a resistor?",
            "name the resistor band colour for this digit.",
            "what paint marks that value on an electronic part?",
        ),
        "black brown red orange yellow green blue violet grey white",
        start=0,
    ),
)


def dataset_families() -> tuple[Family, ...]:
    """Returns the families that the embedded data set asks about, in a fixed order."""
    return tuple(family for family in FAMILIES if family.weight > 0)
