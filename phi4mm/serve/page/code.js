// A request as a curl command and as Python, with the files read from disk instead of their base64.

import { address, apiKey } from "./api.js";
import { byId, toast } from "./dom.js";

const EXTRA = new Set(["top_k", "min_p", "repetition_penalty", "regex", "grammar", "adapter"]); // not in OpenAI's client
let shown = { curl: "", python: "" };

/** A request's body in which the names of files, in their order, stand for the files' content. */
function withFiles(body, names) {
  let next = 0;
  const named = (before) => ({ before, file: names[next++] ?? "file" });
  const messages = body.messages.map((message) => {
    if (!Array.isArray(message.content)) return message;
    const content = message.content.map((part) => {
      if (part.type === "image_url") {
        const head = part.image_url.url.slice(0, part.image_url.url.indexOf(",") + 1);
        return { ...part, image_url: { url: named(head) } };
      }
      if (part.type === "input_audio") return { ...part, input_audio: { ...part.input_audio, data: named("") } };
      return part;
    });
    return { ...message, content };
  });
  return { ...body, messages };
}

const isFile = (value) => value !== null && typeof value === "object" && "file" in value && "before" in value;
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function chatCode(body, names) {
  const { stream: _, stream_options: __, ...rest } = body;
  const request = withFiles(rest, names);
  return { curl: chatCurl(request), python: chatPython(request) };
}

function chatCurl(request) {
  const files = [];
  const mark = (index) => `@@file-${index}@@`;
  const json = JSON.stringify(request, (_, value) => (isFile(value) ? value.before + mark(files.push(value.file) - 1) : value), 2);
  const head = [`curl ${shell(address("v1/chat/completions"))} \\`, '  -H "Content-Type: application/json" \\'];
  if (apiKey.get()) head.push('  -H "Authorization: Bearer $OPENAI_API_KEY" \\');
  if (!files.length) return [...head, `  -d ${shell(json)}`].join("\n");
  const escaped = json.replace(/[\\$`]/g, "\\$&"); // in a here-document the shell reads these
  const filled = files.reduce((text, file, index) => text.replace(mark(index), () => `$(base64 < ${shell(file)} | tr -d '\\n')`), escaped);
  return [...head, "  -d @- <<EOF", filled, "EOF"].join("\n");
}

function chatPython(request) {
  const { model, messages, ...options } = request;
  const extra = Object.fromEntries(Object.entries(options).filter(([name]) => EXTRA.has(name)));
  const known = Object.entries(options).filter(([name]) => !EXTRA.has(name));
  const files = JSON.stringify(messages).includes('"file":');
  const lines = [];
  if (files) lines.push("from base64 import b64encode", "from pathlib import Path", "");
  lines.push("from openai import OpenAI", "");
  lines.push(...client());
  if (files) lines.push("", "", "def encoded(path):", '    return b64encode(Path(path).read_bytes()).decode()', "", "");
  lines.push("reply = client.chat.completions.create(", `    model=${python(model, 1)},`, `    messages=${python(messages, 1)},`);
  for (const [name, value] of known) lines.push(`    ${name}=${python(value, 1)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, 1)},`);
  lines.push(")", request.tools ? "print(reply.choices[0].message)" : "print(reply.choices[0].message.content)");
  return lines.join("\n");
}

function client() {
  const base = JSON.stringify(address("v1"));
  return apiKey.get() ? [`client = OpenAI(base_url=${base})  # the key is taken from OPENAI_API_KEY`] : [`client = OpenAI(base_url=${base}, api_key="none")`];
}

export function transcriptionCode({ task, fields }, name) {
  const given = fields.filter(([field, value]) => field !== "stream" && !(value instanceof File));
  const curl = [`curl ${shell(address(`v1/audio/${task}`))} \\`];
  if (apiKey.get()) curl.push('  -H "Authorization: Bearer $OPENAI_API_KEY" \\');
  curl.push(`  -F ${shell(`file=@"${name}"`)} \\`, given.map(([field, value]) => `  --form-string ${shell(`${field}=${value}`)}`).join(" \\\n"));
  const grouped = {};
  for (const [field, value] of given) {
    if (field.endsWith("[]")) (grouped[field.slice(0, -2)] ??= []).push(value);
    else grouped[field] = value;
  }
  if (task === "translations") grouped.extra_body = take(grouped, ["to"]);
  const options = Object.entries(grouped).filter(([, value]) => value !== undefined);
  const text = [
    "from pathlib import Path", "", "from openai import OpenAI", "", ...client(), `reply = client.audio.${task}.create(`, `    file=Path(${python(name, 1)}),`,
    ...options.map(([field, value]) => `    ${field}=${python(value, 1)},`), ")", "print(reply.text)",
  ];
  return { curl: curl.join("\n"), python: text.join("\n") };
}

function take(fields, names) {
  const found = names.filter((name) => name in fields).map((name) => [name, fields[name]]);
  for (const name of names) delete fields[name];
  return found.length ? Object.fromEntries(found) : undefined;
}

/** JSON as a Python expression. */
function python(value, depth) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (isFile(value)) return value.before ? `${JSON.stringify(value.before)} + encoded(${JSON.stringify(value.file)})` : `encoded(${JSON.stringify(value.file)})`;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((one) => python(one, depth + 1))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, depth + 1)}`);
  const line = open + items.join(", ") + close;
  if (line.length + depth * 4 < 100 && !line.includes("\n")) return line;
  const pad = "    ".repeat(depth);
  return `${open}\n${items.map((item) => `${pad}    ${item},\n`).join("")}${pad}${close}`;
}

export function showCode(code) {
  shown = code;
  choose("curl");
  byId("code-dialog").showModal();
}

function choose(language) {
  byId("code").textContent = shown[language];
  for (const one of ["curl", "python"]) byId(`code-${one}`).setAttribute("aria-pressed", String(one === language));
}

export function startCode() {
  byId("code-curl").addEventListener("click", () => choose("curl"));
  byId("code-python").addEventListener("click", () => choose("python"));
  byId("code-close").addEventListener("click", () => byId("code-dialog").close());
  byId("code-copy").addEventListener("click", () => copy(byId("code").textContent));
}

/** To the clipboard, which browsers give to pages over https or on localhost only. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser keeps the clipboard from this page: select the text and copy it.");
  }
}
