// The Markdown that models write, as elements: paragraphs, headings, lists, quotes, code, emphasis and web links.

import { el } from "./dom.js";

const FENCE = /^\s*```(\w*)\s*$/;
const HEADING = /^#{1,6}\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*\d+[.)]\s+(.*)$/;
const QUOTE = /^>\s?(.*)$/;
const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

/** Elements for a text that may still be growing. */
export function markdown(text) {
  const lines = text.split("\n");
  const blocks = [];
  let place = 0;
  while (place < lines.length) {
    const line = lines[place];
    if (FENCE.test(line)) {
      const code = [];
      while (++place < lines.length && !FENCE.test(lines[place])) code.push(lines[place]);
      place++;
      blocks.push(el("pre", { tabIndex: 0 }, el("code", {}, code.join("\n"))));
    } else if (HEADING.test(line)) {
      blocks.push(el("h3", {}, ...inline(line.match(HEADING)[1])));
      place++;
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      const pattern = BULLET.test(line) ? BULLET : NUMBER;
      const list = el(pattern === BULLET ? "ul" : "ol");
      for (; place < lines.length && pattern.test(lines[place]); place++) list.append(el("li", {}, ...inline(lines[place].match(pattern)[1])));
      blocks.push(list);
    } else if (QUOTE.test(line)) {
      const quoted = [];
      for (; place < lines.length && QUOTE.test(lines[place]); place++) quoted.push(lines[place].match(QUOTE)[1]);
      blocks.push(el("blockquote", {}, ...broken(quoted)));
    } else if (!line.trim()) {
      place++;
    } else {
      const paragraph = [];
      for (; place < lines.length && isText(lines[place]); place++) paragraph.push(lines[place]);
      blocks.push(el("p", {}, ...broken(paragraph)));
    }
  }
  return blocks;
}

function isText(line) {
  return line.trim() && ![FENCE, HEADING, BULLET, NUMBER, QUOTE].some((pattern) => pattern.test(line));
}

function broken(lines) {
  return lines.flatMap((line, index) => (index ? [el("br"), ...inline(line)] : inline(line)));
}

function inline(text) {
  const parts = [];
  for (let match; (match = text.match(INLINE)); text = text.slice(match.index + match[0].length)) {
    const [, code, strong, emphasis, label, url] = match;
    parts.push(text.slice(0, match.index));
    if (code) parts.push(el("code", {}, code));
    else if (strong) parts.push(el("strong", {}, strong));
    else if (emphasis) parts.push(el("em", {}, emphasis));
    else parts.push(el("a", { href: url, rel: "noopener noreferrer", target: "_blank" }, label));
  }
  parts.push(text);
  return parts;
}
