// The server's public endpoints: keys, errors in plain words, events of streams.

const KEY = "phi4mm-api-key";
let askForKey = async () => null;

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** `ask(problem)` resolves to a key, or to null where none is given. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const address = (path) => new URL(path, document.baseURI).href;

/**
 * Call an endpoint; where a key is missing it is asked for, and the call is made again.
 * @throws {ServerError} in plain words; an aborted call throws the browser's AbortError.
 */
export async function call(path, { json, form, signal } = {}) {
  for (;;) {
    const sent = apiKey.get();
    const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
    if (json !== undefined) headers["Content-Type"] = "application/json";
    const body = json === undefined ? form : JSON.stringify(json);
    let response;
    try {
      response = await fetch(address(path), { method: body === undefined ? "GET" : "POST", headers, body, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError("The server cannot be reached. See whether it still runs, then try again.");
    }
    if (response.ok) return response;
    if (response.status === 401 && (apiKey.get() !== sent || (await replaced(sent)))) continue;
    throw await problem(response);
  }
}

let asking = null; // one dialog for all calls that wait for a key

async function replaced(sent) {
  asking ??= askForKey(sent ? "The server did not take that key." : "").finally(() => (asking = null));
  const given = await asking;
  if (given) apiKey.set(given);
  return Boolean(given);
}

async function problem(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    said = response.statusText;
  }
  return new ServerError(inWords(response.status, said, response.headers.get("retry-after")), response.status);
}

export function inWords(status, said, retryAfter = null) {
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : " Try again in a moment.";
  if (status === 401) return "This server asks for an API key, and none that it takes was given.";
  if (status === 404 && said === "Not Found") return "This server does not offer this.";
  if (status === 413) return `That is too large for this server: ${said}.`;
  if (status === 429) return `The server is busy.${wait}`;
  if (status === 503) return `The server takes no requests now.${wait}`;
  if (status >= 500) return `The server failed: ${said || "it gave no reason"}.`;
  return sentence(said) || `The server refused this (${status}).`;
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed && trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** The JSON of each event of a stream, until `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError("The connection was lost before the answer was complete.");
      const blocks = (held + value).split("\n\n");
      held = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(inWords(event.error.code === "unavailable" ? 503 : 400, event.error.message ?? ""));
        yield event;
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new ServerError("The connection was lost before the answer was complete.") : error;
  } finally {
    reader.cancel().catch(() => {}); // it may have ended by itself
  }
}
