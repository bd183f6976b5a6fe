// Transcription: one file with its word times, or several as a table.

import { call, events } from "./api.js";
import { duration } from "./answer.js";
import { modelFields, sampleFile } from "./chat.js";
import { showCode, transcriptionCode } from "./code.js";
import { announce, byId, clock, download, el, isAbort, toast } from "./dom.js";
import { kindOf, pathOf } from "./media.js";
import { recordButton } from "./recorder.js";
import { csv } from "./subtitles.js";
import { sheet } from "./transcript.js";

const AT_ONCE = 4; // files of a table that are sent together
let running = null;
let recorder = null;
let results = []; // of the table: {file, result?, error?}

export function startTranscribe() {
  byId("choose-audio").addEventListener("click", () => byId("audio-files").click());
  byId("choose-folder").addEventListener("click", () => byId("audio-folder").click());
  for (const id of ["audio-files", "audio-folder"]) {
    byId(id).addEventListener("change", ({ target }) => (transcribe([...target.files]), (target.value = "")));
  }
  recorder = recordButton(byId("record-audio"), byId("recording-audio"), (file) => transcribe([file]), toast);
  byId("batch-stop").addEventListener("click", stopTranscription);
  byId("batch-csv").addEventListener("click", () => {
    const rows = results.map(({ file, result, error }) => [pathOf(file), result?.duration?.toFixed(2), result?.text, error]);
    download("transcripts.csv", csv([["file", "seconds", "text", "error"], ...rows]), "text/csv");
  });
}

export function showAudioSamples(samples) {
  const names = samples.filter((one) => one.audio && !one.image).map((one) => one.audio);
  const chips = names.slice(0, 4).map((name) => el("button", { type: "button", onclick: async () => transcribe([await sampleFile(name)]) }, name));
  byId("audio-samples").replaceChildren(...chips);
  byId("audio-samples").hidden = !chips.length;
}

export function stopTranscription() {
  if (!running) return recorder.stop();
  running.abort();
  return true;
}

/** Transcribe what of these is audio. */
export async function transcribe(files) {
  const audio = files.filter((file) => kindOf(file) === "audio");
  if (!audio.length) return toast(files.length ? "There is no audio among these files." : "There is no file.");
  if (audio.length < files.length) toast(`${files.length - audio.length} of ${files.length} files are not audio and are left out.`);
  stopTranscription();
  const mine = (running = new AbortController());
  byId("transcribe").classList.add("done");
  byId("transcript").replaceChildren();
  try {
    await (audio.length === 1 ? one(audio[0], mine.signal) : several(audio, mine.signal));
  } finally {
    if (running === mine) running = null;
  }
  return undefined;
}

/** The endpoint and the fields of a file's form, by the options. */
function requestFor(file) {
  const fields = [["file", file]];
  const { model } = modelFields(byId("speech-adapter"));
  if (model) fields.push(["model", model]);
  const to = byId("task").value;
  if (to) return { task: "translations", fields: [...fields, ["to", to], ["response_format", "verbose_json"]] };
  for (const keyword of byId("keywords").value.split(",")) if (keyword.trim()) fields.push(["keywords[]", keyword.trim()]);
  if (byId("speakers").checked) return { task: "transcriptions", fields: [...fields, ["response_format", "diarized_json"]] };
  if (byId("live-text").checked) return { task: "transcriptions", fields: [...fields, ["stream", "true"]] };
  const times = [["timestamp_granularities[]", "word"], ["timestamp_granularities[]", "segment"]];
  return { task: "transcriptions", fields: [...fields, ["response_format", "verbose_json"], ...times] };
}

/** The server's object, with the seconds that it took as `took`; what comes piece by piece is handed to `onText`. */
async function ask({ task, fields }, signal, onText) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  const began = performance.now();
  const response = await call(`v1/audio/${task}`, { form, signal });
  const isStream = response.headers.get("content-type").startsWith("text/event-stream");
  const result = isStream ? { text: await streamed(response, onText) } : await response.json();
  return { ...result, took: (performance.now() - began) / 1000 };
}

