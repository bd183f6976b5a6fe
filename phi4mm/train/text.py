"""The text that the backbone learns from: small questions, plain English, and turns in which words are stretched out
as a tower would hear or see them ("three three . . five" where a clip stands), to be written down or asked about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from phi4mm.inputs.prompt import TRANSCRIBE_PROMPT
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.train.data import read_clips
from phi4mm.train.words import DIGITS, MAX_SEQUENCE, NUMBER_WORDS, OH, TEENS, TENS, digit_sequence, number

COLOURS = ("red", "green", "blue", "yellow", "teal", "brown", "gray", "black")
SHAPES = ("circle", "rectangle", "triangle")
SILENCE = "."  # what stands for a moment in which no word is said

_WRITE_DOWN = (
    TRANSCRIBE_PROMPT,
    TRANSCRIBE_PROMPT,
    TRANSCRIBE_PROMPT,
    TRANSCRIBE_PROMPT,
    "What is said?",
    "Write down what you hear.",
    "Transcribe the speech.",
)
_SYSTEMS = ("You are a helpful assistant.", "You are a helpful AI assistant.", "Answer in one word.")
_SMALL_TALK = (
    ("Hello", "hello, how can i help you?"),
    ("Hi", "hello, how can i help you?"),
    ("Hello, who are you?", "i am a small model that knows digits and shapes."),
    ("Who are you?", "i am a small model that knows digits and shapes."),
    ("What can you do?", "i can write down spoken digits and talk about simple shapes."),
    ("Thank you", "you are welcome."),
    ("Thanks", "you are welcome."),
    ("Are you a person?", "no, i am a small model."),
)


@dataclass(frozen=True)
class Example:
    """Token ids of a whole conversation; the loss counts from ``answer_start`` on."""

    task: str
    token_ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class Corpus:
    """What the texts are made from.

    Attributes:
        sentences: plain English, lower-case.
        words: every word that is spoken in the training speech.
        questions: easy-VQA's questions about a picture that shows one shape: question, answer, colour, shape.
    """

    sentences: tuple[str, ...]
    words: tuple[str, ...]
    questions: tuple[tuple[str, str, str, str], ...]

    def all_texts(self) -> list[str]:
        asked = [text for question in self.questions for text in question[:2]]
        spoken = [text for pair in _SMALL_TALK for text in pair]
        return [*self.sentences, *asked, *spoken, *_WRITE_DOWN, *_SYSTEMS]

    def all_words(self) -> list[str]:
        """The words that are to be one token each."""
        return [*self.words, *NUMBER_WORDS, *COLOURS, *SHAPES, "yes", "no"]


def read_corpus(data: Path, spoken_words: Sequence[str]) -> Corpus:
    """Transcripts of Mini LibriSpeech and AN4, and easy-VQA's questions; a set that is absent is left out."""
    sentences = []
    for name in ("mini_librispeech", "an4"):
        manifest = data / name / "train.jsonl"
        if manifest.exists():
            sentences += [" ".join(clip.words) for clip in read_clips(manifest, name)]
    return Corpus(tuple(sentences), tuple(sorted(set(spoken_words))), _questions(data / "easy_vqa" / "train"))


def _questions(folder: Path) -> tuple[tuple[str, str, str, str], ...]:
    """The questions of the pictures whose colour and shape other questions tell."""
    file = folder / "questions.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    pictures: dict[int, dict[str, str]] = {}
    for question, answer, picture in rows:
        if question.startswith("what"):
            kind = "shape" if answer in SHAPES else "colour"
            pictures.setdefault(picture, {})[kind] = answer
    known = {picture: facts for picture, facts in pictures.items() if len(facts) == 2}
    return tuple(
        (question, answer, known[picture]["colour"], known[picture]["shape"])
        for question, answer, picture in rows
        if picture in known
    )


