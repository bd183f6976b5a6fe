// Files: their kinds, base64, and how they come: chosen, dropped (folders too), pasted.

const AUDIO = /\.(wav|mp3|flac|ogg|oga|opus|m4a|aac|mp4|webm|aiff?|wma)$/i;
const IMAGE = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif)$/i;

/** "image", "audio", or null for what is neither. */
export function kindOf(file) {
  if (file.type.startsWith("image/") || IMAGE.test(file.name)) return "image";
  if (/^(audio|video)\//.test(file.type) || AUDIO.test(file.name)) return "audio";
  return null;
}

export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read; choose it again.`));
    reader.readAsDataURL(file);
  });
}

/** A file as a part of a chat message. */
export async function contentPart(file) {
  const data = await base64(file);
  if (kindOf(file) === "image") {
    return { type: "image_url", image_url: { url: `data:${file.type || "image/png"};base64,${data}` } };
  }
  const format = (file.name.match(/\.(\w+)$/)?.[1] ?? "wav").toLowerCase();
  return { type: "input_audio", input_audio: { data, format } };
}

/** The files of a drop or paste, those in folders with their paths, in the order of their names. */
export async function filesOf(transfer) {
  const entries = [...(transfer.items ?? [])].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return [...transfer.files]; // read before anything is awaited
  const found = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found.sort((one, other) => pathOf(one).localeCompare(pathOf(other), undefined, { numeric: true }));
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.replace(/^\//, "");
    found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // it gives 100 at a time
    if (!some.length) return;
    for (const one of some) await walk(one, found);
  }
}

export function pathOf(file) {
  return file.path || file.webkitRelativePath || file.name;
}
