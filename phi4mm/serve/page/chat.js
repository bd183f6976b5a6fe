// The conversation: what is attached and written, and the answers to it.

import { call, events } from "./api.js";
import { Answer, resultForms } from "./answer.js";
import { chatCode } from "./code.js";
import { announce, byId, el, icon, isAbort, toast } from "./dom.js";
import { contentPart, kindOf } from "./media.js";
import { recordButton } from "./recorder.js";
import { SettingsError, isAlone, settingFields, systemPrompt } from "./settings.js";

const SAMPLES = 6;
let history = []; // OpenAI's messages
let fileNames = []; // of the history's media, in order
let attached = []; // files
let running = null; // an AbortController while an answer comes
let baseModel = null;
let recorder = null;
const scroller = () => byId("scroller");

export function startChat({ openSettings }) {
  const prompt = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(openSettings);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(openSettings);
  });
  prompt.addEventListener("input", grow);
  byId("stop").addEventListener("click", stopAnswer);
  byId("clear").addEventListener("click", clear);
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => (attach([...target.files]), (target.value = "")));
  recorder = recordButton(byId("record"), byId("recording"), (file) => (attach([file]), prompt.focus()), toast);
}

/** Ends what runs; false where nothing did. */
export function stopAnswer() {
  if (!running) return recorder.stop();
  running.abort();
  return true;
}

export function attach(files) {
  const known = files.filter(kindOf);
  if (known.length < files.length) toast("Only pictures and audio can be attached.");
  attached.push(...known);
  showAttached();
  if (known.length) announce(`${known.map((file) => file.name).join(", ")} attached`);
}

function showAttached() {
  const list = byId("attachments");
  for (const shown of list.querySelectorAll("[src]")) URL.revokeObjectURL(shown.src);
  list.hidden = !attached.length;
  list.replaceChildren(
    ...attached.map((file) => {
      const url = URL.createObjectURL(file);
      const preview = kindOf(file) === "image" ? el("img", { src: url, alt: "" }) : el("audio", { src: url, controls: true, "aria-label": file.name });
      const remove = () => {
        attached = attached.filter((one) => one !== file);
        showAttached();
        byId("prompt").focus();
      };
      const button = el("button", { type: "button", className: "icon", "aria-label": `Remove ${file.name}`, onclick: remove }, icon("close"));
      return el("li", {}, preview, el("span", { className: "name" }, file.name), button);
    }),
  );
}

function grow() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function clear() {
  stopAnswer();
  [history, fileNames] = [[], []];
  byId("log").replaceChildren();
  byId("empty").hidden = false;
  byId("clear").hidden = true;
  byId("prompt").focus();
}

async function send(openSettings) {
  const text = byId("prompt").value.trim();
  if (running || (!text && !attached.length)) return;
  if (recorder.isRecording()) return toast("Stop the recording first.");
  let fields;
  try {
    fields = settingFields();
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error;
    openSettings(error.field);
    return toast(error.message);
  }
  const files = attached;
  running = new AbortController();
  let message;
  try {
    const parts = await Promise.all(files.map(contentPart));
    message = { role: "user", content: parts.length ? [...parts, ...(text ? [{ type: "text", text }] : [])] : text };
  } catch (error) {
    running = null;
    return toast(error.message);
  }
  attached = [];
  showAttached();
  byId("prompt").value = "";
  grow();
  byId("empty").hidden = true;
  byId("clear").hidden = false;
  for (const form of byId("log").querySelectorAll(".results")) form.remove(); // it is too late for them
  byId("log").append(userTurn(text, files));
  await answer([message], files.map((file) => file.name), fields);
}

function userTurn(text, files) {
  const turn = el("article", { className: "turn user", "aria-label": "You" });
  const media = files.map((file) => {
    const url = URL.createObjectURL(file);
    return kindOf(file) === "image" ? el("img", { src: url, alt: file.name }) : el("audio", { src: url, controls: true, "aria-label": file.name });
  });
  if (media.length) turn.append(el("div", { className: "media" }, ...media));
  if (text) turn.append(el("div", { className: "bubble" }, text));
  return turn;
}

