"""The names that features are measured under in profiles: made and read here alone.

    name    = output [ "@" version ] | field [ counted | share ]
    output  = "score" | "prediction" | "entropy"
    version = a whole number
    field   = a declared field's name, without dot and without @
    counted = ".words" | ".tokens" | ".unknown" | ".projection1" to ".projection8", of a text
            | ".hour" | ".weekday" | ".month" | ".age", of a moment
            | ".length" | ".component1" to ".component8", of a vector
    share   = ".missing" | ".other", of a field that declares it

A day's profile holds an output once per champion, ``score@3``. A champion's reference holds it without its version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCORE = "score"
"""The model's output as a feature."""
PREDICTION = "prediction"
"""The likeliest class as a category, where a case has classes."""
ENTROPY = "entropy"
"""How undecided the model was, in nats; shown only."""
OUTPUTS = (SCORE, PREDICTION)
"""What comes out of the model; all other features go in."""
BY_VERSION = (*OUTPUTS, ENTROPY)
"""What a day's profile holds once per champion."""
WORDS = ".words"
"""How many words a text has, a number."""
TOKENS = ".tokens"
"""The words of a text as a category.

One value per *word*, not per row, and one bin for words that are not in the vocabulary.
"""
UNKNOWN = ".unknown"
"""The share of a text's words that are not in the vocabulary, 0 to 1, a number."""
PROJECTIONS = tuple(f".projection{number}" for number in range(1, 9))
"""Numbers of a text: its hashed words on fixed random directions."""
COUNTED = (WORDS, TOKENS, UNKNOWN, *PROJECTIONS)
"""What is measured of a text."""
PARTS = (".hour", ".weekday", ".month", ".age")
"""What a moment is read as."""
SUMMARIES = (".length", *(f".component{number}" for number in range(1, 9)))
"""Numbers of a vector: its length, and its direction's components along fixed ones."""
MISSING = ".missing"
"""Whether a row has no value of the field, a category of two: its share is what is watched."""
OTHER = ".other"
"""Whether a value is outside of the vocabulary, a category of two."""
SHARES = (MISSING, OTHER)
"""What is measured of a field that declares ``missing`` or ``other``."""
_NAME = re.compile(
    rf"(?P<output>{'|'.join(BY_VERSION)})(?:@(?P<version>0|[1-9][0-9]*))?"
    rf"|(?P<field>.+?)(?P<counted>{'|'.join(map(re.escape, (*COUNTED, *PARTS, *SUMMARIES, *SHARES)))})?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Feature:
    """What a name says: the field or output ``of`` which something is measured, and ``counted`` of a field what.

    ``version`` is that of the champion that gave an output.
    """

    of: str
    counted: str = ""
    version: int | None = None

    def __str__(self) -> str:
        name = self.of + self.counted
        if self.version is None:
            return name
        return f"{name}@{self.version}"


def read(name: str) -> Feature:
    """What ``name`` says; ``str`` of it is ``name`` again. Of another form, it is a field's as a whole.

    >>> read("score@3"), read("text.tokens")
    (Feature(of='score', counted='', version=3), Feature(of='text', counted='.tokens', version=None))
    >>> read("age@3").of, read("score@new").of
    ('age@3', 'score@new')
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return Feature(name)
    version = found["version"]
    return Feature(
        of=found["output"] or found["field"],
        counted=found["counted"] or "",
        version=None if version is None else int(version),
    )


def words(text: str) -> str:
    """The number of words of the field ``text``."""
    return text + WORDS


def tokens(text: str) -> str:
    """The words themselves."""
    return text + TOKENS


def unknown(text: str) -> str:
    """The share of words that are not in the vocabulary."""
    return text + UNKNOWN


def projections(text: str) -> tuple[str, ...]:
    """The projections, in their order.

    >>> projections("text")[0]
    'text.projection1'
    """
    return tuple(text + projection for projection in PROJECTIONS)


def moment_part(moment: str, part: str) -> str:
    """A ``part`` of the field ``moment``.

    >>> moment_part("due", "hour")
    'due.hour'
    """
    return f"{moment}.{part}"


def vector_summaries(vector: str) -> tuple[str, ...]:
    """What is counted of the field ``vector``, in order.

    >>> vector_summaries("face")[:2]
    ('face.length', 'face.component1')
    """
    return tuple(vector + summary for summary in SUMMARIES)


def missing_share(field: str) -> str:
    """Whether the field is missing."""
    return field + MISSING


def other_share(field: str) -> str:
    """Whether the field's value is outside of its vocabulary."""
    return field + OTHER


def in_words(name: str) -> str:
    """The feature as a sentence names it.

    >>> in_words("gust.missing"), in_words("carrier.other"), in_words("age")
    ('missing values of gust', 'undeclared values of carrier', 'age')
    """
    feature = read(name)
    told = {MISSING: "missing values of", OTHER: "undeclared values of"}.get(feature.counted)
    return name if told is None else f"{told} {feature.of}"


def served(name: str, version: int | None) -> str:
    """The name in a day's profile of what a reference calls ``name``; with no version it stays as it is.

    >>> served("score", 3), served("age", 3)
    ('score@3', 'age')
    """
    if name not in BY_VERSION:
        return name
    return str(Feature(name, version=version))


def is_output(name: str) -> bool:
    """Whether the model gave it, with or without its version."""
    return read(name).of in BY_VERSION


def is_vocabulary(name: str) -> bool:
    """Whether it is a text's words as a category."""
    return read(name).counted == TOKENS


def is_share(name: str) -> bool:
    """Whether it says of each row if a value is missing, or outside of the vocabulary."""
    return read(name).counted in SHARES


def is_projection(name: str) -> bool:
    """Whether it is a number of a text's hashed words."""
    return read(name).counted in PROJECTIONS


def shown_only(name: str) -> bool:
    """Whether it is measured for people and takes no part in any test.

    ``name`` with or without its version.

    >>> shown_only("entropy@3"), shown_only("text.tokens"), shown_only("score@3")
    (True, True, False)
    """
    feature = read(name)
    return feature.of == ENTROPY or feature.counted in (TOKENS, UNKNOWN, *PROJECTIONS)
