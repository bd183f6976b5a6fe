// One answer on the page: its text as it comes, tool calls, and how it was made.

import { announce, byId, el } from "./dom.js";
import { markdown } from "./markdown.js";
import { copy, showCode } from "./code.js";

const LEAST_SECONDS = 0.002; // between the first and the last token, for a speed: a shorter time is that of one read

export class Answer {
  constructor(log) {
    this.text = "";
    this.calls = [];
    this.box = el("div", { className: "text" });
    this.facts = el("div", { className: "facts" });
    this.turn = el("article", { className: "turn assistant busy", "aria-label": "Answer", "aria-busy": "true" }, this.box, this.facts);
    this.began = performance.now();
    log.append(this.turn);
  }

  /** Take a chunk of the stream. */
  take(chunk) {
    if (chunk.route) this.route = chunk.route;
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    const [choice] = chunk.choices;
    if (!choice) return;
    if (choice.finish_reason) [this.reason, this.last] = [choice.finish_reason, performance.now()];
    if (choice.delta.content) this.text += choice.delta.content;
    for (const part of choice.delta.tool_calls ?? []) this.takeCall(part);
    if (choice.delta.content || choice.delta.tool_calls) {
      this.last = performance.now();
      this.first ??= this.last;
      this.drawing ??= requestAnimationFrame(() => this.draw());
    }
  }

  takeCall({ index, id, function: { name, arguments: text } }) {
    this.calls[index] ??= { id, type: "function", function: { name, arguments: "" } };
    this.calls[index].function.arguments += text;
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = undefined;
    const scroller = byId("scroller");
    const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    this.box.replaceChildren(...(this.isJson() ? [el("pre", { tabIndex: 0 }, el("code", {}, this.text))] : markdown(this.text)));
    for (const call of this.calls) this.box.append(callCard(call));
    if (follows) scroller.scrollTop = scroller.scrollHeight;
  }

  isJson() {
    return /^\s*[{[]/.test(this.text);
  }

  /** The answer is complete, or was stopped. `code` is called for the request as code. */
  end({ stopped, code }) {
    if (!stopped && this.isJson()) this.pretty();
    this.settle();
    const seconds = (this.last - this.first) / 1000;
    const shown = [];
    if (this.route) shown.push(...routeChips(this.route));
    if (this.first) shown.push(el("span", {}, `first token ${duration((this.first - this.began) / 1000)}`));
    if (this.tokens > 1 && seconds > LEAST_SECONDS) shown.push(el("span", { className: "speed" }, `${rate((this.tokens - 1) / seconds)} tokens/s`));
    if (this.tokens) shown.push(el("span", {}, `${this.tokens} token${this.tokens === 1 ? "" : "s"}`));
    if (stopped) shown.push(el("span", {}, "stopped"));
    if (this.reason === "length") shown.push(el("span", {}, "ended by the token limit"));
    const actions = el("span", { className: "actions" });
    if (this.text) actions.append(el("button", { type: "button", className: "quiet", onclick: () => copy(this.text) }, "Copy"));
    actions.append(el("button", { type: "button", className: "quiet code", onclick: () => showCode(code()) }, "Code"));
    this.facts.replaceChildren(...shown, actions);
    announce(stopped ? "Stopped." : "");
  }

  pretty() {
    try {
      this.text = JSON.stringify(JSON.parse(this.text), null, 2);
    } catch {
      // it begins like JSON, but is not
    }
  }

  fail(message, again) {
    this.settle();
    this.box.hidden = !this.box.hasChildNodes();
    const button = el("button", { type: "button", onclick: () => (this.turn.remove(), again()) }, "Try again");
    this.facts.replaceWith(el("div", { className: "problem", role: "alert" }, el("span", {}, message), button));
  }

  settle() {
    this.draw();
    this.turn.classList.remove("busy");
    this.turn.setAttribute("aria-busy", "false");
  }
}

function callCard({ function: { name, arguments: text } }) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // not all of it is here yet
  }
  return el("div", { className: "call" }, el("h3", {}, "Calls ", el("code", {}, name ?? "")), el("pre", {}, shown));
}

/** Fields for the results of an answer's tool calls, which are handed on once each has one. */
export function resultForms(answer, onResults) {
  const inputs = answer.calls.map(({ function: { name } }) => el("input", { required: true, placeholder: `What ${name} returns`, "aria-label": `Result of ${name}` }));
  const form = el("form", { className: "results", onsubmit: (event) => (event.preventDefault(), form.remove(), onResults(inputs.map((input) => input.value))) });
  form.append(...inputs, el("button", { type: "submit" }, inputs.length > 1 ? "Return results" : "Return result"));
  answer.turn.append(form);
}

function routeChips({ adapters, audio_projector: projector }) {
  if (!adapters.length) return [el("span", { className: "route", title: "No adapter was applied" }, "no adapter")];
  return adapters.map((name) => {
    const known = name === "speech" || name === "vision";
    const title = `Adapter ${name}` + (projector ? `; audio by the ${projector} projector` : "");
    return el("span", { className: `route ${known ? name : "other"}`, title }, name);
  });
}

export function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

function rate(number) {
  return number < 10 ? number.toFixed(1) : String(Math.round(number));
}
