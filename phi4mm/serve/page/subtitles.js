// Subtitles and tables as text.

function stamp(seconds, mark) {
  const whole = Math.round(seconds * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const rest = String(whole % 1000).padStart(3, "0");
  return `${two(Math.floor(whole / 3_600_000))}:${two(Math.floor(whole / 60_000) % 60)}:${two(Math.floor(whole / 1000) % 60)}${mark}${rest}`;
}

const line = ({ text, speaker }) => (speaker ? `${speaker}: ` : "") + text.trim().replaceAll("-->", "->");

/** @param segments of `{start, end, text, speaker?}`, seconds */
export function srt(segments) {
  return segments.map((one, index) => `${index + 1}\n${stamp(one.start, ",")} --> ${stamp(one.end, ",")}\n${line(one)}\n`).join("\n");
}

export function vtt(segments) {
  return ["WEBVTT\n", ...segments.map((one) => `${stamp(one.start, ".")} --> ${stamp(one.end, ".")}\n${line(one)}\n`)].join("\n");
}

/** Rows of values as CSV that spreadsheets take: a cell that would be run as a formula is quoted as text. */
export function csv(rows) {
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = /^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
