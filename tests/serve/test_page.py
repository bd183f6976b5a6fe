"""The page, in a real browser: Debian's Chromium, with a microphone that plays a sample."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile
import soxr
from hatchling.builders.wheel import WheelBuilder

from phi4mm.api import Phi4MM
from phi4mm.serve.options import ModelOptions, Security, ServeOptions
from phi4mm.serve.routes.page import FOLDER
from tests.serve.conftest import SAMPLES, Running, running, wait_until

try:
    from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
except ImportError:
    sync_playwright = None  # type: ignore[assignment]

CHROMIUM = Path(os.environ.get("PHI4MM_CHROMIUM", "/usr/bin/chromium"))
SPOKEN = "two four six eight one three five seven"  # eight_digits.flac
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if sync_playwright is None:
        pytest.skip("playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}; PHI4MM_CHROMIUM names another place")
    samples, rate = soundfile.read(SAMPLES / "eight_digits.flac")
    silence = np.zeros(24_000)
    microphone = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(microphone, np.concatenate([silence, soxr.resample(samples, rate, 48_000), silence]), 48_000)
    arguments = [
        "--no-sandbox",
        "--disable-background-networking",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page of the bundled checkpoint; it may log no error, such as one of the content security policy."""
    with opened(browser, server.url) as found:
        yield found


class opened:
    """A page in a window of its own.

    Args:
        problems: whether errors in its console are expected, such as the status of a refused request.
    """

    def __init__(self, browser: Browser, url: str, *, problems: bool = False, **options: object) -> None:
        self._context = browser.new_context(**options)  # type: ignore[arg-type]
        self._page = self._context.new_page()
        self._errors: list[str] = []
        self._problems = problems
        self._page.on("pageerror", lambda error: self._errors.append(str(error)))
        self._page.on("console", self._logged)
        self._page.set_default_timeout(20_000)
        self._page.goto(url)

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not self._problems:
            self._errors.append(message.text)

    def __enter__(self) -> Page:
        expect(self._page.locator(".sample").first).to_be_visible()
        return self._page

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._context.close()
        if error is None:
            assert self._errors == []
        else:
            error.add_note(f"errors on the page: {self._errors}")


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def answers(page: Page, count: int = 1) -> list[str]:
    """The texts of the answers, once there are that many."""
    expect(page.locator(".turn.assistant .actions")).to_have_count(count, timeout=20_000)
    return page.locator(".turn.assistant .text").all_inner_texts()