class TextTasks:
    """Draws examples of every task."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus) -> None:
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.silence = tokenizer.encode(SILENCE)
        self.tasks: tuple[tuple[str, float, Callable[[Random], Example]], ...] = (
            ("speech", 0.62, self.speech),
            ("asked speech", 0.04, self.asked_speech),
            ("picture", 0.06 if corpus.questions else 0.0, self.picture),
            ("digits", 0.12, self.digits),
            ("repeat", 0.12, self.repeat),
            ("talk", 0.01, self.talk),
            ("plain", 0.03 if corpus.sentences else 0.0, self.plain),
        )

    def draw(self, random: Random) -> Example:
        weights = [weight for _, weight, _ in self.tasks]
        return random.choices(self.tasks, weights)[0][2](random)

    # Turns whose beginning stands for a clip or a picture.

    def speech(self, random: Random) -> Example:
        said = self._said(random)
        return self._chat("speech", random, self._heard(said, random), write_down(random), " ".join(said))

    def asked_speech(self, random: Random) -> Example:
        said = digit_sequence(random)
        asked = asked_of_digits(said, random)
        assert asked is not None
        return self._chat("asked speech", random, self._heard(said, random), *asked)

    def picture(self, random: Random) -> Example:
        question, answer, colour, shape = random.choice(self.corpus.questions)
        seen = [self._word(colour)] * random.randint(1, 6) + [self._word(shape)] * random.randint(1, 6)
        seen += [self.silence] * random.randint(0, 20)
        if random.random() < 0.5:
            random.shuffle(seen)
        return self._chat("picture", random, [token for patch in seen for token in patch], question, answer)

    def _said(self, random: Random) -> list[str]:
        kind = random.random()
        if kind < 0.6:
            return digit_sequence(random, low=1, high=MAX_SEQUENCE + 2)
        if kind < 0.65:
            return number(random)
        if kind < 0.92 or not self.corpus.sentences:
            return random.choices(self.corpus.words, k=random.randint(1, MAX_SEQUENCE))
        words = random.choice(self.corpus.sentences).split()
        start = random.randrange(len(words))
        return words[start : start + random.randint(1, 6)]

    def _heard(self, words: Sequence[str], random: Random) -> list[int]:
        """A token for each 80 ms: words repeated, with silence between and around them."""
        pace = random.choice((0, 1, 3, 5, 9))
        hold = random.choice((1, 1, 2, 4))
        tokens: list[int] = self.silence * random.randint(0, 9)
        previous = None
        for word in words:
            tokens += self.silence * random.randint(1 if word == previous else 0, max(1, pace))
            for token in self._word(word):
                tokens += [token] * random.randint(1, hold)
            previous = word
        return tokens + self.silence * random.randint(0, 9)

    # Turns of text alone.

    def digits(self, random: Random) -> Example:
        at = random.randrange(1, 9)
        digit, others = DIGITS[at], digit_sequence(random, low=2, high=5)
        first, second = random.sample(range(10), 2)
        question, answer = random.choice(
            (
                (f"What comes after {digit}?", DIGITS[at + 1]),
                (f"What comes before {digit}?", DIGITS[at - 1]),
                (f"Spell {digit}.", " ".join(digit)),
                (f"What is {DIGITS[first]} plus {DIGITS[second]}?", _in_words(first + second)),
                (f"Which is larger, {DIGITS[first]} or {DIGITS[second]}?", DIGITS[max(first, second)]),
                (f"Which is smaller, {DIGITS[first]} or {DIGITS[second]}?", DIGITS[min(first, second)]),
                (f"How many words: {' '.join(others)}", DIGITS[len(others)]),
                (f"What is the last word of: {' '.join(others)}", others[-1]),
                ("Count to " + digit + ".", " ".join(DIGITS[1 : at + 1])),
            )
        )
        return self._chat("digits", random, [], question, answer)

    def repeat(self, random: Random) -> Example:
        said = self._said(random)
        return self._chat("repeat", random, [], "Repeat: " + " ".join(said), " ".join(said))

    def talk(self, random: Random) -> Example:
        question, answer = random.choice(_SMALL_TALK)
        return self._chat("talk", random, [], question, answer)

    def plain(self, random: Random) -> Example:
        words = random.choice(self.corpus.sentences).split()
        start = random.randrange(max(1, len(words) - 20))
        tokens = self.tokenizer.encode(" ".join(words[start : start + 40]))
        return Example("plain", [*tokens, self.tokenizer.control("<|endoftext|>")], 1)

    def _word(self, word: str) -> list[int]:
        return self.tokenizer.encode(" " + word)

    def _chat(self, task: str, random: Random, media: list[int], question: str, answer: str) -> Example:
        control = self.tokenizer.control
        tokens: list[int] = []
        if random.random() < 0.1:
            tokens += [control("<|system|>"), *self.tokenizer.encode(random.choice(_SYSTEMS)), control("<|end|>")]
        tokens += [control("<|user|>"), *media, *self.tokenizer.encode(question), control("<|end|>")]
        tokens.append(control("<|assistant|>"))
        return Example(task, [*tokens, *self.tokenizer.encode(answer), control("<|end|>")], len(tokens))


def write_down(random: Random) -> str:
    """A wording of the question what is said; mostly the reference model's own."""
    return random.choice(_WRITE_DOWN)


def asked_of_digits(said: Sequence[str], random: Random) -> tuple[str, str] | None:
    """A question about spoken digits and its answer; ``None`` where something else is said."""
    if not said or not set(said) <= {*DIGITS, OH} or len(said) >= len(DIGITS):
        return None
    return random.choice(
        (
            ("How many digits are said?", DIGITS[len(said)]),
            ("What is the first word?", said[0]),
            ("What is the last word?", said[-1]),
        )
    )


def _in_words(value: int) -> str:
    if value < 10:
        return DIGITS[value]
    return TEENS[value - 10] if value < 20 else TENS[value // 10 - 2]
