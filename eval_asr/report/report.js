"use strict";
// The list of clips. All text is put in as text, never as markup. Only one page of clips is in the document at a time.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 25;
  const [EQUAL, SUBSTITUTE, DELETE, INSERT] = [0, 1, 2, 3];
  const $ = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clips = data.clips.map((clip, order) => {
    const [hits, sub, del, ins] = clip.errors;
    const words = hits + sub + del;
    const total = sub + del + ins;
    return { ...clip, order, sub, del, ins, words, total, rate: words ? total / words : total ? Infinity : 0 };
  });
  const haystack = (clip) =>
    (clip.haystack ??= [clip.name, clip.text, clip.pred, ...clip.pieces.flatMap((piece) => piece.slice(1))]
      .join("\n").toLowerCase());

  const sorts = {
    errors: (a, b) => b.total - a.total || b.rate - a.rate,
    rate: (a, b) => (a.rate === b.rate ? 0 : b.rate - a.rate) || b.total - a.total,
    longest: (a, b) => b.duration - a.duration,
    shortest: (a, b) => a.duration - b.duration,
    slowest: (a, b) => b.time / (b.duration || 1) - a.time / (a.duration || 1),
    order: () => 0,
  };
  const shows = {
    all: () => true,
    wrong: (clip) => clip.total > 0,
    right: (clip) => clip.total === 0,
    sub: (clip) => clip.sub > 0,
    del: (clip) => clip.del > 0,
    ins: (clip) => clip.ins > 0,
    failed: (clip) => clip.error !== null,
  };
  let pair = null;
  let shown = [];
  let page = 0;

  const samePiece = (piece) => piece.length === pair.length && piece.every((value, index) => value === pair[index]);

  const choose = () => {
    const words = $("search").value.trim().toLowerCase();
    const set = $("set").value;
    const show = shows[$("show").value];
    shown = clips.filter((clip) =>
      (set === "" || clip.set === Number(set)) && show(clip) &&
      (pair === null || clip.pieces.some(samePiece)) && (words === "" || haystack(clip).includes(words)));
    const sort = sorts[$("sort").value];
    shown.sort((a, b) => sort(a, b) || a.order - b.order);
    page = 0;
    drawCommon(set === "" ? data.commonOfAll : data.common[Number(set)]);
    draw();
  };

  const drawCommon = (common) => {
    $("common").replaceChildren(...common.map(({ piece, count }) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.append(pieceElement(piece));
      button.addEventListener("click", () => { pair = piece; choose(); $("list").scrollIntoView({ block: "start" }); });
      item.append(make("span", "count", `${count} ×`), button);
      return item;
    }));
    if (!common.length) $("common").append(make("li", "quiet", "none"));
  };

  // A substitution and an equal compound ("white paper", "whitepaper") have two texts, other pieces one.
  const pieceElement = ([kind, text, other]) => {
    if (kind === EQUAL && other === undefined) return document.createTextNode(text);
    if (kind === EQUAL) {
      const joined = make("span", "joined", text);
      joined.title = `“${other}” was recognised, which the scoring rules take for the same`;
      return joined;
    }
    const element = make("span", "e " + ["", "sub", "del", "ins"][kind]);
    if (kind === SUBSTITUTE) {
      element.title = `“${text}” was recognised as “${other}”`;
      element.append(make("del", "", text), make("ins", "", other));
    } else if (kind === DELETE) {
      element.title = `“${text}” was left out`;
      element.append(make("del", "", text));
    } else {
      element.title = `“${text}” was put in`;
      element.append(make("ins", "", text));
    }
    return element;
  };

  const clipElement = (clip) => {
    const article = make("article", "clip");
    const header = make("header");
    const rate = Number.isFinite(clip.rate) ? `${(100 * clip.rate).toFixed(1)} %` : "no words in the reference";
    header.append(make("b", "", `${clip.total} ${clip.total === 1 ? "error" : "errors"}`));
    header.append(make("span", "", `${rate} of ${clip.words} ${clip.words === 1 ? "word" : "words"}`));
    header.append(make("span", "", `${clip.duration.toFixed(1)} s`));
    if (data.sets.length > 1) header.append(make("span", "", data.sets[clip.set]));
    header.append(make("span", "name", clip.name));
    article.append(header);
    if (clip.error !== null) article.append(make("p", "failed", `Failed: ${clip.error}`));
    const line = make("p", "words-line");
    line.dir = "auto";
    clip.pieces.forEach((piece, index) => {
      if (index) line.append(" ");
      line.append(pieceElement(piece));
    });
    if (!clip.pieces.length) line.append(make("span", "quiet", "no words in the reference, none recognised"));
    article.append(line);
    if (clip.audio !== null) {
      const audio = make("audio");
      audio.controls = true;
      audio.preload = "none";
      audio.src = clip.audio;
      article.append(audio);
    }
    const details = make("details");
    details.append(make("summary", "", "As written"));
    for (const [title, text] of [["Reference", clip.text], ["Recognised", clip.pred]]) {
      const paragraph = make("p");
      paragraph.append(make("b", "", `${title}: `), make("span", "", text));
      paragraph.dir = "auto";
      details.append(paragraph);
    }
    article.append(details);
    return article;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    const from = page * PAGE;
    $("clips").replaceChildren(...shown.slice(from, from + PAGE).map(clipElement));
    const range = shown.length ? `${from + 1}–${Math.min(from + PAGE, shown.length)} of ${shown.length}` : "no clips";
    for (const span of document.querySelectorAll(".where")) span.textContent = range;
    for (const button of document.querySelectorAll(".back")) button.disabled = page === 0;
    for (const button of document.querySelectorAll(".on")) button.disabled = page + 1 >= pages;
    $("pair").hidden = pair === null;
    if (pair !== null) $("pair").replaceChildren("Only clips with ", pieceElement(pair), " ✕");
  };

  const turn = (step) => {
    page += step;
    draw();
    $("list").scrollIntoView({ block: "start" });
  };
  for (const button of document.querySelectorAll(".back")) button.addEventListener("click", () => turn(-1));
  for (const button of document.querySelectorAll(".on")) button.addEventListener("click", () => turn(1));
  for (const id of ["set", "show", "sort"]) $(id).addEventListener("change", choose);
  $("search").addEventListener("input", choose);
  $("pair").addEventListener("click", () => { pair = null; choose(); });

  choose();
})();