def transfer(page: Page, *paths: Path) -> object:
    """A DataTransfer with files."""
    files = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    return page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const { name, data } of files)
                transfer.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name));
            return transfer;
        }""",
        files,
    )


# What is served


def test_files_and_their_headers(server: Running) -> None:
    client = httpx2.Client(base_url=server.url)
    for name in ("", *(f"static/{path.name}" for path in FOLDER.iterdir())):
        response = client.get(f"/{name}")
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        again = client.get(f"/{name}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("static/page.py", "static/..%2f..%2fapp.py", "static/samples/manifest.jsonl", "static/"):
        assert client.get(f"/{name}").status_code == 404


def test_no_page_and_no_samples_of_another_checkpoint(bundled: Phi4MM) -> None:
    with running(bundled, ServeOptions(page=False)) as found:
        assert httpx2.get(f"{found.url}/").status_code == 404
        assert httpx2.get(f"{found.url}/static/page.js").status_code == 404
    with running(bundled, ServeOptions(model=ModelOptions(source="another"))) as found:
        assert httpx2.get(f"{found.url}/static/samples/index.json").json() == {"samples": []}
        assert httpx2.get(f"{found.url}/static/samples/shape.png").status_code == 404


def test_nothing_comes_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        found = re.findall(r"https?://[^\s\"'`)\\]+", path.read_text(encoding="utf-8"))
        assert [url for url in found if not url.startswith("http://www.w3.org/2000/svg")] == [], path.name


def test_wheel_has_the_files() -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"phi4mm/serve/page/{path.name}" for path in FOLDER.iterdir()} <= shipped


# Chat


def test_type(page: Page, server: Running) -> None:
    ask(page, "one two three")
    [text] = answers(page)
    alone = server.client().chat.completions.create(
        model="phi4mm", messages=[{"role": "user", "content": "one two three"}]
    )
    assert text.split() == (alone.choices[0].message.content or "").split()
    expect(page.locator(".route")).to_have_text("no adapter")
    expect(page.locator(".facts")).to_contain_text("first token")
    expect(page.locator("#prompt")).to_have_value("")


def test_enter_with_shift_begins_a_line(page: Page) -> None:
    page.locator("#prompt").press_sequentially("one")
    page.locator("#prompt").press("Shift+Enter")
    page.locator("#prompt").press_sequentially("two")
    expect(page.locator("#prompt")).to_have_value("one\ntwo")
    expect(page.locator(".turn")).to_have_count(0)


def test_drop_and_paste(page: Page) -> None:
    page.locator("main").dispatch_event("drop", {"dataTransfer": transfer(page, SAMPLES / "shape.png")})
    expect(page.locator("#attachments li")).to_have_count(1)
    ask(page, "what color is the shape?")
    assert answers(page) == ["blue"]
    expect(page.locator(".route")).to_have_text("vision")
    page.locator("#prompt").evaluate(
        "(prompt, files) => prompt.dispatchEvent("
        "new ClipboardEvent('paste', { clipboardData: files, bubbles: true, cancelable: true }))",
        transfer(page, SAMPLES / "telephone.flac"),
    )
    expect(page.locator("#attachments li")).to_have_count(1)
    ask(page, "Transcribe the audio clip into text.")
    assert answers(page, 2)[1] == "five five two eight oh one four"
    expect(page.locator(".route").last).to_have_text("speech")


def test_what_is_neither_picture_nor_audio_is_not_attached(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    page.locator("main").dispatch_event("drop", {"dataTransfer": transfer(page, tmp_path / "notes.txt")})
    expect(page.locator("#toast")).to_have_text("Only pictures and audio can be attached.")
    expect(page.locator("#attachments li")).to_have_count(0)


def test_sample(page: Page) -> None:
    page.get_by_role("button", name="A spoken question").click()
    assert answers(page) == ["blue"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".sample").first).to_be_visible()


def test_record(page: Page) -> None:
    page.get_by_role("button", name="Record from the microphone").click()
    expect(page.locator("#recording")).to_contain_text(re.compile(r"([3-9]|\d\d)\.\d s"), timeout=20_000)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#attachments li")).to_have_count(1)
    page.locator("#prompt").fill("Transcribe the audio clip into text.")
    with page.expect_request("**/v1/chat/completions") as request:
        page.locator("#prompt").press("Enter")
    audio = request.value.post_data_json["messages"][0]["content"][0]["input_audio"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])))
    assert (audio["format"], rate, samples.ndim) == ("wav", 16_000, 1)
    assert len(samples) / rate > 3
    assert answers(page) == [SPOKEN]


def endless(page: Page) -> None:
    """Have answers go on until they are ended."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Format").select_option("regex")
    page.get_by_role("textbox", name="Regular expression").fill("[ab]{30000}")
    page.get_by_label("Token limit").fill("100000")
    page.get_by_role("button", name="Close settings").click()


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stop(page: Page, server: Running, by: str) -> None:
    endless(page)
    ask(page, "go on")
    expect(page.locator(".turn.assistant .text")).to_contain_text(re.compile("[ab]{5}"))
    if by == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_until(lambda: server.service.model.stats().running == 0)


