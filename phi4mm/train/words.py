"""What the recipe lets synthetic voices say, in lower-case words: digits, numbers and sequences of them; and short
sentences in the manner of AN4: spelled names, codes, dates, commands."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OH = "oh"
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGE = ("hundred", "thousand")
NUMBER_WORDS = (*DIGITS, OH, *TEENS, *TENS, *LARGE)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
    "twentieth", "thirtieth",
)  # fmt: skip
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
COMMANDS = ("yes", "no", "start", "stop", "go", "help", "repeat", "erase", "rubout", "enter")
CODE_COMMANDS = ("enter", "erase", "rubout", "repeat", "area code")
SPOKEN = (*NUMBER_WORDS, *ORDINALS, *MONTHS, *COMMANDS, "area", "code", *ascii_lowercase)  # what ``sentence`` holds
# Relative, of English names; the rest of the alphabet has 2 so that it is heard as well.
LETTER_WEIGHTS = {"e": 9, "a": 8, "n": 7, "r": 7, "i": 7, "l": 6, "o": 6, "s": 6, "t": 6, "h": 5, "m": 4, "d": 4}

MAX_SEQUENCE = 8


def digit_sequence(random: Random, *, low: int = 2, high: int = MAX_SEQUENCE) -> list[str]:
    """``low`` to ``high`` digits, as in a telephone number; zero is now and then "oh", and digits often repeat."""
    words: list[str] = []
    for _ in range(random.randint(low, high)):
        if words and random.random() < 0.1:
            words.append(words[-1])
        else:
            digit = random.choice(DIGITS)
            words.append(OH if digit == "zero" and random.random() < 0.3 else digit)
    return words


def number(random: Random) -> list[str]:
    """A number from ten to some thousands, as it is read."""
    kind = random.random()
    if kind < 0.3:
        return [random.choice(TEENS)]
    tens = [random.choice(TENS)]
    if random.random() < 0.7:
        tens.append(random.choice(DIGITS[1:]))
    if kind < 0.8:
        return tens
    return [random.choice(DIGITS[1:]), random.choice(LARGE), *tens]


def letters(random: Random, *, low: int = 1, high: int = 8) -> list[str]:
    """A spelled word; letters double as often as in English."""
    weights = [LETTER_WEIGHTS.get(letter, 2) for letter in ascii_lowercase]
    spelled = random.choices(ascii_lowercase, weights, k=random.randint(low, high))
    if len(spelled) > 2 and random.random() < 0.25:
        at = random.randrange(1, len(spelled))
        spelled[at] = spelled[at - 1]
    return spelled


def date(random: Random) -> list[str]:
    """Month, day and most often a year: "june twenty first nineteen sixty two"."""
    day = [random.choice(ORDINALS)] if random.random() < 0.6 else ["twenty", random.choice(ORDINALS[:9])]
    year = [random.choice(("nineteen", "eighteen")), random.choice(TENS)] if random.random() < 0.7 else []
    if year and random.random() < 0.7:
        year.append(random.choice(DIGITS[1:]))
    return [random.choice(MONTHS), *day, *year]


def sentence(random: Random) -> list[str]:
    """A spelling, code, date or command."""
    kind = random.random()
    if kind < 0.45:
        return letters(random, low=2, high=10)
    if kind < 0.7:
        command = random.choice(CODE_COMMANDS).split() if random.random() < 0.7 else []
        spelled = letters(random, low=1, high=5) if random.random() < 0.7 else []
        return [*command, *spelled, *(number(random) if random.random() < 0.5 else digit_sequence(random, high=4))]
    if kind < 0.9:
        return date(random)
    return [random.choice(COMMANDS)]


def numbers_script(random: Random, *, singles: int, sequences: int, numbers: int) -> list[list[str]]:
    """Numbers for one voice to speak: every digit ``singles`` times, then sequences, then numbers."""
    utterances = [[word] for _ in range(singles) for word in (*DIGITS, OH)]
    utterances += [digit_sequence(random) for _ in range(sequences)]
    utterances += [number(random) for _ in range(numbers)]
    return utterances


def as_written(words: list[str]) -> str:
    """For a voice to read: single letters as their names, not as words."""
    return " ".join("ay" if word == "a" else word.upper() if len(word) == 1 else word for word in words)