async function streamed(response, onText) {
  let text = "";
  for await (const event of events(response)) {
    if (event.type === "transcript.text.delta") onText((text += event.delta));
    else if (event.type === "transcript.text.done") text = event.text;
  }
  return text;
}

async function one(file, signal) {
  const request = requestFor(file);
  byId("batch").hidden = true;
  const cancel = el("button", { type: "button", className: "quiet", onclick: stopTranscription }, "Stop");
  const seconds = el("span", { "aria-hidden": "true" });
  byId("progress").replaceChildren(el("span", {}, `Transcribing ${file.name}`), seconds, cancel);
  const began = Date.now();
  const timer = setInterval(() => (seconds.textContent = clock((Date.now() - began) / 1000)), 1000);
  try {
    const shown = el("p", { className: "sheet" });
    const result = await ask(request, signal, (text) => {
      shown.textContent = text;
      if (!shown.isConnected) byId("transcript").replaceChildren(shown);
    });
    byId("transcript").replaceChildren(sheet(file, result, factsOf(result), () => showCode(transcriptionCode(request, file.name))));
    announce("The transcript is complete.");
  } catch (error) {
    if (running?.signal !== signal) return; // another has begun
    if (isAbort(error)) byId("transcript").replaceChildren(el("p", { className: "muted" }, "Stopped."));
    else byId("transcript").replaceChildren(el("div", { className: "problem", role: "alert" }, el("span", {}, error.message), el("button", { type: "button", onclick: () => transcribe([file]) }, "Try again")));
  } finally {
    clearInterval(timer);
    if (running?.signal === signal) byId("progress").replaceChildren();
  }
}

function factsOf({ duration: length, took }) {
  if (!length) return duration(took);
  return `${duration(length)} of audio in ${duration(took)}, ${(length / took).toFixed(length / took < 10 ? 1 : 0)} × real time`;
}

async function several(files, signal) {
  const entries = (results = files.map((file) => ({ file })));
  const rows = entries.map((entry) => row(entry));
  byId("batch-rows").replaceChildren(...rows.map((shown) => shown.element));
  byId("batch").hidden = false;
  byId("batch-stop").hidden = false;
  let [next, finished] = [0, 0];
  const worker = async () => {
    while (next < files.length && !signal.aborted) {
      const index = next++;
      const entry = entries[index];
      rows[index].show("Transcribing");
      try {
        entry.request = requestFor(entry.file);
        entry.result = await ask(entry.request, signal, (text) => rows[index].show(text));
      } catch (error) {
        entry.error = isAbort(error) ? "stopped" : error.message;
      }
      rows[index].show();
      if (running?.signal !== signal) return; // another has begun
      byId("progress").textContent = `${++finished} of ${files.length} files`;
    }
  };
  byId("progress").textContent = `0 of ${files.length} files`;
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (running?.signal !== signal) return;
  entries.forEach((entry, index) => {
    if (entry.result || entry.error) return;
    entry.error = "stopped";
    rows[index].show();
  });
  byId("batch-stop").hidden = true;
  byId("progress").textContent = "";
  announce(`${entries.filter((entry) => entry.result).length} of ${files.length} files are transcribed.`);
}

function row(entry) {
  const length = el("td", { className: "number" });
  const text = el("td", { className: "muted" }, "Waiting");
  const name = el("td", {}, pathOf(entry.file));
  const open = () => {
    byId("transcript").replaceChildren(sheet(entry.file, entry.result, factsOf(entry.result), () => showCode(transcriptionCode(entry.request, entry.file.name))));
    byId("transcript").scrollIntoView({ block: "nearest" });
  };
  const show = (state) => {
    if (state) return void (text.textContent = state);
    text.className = entry.error ? "error" : "";
    text.textContent = entry.error ?? entry.result.text;
    if (!entry.result) return undefined;
    length.textContent = entry.result.duration ? clock(entry.result.duration) : "";
    return name.replaceChildren(el("button", { type: "button", className: "quiet", onclick: open }, pathOf(entry.file)));
  };
  return { element: el("tr", {}, name, length, text), show };
}