def test_schema(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator("#schema-example").click()
    page.set_input_files("#files", [SAMPLES / "shape.png"])
    ask(page, "what shape is in the image?")
    [text] = answers(page)
    assert re.search(r'"shape": "(circle|square|triangle)"', text)


def test_tool_call(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Definitions").fill(json.dumps([{"type": "function", "function": WEATHER}]))
    page.get_by_label("Choice").select_option("required")
    ask(page, "weather")
    expect(page.locator(".call h3")).to_have_text("Calls weather")
    page.get_by_label("Result of weather").fill("sunny")
    with page.expect_request("**/v1/chat/completions") as request:
        page.get_by_role("button", name="Return result").click()
    *_, call, result = request.value.post_data_json["messages"]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert result["content"] == "sunny"
    answers(page, 2)


def test_settings_that_cannot_be_sent(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Definitions").fill("[{")
    page.get_by_role("button", name="Close settings").click()
    ask(page, "hello")
    expect(page.locator("#tools-error")).to_contain_text("Tools: this is not JSON")
    expect(page.get_by_label("Definitions")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("hello")
    expect(page.locator(".turn")).to_have_count(0)


def test_problem_and_another_try(browser: Browser, server: Running, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"nothing of the kind")
    with opened(browser, server.url, problems=True) as page:
        page.set_input_files("#files", [tmp_path / "broken.wav"])
        ask(page, "what is it?")
        expect(page.locator(".problem")).to_contain_text("audio")
        page.context.set_offline(True)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".problem")).to_contain_text("The server cannot be reached.")


def test_adapters_are_those_of_the_server(page: Page, server: Running) -> None:
    expect(page.get_by_label("Adapter").first.locator("option")).to_have_count(2 + len(server.service.adapters.names))
    page.locator("#adapter").select_option("speech")
    ask(page, "one two three")
    answers(page)
    expect(page.locator(".route")).to_have_text("speech")


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_copied_code_runs(page: Page, language: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill('It\'s `$HOME` \\ "quoted"')
    page.get_by_label("Top k").fill("1")
    page.set_input_files("#files", [SAMPLES / "shape.png", SAMPLES / "question.flac"])
    page.locator("#send").click()
    [text] = answers(page)
    page.get_by_role("button", name="Code").click()
    page.get_by_role("button", name=language, exact=True).click()
    code = page.locator("#code").inner_text()
    assert "shape.png" in code
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    if shutil.which(command[0]) is None or (language == "curl" and shutil.which("curl") is None):
        pytest.skip(f"there is no {command[0]} or curl")
    done = subprocess.run(command, cwd=SAMPLES, capture_output=True, text=True, timeout=60)
    assert text in done.stdout, done.stderr


def test_markdown_is_text(page: Page) -> None:
    text = (
        "# Title\n<img src=x onerror=alert(1)> **bold** `code`\n- one\n- [two](https://two.example/)\n```\n*raw*\n```\n"
    )
    text += "[no](javascript:alert(1)) 2 * 3 * 4"
    found = page.evaluate(
        "async (text) => (await import('/static/markdown.js')).markdown(text).map((one) => one.outerHTML).join('')",
        text,
    )
    assert found == (
        "<h3>Title</h3><p>&lt;img src=x onerror=alert(1)&gt; <strong>bold</strong> <code>code</code></p>"
        '<ul><li>one</li><li><a href="https://two.example/" rel="noopener noreferrer" target="_blank">two</a></li></ul>'
        '<pre tabindex="0"><code>*raw*</code></pre><p>[no](javascript:alert(1)) 2 * 3 * 4</p>'
    )


# Transcription


def test_subtitles_and_tables_as_text(page: Page) -> None:
    segments = [
        {"start": 0, "end": 1.5, "text": " one"},
        {"start": 3661.2, "end": 3662.0004, "text": "a --> b", "speaker": "A"},
    ]
    srt, vtt, table = page.evaluate(
        "async ([segments, rows]) => { const { srt, vtt, csv } = await import('/static/subtitles.js');"
        " return [srt(segments), vtt(segments), csv(rows)]; }",
        [segments, [["file", "seconds"], ['a "b", c', -1.5], ["=1+1", None]]],
    )
    assert srt == "1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n01:01:01,200 --> 01:01:02,000\nA: a -> b\n"
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n\n01:01:01.200")
    assert list(csv.reader(io.StringIO(table))) == [["file", "seconds"], ['a "b", c', "-1.5"], ["'=1+1", ""]]


def test_transcript(page: Page, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Transcribe").click()
    page.set_input_files("#audio-files", [SAMPLES / "eight_digits.flac"])
    words = page.locator(".word")
    expect(words).to_have_count(8)
    assert words.all_inner_texts() == SPOKEN.split()
    words.nth(5).click()
    start = float((words.nth(5).get_attribute("title") or "").removesuffix(" s"))
    assert start > 1
    position = page.locator(".sheet audio").evaluate("(audio) => audio.currentTime")
    assert start <= position + 0.01 < start + 1
    words.nth(5).press("ArrowLeft")
    expect(words.nth(4)).to_be_focused()
    for kind in ("srt", "vtt"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f".{kind}").click()
        assert download.value.suggested_filename == f"eight_digits.{kind}"
        download.value.save_as(tmp_path / kind)
        assert SPOKEN in (tmp_path / kind).read_text(encoding="utf-8")
    assert (tmp_path / "srt").read_text(encoding="utf-8").startswith("1\n00:00:0")


def test_text_as_it_comes(page: Page) -> None:
    page.get_by_role("tab", name="Transcribe").click()
    page.get_by_text("Options").click()
    page.get_by_label("Show the text as it comes").check()
    page.set_input_files("#audio-files", [SAMPLES / "eight_digits.flac"])
    expect(page.locator(".sheet .segments")).to_contain_text(SPOKEN)
    expect(page.get_by_role("button", name=".srt")).to_have_count(0)


def test_speakers(page: Page) -> None:
    segments = [
        {"id": "seg_0", "speaker": "A", "start": 0.2, "end": 1.0, "text": "one two"},
        {"id": "seg_1", "speaker": "B", "start": 1.2, "end": 2.0, "text": "three"},
    ]
    answer = {"task": "transcribe", "duration": 2.5, "text": "one two three", "segments": segments}
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(json=answer))
    page.get_by_role("tab", name="Transcribe").click()
    page.get_by_text("Options").click()
    page.get_by_label("Tell speakers apart").check()
    page.set_input_files("#audio-files", [SAMPLES / "eight_digits.flac"])
    expect(page.locator(".speaker")).to_have_text(["A", "B"])
    expect(page.locator(".word")).to_have_text(["one two", "three"])


def test_folder(browser: Browser, server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("digit.flac", "number.flac", "manifest.jsonl"):
        shutil.copy(SAMPLES / name, folder)
    (folder / "empty.wav").write_bytes(b"")
    with opened(browser, server.url, problems=True) as page:
        page.get_by_role("tab", name="Transcribe").click()
        page.set_input_files("#audio-folder", folder)
        rows = page.locator("#batch-rows tr")
        expect(rows).to_have_count(3)
        expect(page.locator("#announce")).to_have_text("2 of 3 files are transcribed.")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        download.value.save_as(tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
            found = {row["file"]: row for row in csv.DictReader(file)}
        assert found["recordings/digit.flac"]["text"] == "seven"
        assert found["recordings/number.flac"]["text"] == "sixty three"
        assert found["recordings/empty.wav"]["error"]
        page.get_by_role("button", name="recordings/number.flac").click()
        expect(page.locator(".word")).to_have_text(["sixty", "three"])


# Captions


def test_captions(page: Page, server: Running) -> None:
    page.get_by_role("tab", name="Captions").click()
    page.get_by_role("button", name="Start captions").click()
    expect(page.locator(".caption:not(.open)")).to_contain_text(SPOKEN, timeout=30_000)
    page.get_by_role("button", name="Stop captions").click()
    expect(page.get_by_role("button", name="Start captions")).to_be_visible(timeout=30_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download .srt").click()
    assert download.value.suggested_filename == "captions.srt"


# For everybody


def test_phone_width(browser: Browser, server: Running) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with opened(browser, server.url, **phone) as page:
        for tab in ("Chat", "Transcribe", "Captions"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") == 360, tab
        page.get_by_role("tab", name="Chat").click()
        page.get_by_role("button", name="Settings").click()
        box = page.locator("#settings").bounding_box()
        assert box is not None
        assert (box["x"], box["width"]) == (0, 360)


def test_keyboard(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    for target in ("#attach", "#record", "#adapter", "#send"):
        page.keyboard.press("Tab")
        expect(page.locator(target)).to_be_focused()
    page.get_by_role("button", name="Settings").press("Enter")
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    page.get_by_role("tab", name="Chat").press("ArrowRight")
    expect(page.get_by_role("tab", name="Transcribe")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Transcribe")).to_be_visible()


def test_all_controls_have_names(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), select, textarea, audio, [role]")]
            .filter((one) => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby")
                || one.textContent.trim() || one.labels?.length || ["status", "alert"].includes(one.role)))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    expect(page.get_by_role("log", name="Conversation")).to_have_attribute("aria-live", "polite")


def test_theme(browser: Browser, server: Running) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, server.url, color_scheme="dark") as page:
        dark = page.evaluate(ground)
        button = page.get_by_role("button", name="Dark mode")
        expect(button).to_have_attribute("aria-pressed", "true")
        button.click()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        expect(button).to_have_attribute("aria-pressed", "false")


def test_key(browser: Browser, bundled: Phi4MM) -> None:
    options = ServeOptions(security=Security(api_keys=("right",)))
    with running(bundled, options) as found, opened(browser, found.url, problems=True) as page:
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.get_by_label("API key", exact=True).last.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_have_text("The server did not take that key.")
        page.get_by_label("API key", exact=True).last.fill("right")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        ask(page, "one two three")
        answers(page)
        assert page.evaluate("[Object.values(sessionStorage), Object.values(localStorage)]") == [["right"], []]
        page.get_by_role("button", name="Code").click()
        assert "right" not in page.locator("#code").inner_text()
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Captions").click()
        page.get_by_role("button", name="Start captions").click()
        expect(page.locator("#captions-state")).to_have_text("Listening")
