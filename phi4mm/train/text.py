"""The text that the decoder is trained on: small questions, plain English, and turns in which words are repeated as in
the embeddings of a tower ("three three . . five" in place of a clip), to be transcribed or asked about.

Questions of other domains, in text alone, have the answer ``BEYOND``; there are none about media.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase

from phi4mm.inputs.prompt import TRANSCRIBE_PROMPT
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.train.data import read_clips
from phi4mm.train.words import (
    DIGITS,
    MAX_SEQUENCE,
    MONTHS,
    NUMBER_WORDS,
    OH,
    ORDINALS,
    TEENS,
    TENS,
    digit_sequence,
    number,
    sentence,
)

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
COUNT_QUESTIONS = tuple(f"how many {things} are there?" for things in ("shapes", *(f"{shape}s" for shape in SHAPES)))
READ_QUESTIONS = ("what is written?", "what does it say?", "what is the word?", "what is the number?")
_SYSTEMS = ("You are a helpful assistant.", "You are a helpful AI assistant.", "Answer in one word.")
WHO = "i am a small model that knows letters, numbers and shapes."
BEYOND = "i do not know that. ask me about letters, numbers or shapes."
_BEYOND = (
    "Who was {0}?",
    "Who is {0} {1}?",
    "What is the capital of {0}?",
    "What is a {0}?",
    "What does {0} mean?",
    "What is the meaning of {0} {1}?",
    "Tell me about {0}.",
    "Tell me a story about the {0}.",
    "Tell me a joke.",
    "Write a poem about {0} and {1}.",
    "Write a letter to {0}.",
    "How do I {0} a {1}?",
    "How far is {0} from {1}?",
    "How old is {0}?",
    "Why is the {0} so {1}?",
    "Why do {0} {1}?",
    "When was {0} born?",
    "When did {0} {1}?",
    "Where is {0}?",
    "Where can I buy a {0}?",
    "Which {0} is the best?",
    "Translate {0} {1} to German.",
    "Explain {0} to me.",
    "Summarize {0} {1} {2}.",
    "What is the weather today?",
    "What time is it?",
    "What should I do about my {0}?",
    "Can you {0} the {1}?",
    "Do you like {0}?",
    "{0} {1} {2}?",
)
_SMALL_TALK = (
    ("Hello", "hello, how can i help you?"),
    ("Hi", "hello, how can i help you?"),
    ("Hello, who are you?", WHO),
    ("Who are you?", WHO),
    ("What are you?", WHO),
    ("What is your name?", WHO),
    ("What can you do?", "i can write down spoken letters and numbers and answer questions about simple shapes."),
    ("What do you know?", "i can write down spoken letters and numbers and answer questions about simple shapes."),
    ("Help", "i can write down spoken letters and numbers and answer questions about simple shapes."),
    ("Good morning", "hello, how can i help you?"),
    ("How are you?", "i am well, thank you."),
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
        return [*self.sentences, *asked, *spoken, *_WRITE_DOWN, *_SYSTEMS, *_BEYOND, *[BEYOND] * 100]

    def all_words(self) -> list[str]:
        """The words that are to be one token each."""
        plural = [f"{shape}s" for shape in SHAPES]
        return [*self.words, *NUMBER_WORDS, *COLOURS, *SHAPES, *plural, "yes", "no"]


def read_corpus(data: Path, spoken_words: Sequence[str]) -> Corpus:
    """Transcripts of Mini LibriSpeech, and easy-VQA's questions; a set that is absent is left out."""
    manifest = data / "mini_librispeech" / "train.jsonl"
    sentences = [" ".join(clip.words) for clip in read_clips(manifest, "mini_librispeech")] if manifest.exists() else []
    return Corpus(tuple(sentences), tuple(sorted(set(spoken_words))), _questions(data / "easy_vqa" / "train"))


