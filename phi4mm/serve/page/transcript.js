// A transcript on the page: words and segments that play the audio from where they stand, and downloads.

import { copy } from "./code.js";
import { clock, download, el } from "./dom.js";
import { srt, vtt } from "./subtitles.js";

/** @param result of verbose_json or diarized_json */
export function sheet(file, result, facts, onCode) {
  const audio = el("audio", { src: URL.createObjectURL(file), controls: true, "aria-label": file.name });
  const segments = result.segments?.length ? result.segments : result.text ? [{ start: 0, end: result.duration ?? 0, text: result.text }] : [];
  const words = result.words ?? [];
  const body = el("div", { className: "segments", role: "group", "aria-label": "Transcript; the arrow keys go from word to word" });
  const buttons = [];
  const speakers = [...new Set(segments.map(({ speaker }) => speaker))];
  segments.forEach((segment, index) => {
    const next = segments[index + 1]?.start ?? Infinity;
    const own = words.filter(({ start }) => start < next && (index === 0 || start >= segment.start));
    const parts = own.length ? own.map(({ word, start, end }) => ({ text: word.trim(), start, end })) : [{ ...segment, text: segment.text.trim() }];
    const line = el("p", {});
    if (segment.speaker) line.append(el("span", { className: `speaker voice-${speakers.indexOf(segment.speaker) % 4}` }, segment.speaker));
    for (const part of parts) {
      const button = wordButton(part, audio);
      buttons.push({ ...part, button });
      line.append(button, " ");
    }
    body.append(el("div", { className: "segment" }, el("time", { datetime: `PT${segment.start.toFixed(2)}S` }, clock(segment.start)), line));
  });
  if (!buttons.length) body.append(el("p", { className: "muted" }, "No speech was found."));
  arrowKeys(body, buttons.map(({ button }) => button));
  follow(audio, buttons);
  const base = file.name.replace(/\.[^.]+$/, "");
  const save = (kind, text, type) => el("button", { type: "button", className: "quiet", onclick: () => download(`${base}.${kind}`, text(), type) }, `.${kind}`);
  const subtitles = result.segments ? [save("srt", () => srt(segments)), save("vtt", () => vtt(segments), "text/vtt")] : [];
  const actions = el("div", { className: "facts" }, el("span", {}, facts), el("span", { className: "spring" }),
    el("span", { className: "actions", role: "group", "aria-label": "Download" }, ...subtitles, save("txt", () => `${result.text}\n`)),
    el("button", { type: "button", className: "quiet", onclick: () => copy(result.text) }, "Copy"),
    el("button", { type: "button", className: "quiet", onclick: onCode }, "Code"));
  return el("article", { className: "sheet", "aria-label": `Transcript of ${file.name}` }, el("h2", { className: "small" }, file.name), audio, body, actions);
}

function wordButton({ text, start }, audio) {
  const play = () => {
    audio.currentTime = start;
    audio.play().catch(() => {}); // a format that the browser does not play
  };
  return el("button", { type: "button", className: "word", title: `${start.toFixed(2)} s`, tabIndex: -1, onclick: play }, text);
}

/** One stop of the Tab key for all words. */
function arrowKeys(body, buttons) {
  if (buttons.length) buttons[0].tabIndex = 0;
  body.addEventListener("keydown", (event) => {
    const place = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (place < 0 || to === undefined) return;
    event.preventDefault();
    const target = buttons[Math.max(0, Math.min(buttons.length - 1, to))];
    buttons[place].tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
}

/** Mark the word that is played. */
function follow(audio, words) {
  const mark = () => {
    const now = audio.currentTime;
    for (const { button, start, end } of words) button.classList.toggle("now", !audio.paused && now >= start && now < end);
    if (!audio.paused && audio.isConnected) requestAnimationFrame(mark);
  };
  for (const event of ["play", "pause", "seeked", "ended"]) audio.addEventListener(event, mark);
}
