// The microphone: chunks of samples as they come, or a wav file at the end.

import { address } from "./api.js";

const RECORDING_RATE = 16_000; // what the speech tower takes

/** Why the microphone cannot be used, in plain words. */
function inWords(error) {
  if (error.name === "NotAllowedError") return "The browser was not allowed to use the microphone. Allow it in the address bar, then try again.";
  if (error.name === "NotFoundError") return "There is no microphone.";
  if (error.name === "NotReadableError") return "The microphone is in use by another program.";
  return `The microphone cannot be used: ${error.message}`;
}

export class Microphone {
  /**
   * @param rate samples a second that are handed on
   * @param onSamples called with a Float32Array about ten times a second
   */
  static async open(rate, onSamples) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give pages the microphone over https or on localhost only. Open the page by one of these.");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, autoGainControl: true } });
    } catch (error) {
      throw new Error(inWords(error));
    }
    const microphone = new Microphone(stream);
    try {
      await microphone.start(rate, onSamples);
    } catch (error) {
      microphone.release();
      throw error;
    }
    return microphone;
  }

  constructor(stream) {
    this.stream = stream;
    this.context = new AudioContext();
  }

  async start(rate, onSamples) {
    await this.context.audioWorklet.addModule(address("static/recorder-worklet.js"));
    this.node = new AudioWorkletNode(this.context, "resampler", { numberOfOutputs: 0, processorOptions: { rate } });
    this.ended = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => (data === null ? resolve() : onSamples(data));
    });
    this.context.createMediaStreamSource(this.stream).connect(this.node);
    await this.context.resume();
  }

  /** Stop, once the last samples have been handed on. */
  async close() {
    this.node.port.postMessage("end");
    await this.ended;
    this.release();
  }

  release() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

export class Recording {
  static async begin(onSeconds) {
    const recording = new Recording();
    recording.microphone = await Microphone.open(RECORDING_RATE, (samples) => {
      recording.chunks.push(samples);
      recording.length += samples.length;
      onSeconds(recording.length / RECORDING_RATE);
    });
    return recording;
  }

  chunks = [];
  length = 0;

  /** The recording as a file: 16-bit wav, one channel. */
  async end() {
    await this.microphone.close();
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
    return new File([wav(this.chunks, RECORDING_RATE)], `recording ${time}.wav`, { type: "audio/wav" });
  }
}

/** Little-endian 16-bit samples. */
export function pcm16(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  samples.forEach((sample, index) => view.setInt16(index * 2, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true));
  return new Uint8Array(view.buffer);
}

function wav(chunks, rate) {
  const bodies = chunks.map(pcm16);
  const size = bodies.reduce((sum, body) => sum + body.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (place, word) => [...word].forEach((letter, index) => head.setUint8(place + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, 1, true); // one channel
  head.setUint32(24, rate, true);
  head.setUint32(28, rate * 2, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head.buffer, ...bodies], { type: "audio/wav" });
}

/** A button that begins and ends a recording, which is handed to `onFile`. */
export function recordButton(button, label, onFile, onProblem) {
  let recording = null;
  let busy = false;
  const show = (seconds) => (label.textContent = `Recording ${seconds.toFixed(1)} s`);
  const press = async () => {
    if (busy) return;
    busy = true;
    try {
      if (recording) {
        const ending = recording;
        recording = null;
        onFile(await ending.end());
      } else {
        recording = await Recording.begin(show);
        show(0);
      }
    } catch (error) {
      onProblem(error.message);
    } finally {
      busy = false;
      button.setAttribute("aria-pressed", String(Boolean(recording)));
      if (button.ariaLabel) button.ariaLabel = button.title = recording ? "Stop recording" : "Record from the microphone";
      else button.textContent = recording ? "Stop recording" : "Record";
      if (!recording) label.textContent = "";
    }
  };
  button.addEventListener("click", press);
  /** Ends what runs; false where nothing did. */
  const stop = () => Boolean(recording && press());
  return { isRecording: () => Boolean(recording), stop };
}
