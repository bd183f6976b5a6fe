// Begins everything, and holds what the three panels share: tabs, theme, key, settings, drops, Escape.

import { apiKey, call, onKeyNeeded } from "./api.js";
import { startCaptions, stopCaptions } from "./captions.js";
import { attach, loadModels, showSamples, startChat, stopAnswer } from "./chat.js";
import { startCode } from "./code.js";
import { announce, byId, toast } from "./dom.js";
import { filesOf } from "./media.js";
import { startSettings } from "./settings.js";
import { showAudioSamples, startTranscribe, stopTranscription, transcribe } from "./transcribe.js";

const TABS = ["chat", "transcribe", "captions"];

function startTabs() {
  const choose = (name, focus) => {
    for (const one of TABS) {
      const isChosen = one === name;
      byId(one).hidden = !isChosen;
      byId(`tab-${one}`).setAttribute("aria-selected", String(isChosen));
      byId(`tab-${one}`).tabIndex = isChosen ? 0 : -1;
    }
    if (focus) byId(`tab-${name}`).focus();
    window.history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
    byId("settings-button").hidden = name !== "chat";
    if (name !== "chat") closeSettings(false);
  };
  TABS.forEach((name, index) => {
    byId(`tab-${name}`).addEventListener("click", () => choose(name));
    byId(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) choose(TABS[(index + step + TABS.length) % TABS.length], true);
    });
  });
  const asked = location.hash.slice(1);
  choose(TABS.includes(asked) ? asked : "chat");
}

function startTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => byId("theme-button").setAttribute("aria-pressed", String(isDark()));
  byId("theme-button").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("phi4mm-theme", root.dataset.theme);
    } catch {
      // storage is turned off: it holds until the page is left
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function openSettings(field) {
  byId("settings").hidden = false;
  byId("settings-button").setAttribute("aria-expanded", "true");
  (field ?? byId("system")).focus();
}

function closeSettings(focus = true) {
  byId("settings").hidden = true;
  byId("settings-button").setAttribute("aria-expanded", "false");
  if (focus) byId("settings-button").focus();
}

function startKey() {
  const dialog = byId("key-dialog");
  const ask = (problem) =>
    new Promise((resolve) => {
      byId("key-problem").textContent = problem;
      byId("key").value = "";
      byId("key-button").hidden = false;
      dialog.returnValue = "";
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? byId("key").value.trim() : null), { once: true });
      dialog.showModal();
    });
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-button").addEventListener("click", async () => {
    const given = await ask("");
    if (given === null) return;
    apiKey.set(given);
    greet();
  });
  byId("key-button").hidden = !apiKey.get();
  onKeyNeeded(ask);
}

function startDrops() {
  let depth = 0; // a child's enter comes before its parent's leave
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (isOver) => {
    byId("veil").hidden = !isOver || byId("chat").hidden;
    byId("drop").classList.toggle("over", isOver);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && show(++depth > 0));
  document.addEventListener("dragleave", (event) => hasFiles(event) && show(--depth > 0));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    take(event.dataTransfer);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return; // text goes where it is pasted
    event.preventDefault();
    take(event.clipboardData);
  });
}

/** Files are attached in the chat, and transcribed elsewhere. */
async function take(transfer) {
  try {
    const files = await filesOf(transfer);
    if (byId("chat").hidden) {
      byId("tab-transcribe").click();
      await transcribe(files);
    } else {
      attach(files);
      byId("prompt").focus();
    }
  } catch (error) {
    toast(`These files cannot be read: ${error.message}`);
  }
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (stopAnswer() || stopTranscription() || stopCaptions()) announce("Stopped.");
    else if (!byId("settings").hidden) closeSettings();
  });
}

/** What the server says about itself. */
async function greet() {
  try {
    await loadModels();
    byId("key-button").hidden = !apiKey.get();
  } catch (error) {
    toast(error.message);
  }
}

async function greetWithSamples() {
  const { samples } = await (await call("static/samples/index.json")).json();
  showSamples(samples);
  showAudioSamples(samples);
}

startTheme();
startKey();
startTabs();
startSettings();
startCode();
startChat({ openSettings });
startTranscribe();
startCaptions();
startDrops();
startKeys();
byId("settings-button").addEventListener("click", () => (byId("settings").hidden ? openSettings() : closeSettings()));
byId("settings-close").addEventListener("click", () => closeSettings());
greetWithSamples().catch((error) => toast(error.message));
greet();
if (!byId("chat").hidden && matchMedia("(pointer: fine)").matches) byId("prompt").focus();
