// Live captions: the microphone over OpenAI's realtime transcription websocket.

import { address, apiKey } from "./api.js";
import { modelFields } from "./chat.js";
import { byId, clock, download, el } from "./dom.js";
import { Microphone, pcm16 } from "./recorder.js";
import { srt } from "./subtitles.js";

const RATE = 16_000; // what the speech tower takes; the server takes others too
const LAST_SECONDS = 20; // that the end of what was spoken may take
let session = null;
let hush = null; // what stands there before anything is spoken
let lines = new Map(); // by item: {start, end, text, isFinal}, and its elements

export function startCaptions() {
  hush = byId("caption-lines").firstElementChild;
  byId("captions-start").addEventListener("click", () => (session ? session.stop() : begin()));
  byId("captions-clear").addEventListener("click", () => clear());
  byId("captions-save").addEventListener("click", () => download("captions.srt", srt([...lines.values()].filter((line) => line.text.trim()))));
}

/** Stops what runs; false where nothing did. */
export function stopCaptions() {
  if (!session) return false;
  session.stop();
  return true;
}

async function begin() {
  session = new Session();
  clear();
  byId("captions-start").textContent = "Stop captions";
  state("Connecting");
  try {
    await session.start();
  } catch (error) {
    session?.fail(error.message);
  }
}

function clear() {
  lines = new Map();
  byId("caption-lines").replaceChildren(session ? "" : hush);
  for (const id of ["captions-save", "captions-clear"]) byId(id).hidden = true;
}

const state = (text) => (byId("captions-state").textContent = text);

class Session {
  sent = 0; // samples
  stopping = false;
  flushed = false; // whether all that was sent stands in lines

  async start() {
    const url = new URL(address("v1/realtime?intent=transcription"));
    url.protocol = url.protocol.replace("http", "ws");
    const key = apiKey.get();
    try {
      this.socket = key ? new WebSocket(url, ["realtime", `openai-insecure-api-key.${key}`]) : new WebSocket(url);
    } catch {
      throw new Error("This key has signs that a browser cannot send over a websocket.");
    }
    this.socket.addEventListener("message", ({ data }) => this.take(JSON.parse(data)));
    await new Promise((resolve, reject) => {
      this.socket.addEventListener("open", resolve);
      this.socket.addEventListener("close", () => reject(new Error("The server opened no connection for captions: it does not offer them, is busy, or asks for a key.")));
    });
    this.socket.addEventListener("close", () => this.closed());
    this.send({
      type: "session.update",
      session: {
        type: "transcription",
        audio: { input: { format: { type: "audio/pcm", rate: RATE }, transcription: { model: modelFields().model }, turn_detection: { type: "server_vad" } } },
      },
    });
    this.microphone = await Microphone.open(RATE, (samples) => this.push(samples));
    if (this.stopping) return this.closed();
    state("Listening");
    return undefined;
  }

  send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  push(samples) {
    drawMeter(samples);
    this.sent += samples.length;
    this.send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...pcm16(samples))) });
  }

  take(event) {
    const kind = event.type.replace("conversation.item.input_audio_transcription.", "");
    const now = this.sent / RATE;
    if (event.type === "input_audio_buffer.speech_started") {
      this.line(event.item_id).start = (event.audio_start_ms ?? now * 1000) / 1000;
    } else if (event.type === "input_audio_buffer.speech_stopped") {
      this.line(event.item_id).end = (event.audio_end_ms ?? now * 1000) / 1000;
    } else if (kind === "delta") {
      const line = this.line(event.item_id);
      line.text += event.delta;
      line.draw();
    } else if (kind === "completed") {
      const line = this.line(event.item_id);
      [line.text, line.isFinal] = [event.transcript, true];
      line.draw();
      this.endIfDone();
    } else if (kind === "failed") {
      this.line(event.item_id).isFinal = true;
      state(event.error.message);
      this.endIfDone();
    } else if (event.type === "input_audio_buffer.committed") {
      this.line(event.item_id);
      this.flushed = this.stopping;
    } else if (event.type === "error") {
      this.flushed = this.stopping; // nothing was left to be committed
      if (!this.stopping) state(event.error.message);
      this.endIfDone();
    }
  }

  line(id) {
    if (lines.has(id)) return lines.get(id);
    const words = el("span");
    const time = el("time");
    const row = el("p", { className: "caption open" }, time, words);
    const now = this.sent / RATE;
    const line = { start: now, end: now, text: "", isFinal: false };
    line.draw = () => {
      if (!line.isFinal) line.end = Math.max(line.end, this.sent / RATE);
      time.textContent = clock(line.start);
      words.textContent = line.text;
      row.classList.toggle("open", !line.isFinal);
      if (!row.isConnected && line.text.trim()) byId("caption-lines").append(row);
      row.scrollIntoView({ block: "nearest" });
    };
    lines.set(id, line);
    return line;
  }

  /** Send what is left and wait for its text. */
  async stop() {
    if (this.stopping) return this.closed();
    this.stopping = true;
    state("Finishing");
    await this.microphone?.close();
    if (this.socket.readyState !== WebSocket.OPEN) return this.closed();
    this.send({ type: "input_audio_buffer.commit" });
    this.timer = setTimeout(() => this.closed(), LAST_SECONDS * 1000);
    return undefined;
  }

  endIfDone() {
    if (this.flushed && [...lines.values()].every((line) => line.isFinal)) this.closed();
  }

  fail(message) {
    this.closed();
    state(message);
  }

  closed() {
    if (session !== this) return;
    session = null;
    clearTimeout(this.timer);
    if (!this.stopping) this.microphone?.release();
    this.socket?.close();
    byId("captions-start").textContent = "Start captions";
    state(this.stopping ? "" : "The connection was closed.");
    drawMeter([]);
    const isEmpty = ![...lines.values()].some((line) => line.text.trim());
    for (const id of ["captions-save", "captions-clear"]) byId(id).hidden = isEmpty;
    if (isEmpty) byId("caption-lines").replaceChildren(hush);
  }
}

const levels = [];

/** The last few seconds' loudness. */
function drawMeter(samples) {
  const canvas = byId("meter");
  const context = canvas.getContext("2d");
  if (samples.length) levels.push(Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length));
  else levels.length = 0;
  const bars = Math.floor(canvas.width / 8);
  levels.splice(0, levels.length - bars);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = getComputedStyle(byId("captions-start")).backgroundColor;
  levels.forEach((level, index) => {
    const height = Math.max(3, Math.min(1, level * 5) * canvas.height);
    context.fillRect((bars - levels.length + index) * 8, (canvas.height - height) / 2, 4, height);
  });
}
