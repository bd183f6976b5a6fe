"""``python -m phi4mm.bench.server``: the server under load, beside ``chat_batch`` and beside ``transformers serve``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.bench.comparison import machine
from phi4mm.bench.server_process import Clients, Served, serving
from phi4mm.bench.server_work import Row, rows, wire
from phi4mm.cli import exit_code, positive, prepare_environment, program_name
from phi4mm.environment import default_threads
from phi4mm.errors import Phi4MMError

PROGRAM = "phi4mm.bench.server"
_SHORT = 16  # tokens of an answer where the peer is asked, which may end earlier
_LATER = 1000  # added to a turn's number for rows of another measurement


@dataclass(frozen=True)
class Load:
    """What clients got: seconds in all, seconds to each streamed row's first text, and the texts."""

    seconds: float
    firsts: tuple[float, ...]
    texts: tuple[str, ...]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name(PROGRAM),
        description="The bundled checkpoint, served to many clients of another process: against chat_batch with the "
        "same rows and one request after another, in rounds that take turns; then beside transformers serve, one "
        "server after the other. Medians.",
    )
    parser.add_argument("--clients", type=positive, default=64, metavar="N", help="at once (64)")
    parser.add_argument("--new-tokens", type=positive, default=64, metavar="N", help="of each answer (64)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="that are counted (5)")
    parser.add_argument("--threads", type=positive, default=default_threads(), metavar="N", help="every core")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="leave transformers out")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> int:
        options = make_parser().parse_args(arguments)
        prepare_environment(options.threads)
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        with ExitStack() as stack:
            clients = Clients()
            stack.callback(clients.close)
            model = stack.enter_context(Phi4MM.from_pretrained(device="cpu", dtype="float32"))
            ours = stack.enter_context(serving(_our_command(options.threads), "/ready"))
            under_load(options, model, ours, clients)
            if options.compare:
                beside_transformers(options, model, ours, clients)
        return 0

    return exit_code(PROGRAM, command)


def under_load(options: argparse.Namespace, model: Phi4MM, ours: Served, clients: Clients) -> None:
    """Print a table: all kinds at once, half of them streamed, each answer of so many tokens."""
    biases = dict.fromkeys(model.model.config.decoder.stop_token_ids, -100.0)
    count, new = options.clients, options.new_tokens
    batch, together, alone, firsts, shares = [], [], [], [], []
    different = 0
    for turn in range(options.rounds + 1):  # the first one is not counted
        same = rows(count, turn)
        requests = [row.request(new, biases) for row in same]
        cpu, start = time.process_time(), time.perf_counter()
        replies = model.chat_batch(requests, batch_size=count)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        served = ours.cpu_seconds
        load = _asked(clients, ours, same, new, biases, count)
        served = ours.cpu_seconds - served
        different += sum(text != reply.text for text, reply in zip(load.texts, replies, strict=True))
        if turn:
            one = _asked(clients, ours, rows(count, _LATER + turn), new, biases, 1)
            batch.append(seconds)
            together.append(load.seconds)
            alone.append(one.seconds)
            firsts.append(statistics.median(load.firsts))
            shares.append(cpu / served)
    ratio = statistics.median(a / b for a, b in zip(batch, together, strict=True))
    times = statistics.median(a / b for a, b in zip(alone, together, strict=True))
    tokens = count * new
    print(f"\n| {count} clients, text, image, audio, image+audio, {new} tokens each | |\n|---|---:|")
    print(f"| `chat_batch` with the same rows | {tokens / statistics.median(batch):.0f} tokens/s |")
    print(f"| server, {count} clients at once | {tokens / statistics.median(together):.0f} tokens/s |")
    print(f"| server, one request after another | {tokens / statistics.median(alone):.0f} tokens/s |")
    print(f"| at once against `chat_batch` | {ratio:.2f} |")
    print(f"| the same in processor time | {statistics.median(shares):.2f} |")
    print(f"| at once against one after another | {times:.1f} |")
    print(f"| first text, median | {statistics.median(firsts):.2f} s |")
    print(f"| answers that differ from `chat_batch` | {different} |")
    print(f"| memory of the server, most | {ours.peak_bytes >> 20} MiB |", flush=True)