/** Ask for the answer to the history and the messages that are added to it with the answer. */
async function answer(messages, names, fields) {
  running ??= new AbortController();
  const { signal } = running;
  setBusy(true);
  const system = systemPrompt();
  const earlier = isAlone() && messages[0].role === "user" ? [] : history;
  const body = {
    ...modelFields(byId("adapter")),
    messages: [...(system ? [{ role: "system", content: system }] : []), ...earlier, ...messages],
    ...fields,
    stream: true,
    stream_options: { include_usage: true },
  };
  const allNames = [...(earlier === history ? fileNames : []), ...names];
  const mine = history;
  const shown = new Answer(byId("log"));
  scroller().scrollTop = scroller().scrollHeight;
  let stopped = false;
  try {
    const response = await call("v1/chat/completions", { json: body, signal });
    for await (const chunk of events(response)) shown.take(chunk);
  } catch (error) {
    stopped = signal.aborted && isAbort(error);
    if (!stopped) {
      shown.fail(error.message, () => answer(messages, names, fields));
      return;
    }
  } finally {
    running = null;
    setBusy(false);
  }
  shown.end({ stopped, code: () => chatCode(body, allNames) });
  scroller().scrollTop = scroller().scrollHeight;
  if (mine !== history) return; // a new chat has begun
  history = [...earlier, ...messages, replyMessage(shown)];
  fileNames = allNames;
  if (shown.calls.length && shown.reason === "tool_calls") resultForms(shown, (results) => returnResults(shown.calls, results, fields));
}

function replyMessage({ text, calls }) {
  return calls.length ? { role: "assistant", content: text || null, tool_calls: calls } : { role: "assistant", content: text };
}

function returnResults(calls, results, fields) {
  const messages = calls.map(({ id }, index) => ({ role: "tool", tool_call_id: id, content: results[index] }));
  byId("log").append(userTurn(results.join("\n"), []));
  const { tool_choice: _, ...rest } = fields; // a call that was required has been made
  answer(messages, [], rest);
}

function setBusy(busy) {
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
  if (!busy && (document.activeElement === document.body || document.activeElement === byId("stop"))) byId("prompt").focus();
}

/** The fields for what an adapter chooser shows; without one, those of the model itself. */
export function modelFields(chooser = null) {
  const chosen = chooser?.value ?? "auto";
  if (chosen === "none") return { model: baseModel, adapter: null };
  return { model: chosen === "auto" ? baseModel : chosen };
}

/** Fill the chooser from `/v1/models`. */
export async function loadModels() {
  const { data } = await (await call("v1/models")).json();
  const own = data.filter((model) => !model.parent);
  baseModel = own[0].id;
  byId("served").textContent = own.map((model) => model.id).find((name) => name !== "phi4mm") ?? "";
  const adapters = data.filter((model) => model.parent).map(({ id }) => [id, id]);
  fill(byId("adapter"), [["auto", "Automatic"], ["none", "None"], ...adapters]);
  fill(byId("speech-adapter"), [["auto", "Automatic"], ...adapters]);
}

function fill(chooser, options) {
  const chosen = chooser.value;
  chooser.replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
}

/** The samples that the server has, else what can be done without. */
export function showSamples(samples) {
  byId("note").hidden = !samples.length;
  byId("alone").checked = samples.length > 0; // their model was trained on single questions
  const spoken = samples.filter((one) => one.audio && !one.image).map((one) => ({ ...one, question: "Transcribe the audio clip into text.", words: "Transcribe a recording" }));
  const pictures = samples.filter((one) => one.image);
  const first = pictures.filter((one, index) => pictures.findIndex((other) => other.image === one.image && other.audio === one.audio) === index);
  const cards = [...first, ...spoken.slice(2, 4)].slice(0, SAMPLES).map(sampleCard);
  byId("samples").replaceChildren(...(cards.length ? cards : plainCards()));
}

function sampleCard({ image, audio, question, words }) {
  const mark = () => el("span", { className: "mark" }, icon(image ? "microphone" : "sound"));
  const picture = image ? el("img", { className: "picture", src: `static/samples/${image}`, alt: "" }) : mark();
  const kind = image && audio ? "picture and recording" : (image ?? audio);
  const text = image && audio ? "" : question;
  const run = async () => {
    const files = await Promise.all([image, audio].filter(Boolean).map(sampleFile));
    use(text, files);
  };
  const shown = words ?? (text ? text[0].toUpperCase() + text.slice(1) : "A spoken question");
  return card(el("span", { className: "pair" }, picture, image && audio ? mark() : null), shown, kind, run);
}

function plainCards() {
  const mark = (name) => el("span", { className: "mark" }, icon(name));
  return [
    card(mark("sound"), "Ask about a picture or a recording", "choose a file", () => byId("files").click()),
    card(mark("microphone"), "Ask a question aloud", "record", () => byId("record").click()),
    card(mark("close"), "What is a LoRA adapter?", "text", () => use("In two sentences: what is a LoRA adapter?", [])),
  ];
}

function card(mark, words, kind, onclick) {
  return el("button", { type: "button", className: "sample", onclick }, mark, el("span", {}, el("span", { className: "words" }, words), el("span", { className: "kind" }, kind)));
}

function use(text, files) {
  attach(files);
  byId("prompt").value = text;
  byId("composer").requestSubmit();
}

export async function sampleFile(name) {
  const content = await (await call(`static/samples/${name}`)).blob();
  return new File([content], name, { type: content.type });
}
