// The settings: what they add to a chat request, and whether they can be sent.

import { byId } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_completion_tokens", "seed", "repetition_penalty"];
const TOOLS = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "The weather of a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const SCHEMA = {
  type: "object",
  properties: { shape: { enum: ["circle", "square", "triangle"] }, color: { type: "string", maxLength: 20 } },
  required: ["shape", "color"],
  additionalProperties: false,
};

/** Where a setting is wrong; `field` is the element to go to. */
export class SettingsError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export function startSettings() {
  byId("output").addEventListener("change", showConstraint);
  byId("tools-example").addEventListener("click", () => fill("tools", TOOLS));
  byId("schema-example").addEventListener("click", () => {
    byId("output").value = "json_schema";
    showConstraint();
    fill("constraint", SCHEMA);
  });
  for (const id of ["tools", "constraint"]) byId(id).addEventListener("input", () => (byId(`${id}-error`).textContent = ""));
  byId("settings-reset").addEventListener("click", () => {
    for (const field of byId("settings").querySelectorAll("input:not([type=checkbox]), textarea")) field.value = "";
    byId("alone").checked = false;
    byId("tool_choice").value = "auto";
    byId("output").value = "text";
    showConstraint();
  });
  showConstraint(); // a browser may have kept what was chosen
}

function fill(id, value) {
  byId(id).value = JSON.stringify(value, null, 2);
  byId(`${id}-error`).textContent = "";
}

function showConstraint() {
  const kind = byId("output").value;
  byId("constraint-label").hidden = kind !== "json_schema" && kind !== "regex";
  byId("constraint-name").textContent = kind === "regex" ? "Regular expression" : "JSON schema";
  byId("constraint-error").textContent = "";
}

/** Whether earlier messages are left out. */
export const isAlone = () => byId("alone").checked;

export const systemPrompt = () => byId("system").value.trim();

/**
 * Fields of the request.
 * @throws {SettingsError} a box holds what cannot be sent.
 */
export function settingFields() {
  const fields = {};
  for (const name of NUMBERS) {
    const field = byId(name);
    if (!field.checkValidity()) throw new SettingsError(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`, field);
    if (field.value !== "") fields[name] = Number(field.value);
  }
  if (byId("stop_at").value) fields.stop = [byId("stop_at").value];
  if (byId("tools").value.trim()) {
    const tools = parsed("tools", "Tools");
    if (!Array.isArray(tools)) throw wrong("tools", "Tools: expected a list in [ ].");
    fields.tools = tools;
    fields.tool_choice = byId("tool_choice").value;
  }
  return { ...fields, ...outputFields() };
}

function outputFields() {
  const kind = byId("output").value;
  if (kind === "json_object") return { response_format: { type: "json_object" } };
  if (kind === "json_schema") {
    return { response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parsed("constraint", "JSON schema") } } };
  }
  if (kind === "regex") {
    if (!byId("constraint").value) throw wrong("constraint", "Write a regular expression, or choose Text.");
    return { regex: byId("constraint").value };
  }
  return {};
}

function parsed(id, what) {
  try {
    return JSON.parse(byId(id).value);
  } catch (error) {
    throw wrong(id, `${what}: this is not JSON (${error.message}).`);
  }
}

function wrong(id, message) {
  byId(`${id}-error`).textContent = message;
  return new SettingsError(message, byId(id));
}