def beside_transformers(options: argparse.Namespace, model: Phi4MM, ours: Served, clients: Clients) -> None:
    """Print a table: each kind, by both servers on the same weights."""
    count = max(options.clients // 4, 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model.save_pretrained(Path(scratch) / "model", layout="transformers")
        command = _their_command(folder)
        with serving(command, "/health", {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}) as theirs:
            print(
                f"\n| {count} clients at once, up to {_SHORT} tokens | phi4mm | transformers serve |\n|---|---:|---:|"
            )
            for number, kind in enumerate(cases.KINDS):
                _row_of_kind(kind, number, count, options, (ours, theirs), clients, str(folder), model)
            print(f"| memory, most | {ours.peak_bytes >> 20} MiB | {theirs.peak_bytes >> 20} MiB |")


def _row_of_kind(
    kind: str,
    number: int,
    count: int,
    options: argparse.Namespace,
    servers: tuple[Served, Served],
    clients: Clients,
    name: str,
    model: Phi4MM,
) -> None:
    cells = []
    right: list[str] = []
    for server, called in zip(servers, ("phi4mm", name), strict=True):
        loads: list[Load] = []
        try:
            for turn in range(options.rounds + 1):
                asked = rows(count, _LATER * (number + 2) + turn, [kind])
                loads.append(_asked(clients, server, asked, _SHORT, {}, count, model=called))
            asked = rows(count, _LATER * (number + 2), [kind])
            right = right or [reply.text for reply in model.chat_batch([row.request(_SHORT, {}) for row in asked])]
        except Phi4MMError as error:
            cells.append(f"cannot: {error}")
            continue
        seconds = statistics.median(load.seconds for load in loads[1:])
        first = statistics.median(one for load in loads[1:] for one in load.firsts)
        same = sum(text == other for text, other in zip(loads[0].texts, right, strict=True))
        cells.append(f"{count / seconds:.1f} requests/s, first text {first:.2f} s, {same} of {count} answers right")
    print(f"| {kind} | {cells[0]} | {cells[1]} |", flush=True)


def _asked(
    clients: Clients,
    server: Served,
    asked: Sequence[Row],
    new_tokens: int,
    biases: dict[int, float],
    together: int,
    model: str = "phi4mm",
) -> Load:
    """Send rows, of which the first half of each four streams.

    Raises:
        Phi4MMError: one of them was not answered.
    """
    streams = [index // len(cases.KINDS) % 2 == 0 for index in range(len(asked))]
    requests = [
        wire(row, new_tokens, biases, stream=stream, model=model) for row, stream in zip(asked, streams, strict=True)
    ]
    got = clients.run(server.port, requests, together)
    answers: list[dict[str, Any]] = got["answers"]
    failed = next((answer for answer in answers if answer["status"] != 200), None)
    if failed is not None:
        raise Phi4MMError(f"status {failed['status']}: {' '.join(failed['body'].split()):.120}")
    return Load(
        got["seconds"],
        tuple(answer["first"] for answer, stream in zip(answers, streams, strict=True) if stream),
        tuple(map(_text_of, answers, streams)),
    )


def _text_of(answer: dict[str, Any], stream: bool) -> str:
    return str(answer["text"] if stream else json.loads(answer["body"])["choices"][0]["message"]["content"])


def _our_command(threads: int) -> list[str]:
    command = [sys.executable, "-m", "phi4mm.serve", "--port", "{port}", "--log-level", "warning"]
    return [*command, "--device", "cpu", "--dtype", "float32", "--threads", str(threads)]


def _their_command(folder: Path) -> list[str]:
    """The port's processor drops the chat template that lies in its folder, so that it is given here."""
    program = Path(sys.executable).parent / "transformers"
    template = json.dumps({"chat_template": (folder / "chat_template.jinja").read_text(encoding="utf-8")})
    command = [str(program), "serve", str(folder), "--device", "cpu", "--dtype", "float32", "--port", "{port}"]
    return [*command, "--chat-template-kwargs", template]


if __name__ == "__main__":
    sys.exit(main())
