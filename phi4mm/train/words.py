"""What the recipe lets people and synthetic voices say: digits, numbers and sequences of them, in lower-case words."""

from __future__ import annotations

from random import Random

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OH = "oh"
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGE = ("hundred", "thousand")
NUMBER_WORDS = (*DIGITS, OH, *TEENS, *TENS, *LARGE)

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


def script(random: Random, *, singles: int, sequences: int, numbers: int) -> list[list[str]]:
    """The utterances that one voice speaks: every digit ``singles`` times, then sequences, then numbers."""
    utterances = [[word] for _ in range(singles) for word in (*DIGITS, OH)]
    utterances += [digit_sequence(random) for _ in range(sequences)]
    utterances += [number(random) for _ in range(numbers)]
    return utterances