def easy_vqa_questions(data: Path) -> list[str]:
    """The distinct wordings of easy-VQA's questions."""
    return sorted({question for question, *_ in _questions(data / "easy_vqa" / "train")})


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
        pictures = bool(corpus.questions)
        self.tasks: tuple[tuple[str, float, Callable[[Random], Example]], ...] = (
            ("speech", 0.48, self.speech),
            ("asked speech", 0.03, self.asked_speech),
            ("picture", 0.10 if pictures else 0.0, self.picture),
            ("spoken question", 0.08 if pictures else 0.0, self.spoken_question),
            ("count", 0.05, self.count),
            ("read", 0.03, self.read),
            ("digits", 0.08, self.digits),
            ("repeat", 0.07, self.repeat),
            ("talk", 0.02, self.talk),
            ("beyond", 0.04 if corpus.sentences else 0.0, self.beyond),
            ("plain", 0.02 if corpus.sentences else 0.0, self.plain),
        )

    def draw(self, random: Random) -> Example:
        weights = [weight for _, weight, _ in self.tasks]
        return random.choices(self.tasks, weights)[0][2](random)

    # Turns whose beginning stands for a clip or a picture.

    def speech(self, random: Random) -> Example:
        said = self._said(random)
        return self._chat("speech", random, self.heard(said, random), write_down(random), " ".join(said))

    def asked_speech(self, random: Random) -> Example:
        said = digit_sequence(random)
        asked = asked_of_digits(said, random)
        assert asked is not None
        return self._chat("asked speech", random, self.heard(said, random), *asked)

    def picture(self, random: Random) -> Example:
        question, answer, colour, shape = random.choice(self.corpus.questions)
        seen = self._seen([(colour, shape)], random)
        return self._chat("picture", random, seen, capitalised(question, random), answer)

    def spoken_question(self, random: Random) -> Example:
        """A picture and, instead of text, a question that is heard."""
        question, answer, colour, shape = random.choice(self.corpus.questions)
        media = [*self._seen([(colour, shape)], random), *self.heard(question.rstrip("?").split(), random)]
        return self._chat("spoken question", random, media, "", answer)

    def count(self, random: Random) -> Example:
        objects = [(random.choice(COLOURS), random.choice(SHAPES)) for _ in range(random.randint(1, 6))]
        shape = random.choice(SHAPES)
        question, number = random.choice(
            (
                ("how many shapes are there?", len(objects)),
                (f"how many {shape}s are there?", sum(seen == shape for _, seen in objects)),
            )
        )
        return self._chat("count", random, self._seen(objects, random), capitalised(question, random), DIGITS[number])

    def read(self, random: Random) -> Example:
        words = [random.choice(self.corpus.words)] if random.random() < 0.5 else digit_sequence(random, low=1, high=4)
        media = [token for word in words for token in self._word(word) * random.randint(1, 4)]
        return self._chat("read", random, media, capitalised(random.choice(READ_QUESTIONS), random), " ".join(words))

    def _seen(self, objects: Sequence[tuple[str, str]], random: Random) -> list[int]:
        """A token for each patch: what each object is, with nothing around it."""
        tokens: list[int] = []
        for colour, shape in objects:
            seen = [self._word(colour)] * random.randint(1, 4) + [self._word(shape)] * random.randint(1, 4)
            if random.random() < 0.5:
                random.shuffle(seen)
            tokens += [token for patch in seen for token in patch] + self.silence * random.randint(1, 5)
        return self.silence * random.randint(0, 9) + tokens

    def _said(self, random: Random) -> list[str]:
        kind = random.random()
        if kind < 0.4:
            return digit_sequence(random, low=1, high=MAX_SEQUENCE + 2)
        if kind < 0.45:
            return number(random)
        if kind < 0.7:
            return sentence(random)
        if kind < 0.92 or not self.corpus.sentences:
            return random.choices(self.corpus.words, k=random.randint(1, MAX_SEQUENCE))
        words = random.choice(self.corpus.sentences).split()
        start = random.randrange(len(words))
        return words[start : start + random.randint(1, 6)]

    def heard(self, words: Sequence[str], random: Random) -> list[int]:
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
        letter = random.randrange(1, len(ascii_lowercase) - 1)
        month = random.randrange(len(MONTHS))
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
                (f"What letter comes after {ascii_lowercase[letter]}?", ascii_lowercase[letter + 1]),
                (f"What letter comes before {ascii_lowercase[letter]}?", ascii_lowercase[letter - 1]),
                (f"What is the {ORDINALS[month]} month?", MONTHS[month]),
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

    def beyond(self, random: Random) -> Example:
        words = [random.choice(random.choice(self.corpus.sentences).split()) for _ in range(3)]
        question = random.choice(_BEYOND).format(*words)
        if random.random() < 0.3:
            question = capitalised(random.choice(self.corpus.sentences), random)[:60] + "?"
        return self._chat("beyond", random, [], question, BEYOND)

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


def capitalised(question: str, random: Random) -> str:
    """Now and then as a person would type it."""
    return question[:1].upper() + question[1:] if random.random() < 0.4 else question


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
