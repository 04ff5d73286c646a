// The pictures of what the model computes, as SVG and canvas elements.

import { svg, visible, vars, percent, el } from "./dom.js";
import { say } from "./words.js";

// Attention of one head as arcs over the tokens. texts: of the T tokens; pattern: T rows of up to T weights.
export function arcs(texts, pattern, selected, choose) {
  const T = texts.length, step = Math.max(16, Math.min(34, 530 / T)), longest = Math.min(12, Math.max(...texts.map(text => visible(text).length)));
  const least = t => (t === selected ? 0.004 : 0.08); // a weight below has no arc
  const farthest = Math.max(0, ...pattern.map((row, t) => {
    const first = row.findIndex(weight => weight > least(t));
    return first < 0 ? 0 : t - first;
  }));
  const height = Math.min(240, 34 + farthest * step * 0.36), foot = 20 + longest * 6.2, width = Math.max(T * step + 30, 240);
  const x = t => 20 + t * step, shapes = [];
  const arc = (t, s, weight) => {
    const rise = Math.min(height - 8, 8 + (t - s) * step * 0.36);
    const d = t === s ? `M${x(t) - 4} ${height} a5 7 0 1 1 8 0` : `M${x(t)} ${height} C${x(t)} ${height - rise * 1.3} ${x(s)} ${height - rise * 1.3} ${x(s)} ${height}`;
    const mine = t === selected;
    return svg("path", { d, class: mine ? "arc mine" : "arc", "stroke-width": (mine ? 1 + 7 * weight : 1 + 3 * weight).toFixed(2), "stroke-opacity": (mine ? 0.25 + 0.75 * weight : 0.22 * weight).toFixed(3) },
      svg("title", {}, `${visible(texts[t])} → ${visible(texts[s])}: ${percent(weight, 1)}`));
  };
  for (const mine of [false, true])
    pattern.forEach((row, t) => (t === selected) === mine && row.forEach((weight, s) => weight > least(t) && shapes.push(arc(t, s, weight))));
  texts.forEach((text, t) => {
    const label = svg("text", { x: x(t), y: height + 14, transform: `rotate(55 ${x(t)} ${height + 14})`, class: t === selected ? "name chosen" : "name", onclick: () => choose(t) }, shortened(visible(text), 12));
    shapes.push(label);
  });
  return picture(width + foot * 0.4, height + foot, say("arcs"), shapes);
}

// Attention of one head as a matrix.
export function matrix(texts, pattern, selected, choose) {
  const T = texts.length, cell = T > 24 ? 11 : T > 12 ? 18 : 26, left = 84, top = 78, shapes = [], small = cell < 14 ? " tiny" : "";
  pattern.forEach((row, t) => {
    for (let s = 0; s < T; s++) {
      const known = s < row.length;
      shapes.push(svg("rect", { x: left + s * cell, y: top + t * cell, width: cell - 1, height: cell - 1, rx: 2, class: known ? "cell" : "cell masked", "fill-opacity": known ? (0.05 + 0.95 * row[s]).toFixed(3) : 1, onclick: () => choose(t) },
        svg("title", {}, known ? `${visible(texts[t])} → ${visible(texts[s])}: ${percent(row[s], 1)}` : "")));
      if (known && cell >= 26 && row[s] >= 0.005)
        shapes.push(svg("text", { x: left + s * cell + cell / 2 - 0.5, y: top + t * cell + cell / 2 + 3, class: row[s] > 0.5 ? "number on" : "number" }, Math.round(100 * row[s])));
    }
    shapes.push(svg("text", { x: left - 6, y: top + t * cell + cell / 2 + 4, class: `row${t === selected ? " chosen" : ""}${small}`, onclick: () => choose(t) }, shortened(visible(texts[t]), 11)));
    const x = left + t * cell + cell / 2 + 3, y = top - 6;
    shapes.push(svg("text", { x, y, transform: `rotate(-60 ${x} ${y})`, class: `name${small}` }, shortened(visible(texts[t]), 11)));
  });
  if (selected >= 0) shapes.push(svg("rect", { x: left - 1, y: top + selected * cell - 1, width: (selected + 1) * cell + 1, height: cell + 1, rx: 3, class: "outline" }));
  return picture(left + T * cell + 36, top + T * cell + 6, say("matrix"), shapes);
}

// A head's pattern in small, for the thumbnails.
export function thumbnail(pattern, color) {
  const T = pattern.length, canvas = el("canvas", { width: T, height: T, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  context.fillStyle = color;
  pattern.forEach((row, t) => row.forEach((weight, s) => {
    context.globalAlpha = Math.sqrt(weight); // the square root makes small weights visible
    context.fillRect(s, t, 1, 1);
  }));
  return canvas;
}

// The size of every token's vector, block by block. norms: [layers + 1][T].
export function residual(texts, norms, selected, choose) {
  const width = 640, height = 260, left = 56, right = 16, top = 14, bottom = 44;
  const all = norms.flat().map(Math.log10), low = Math.floor(Math.min(...all)), high = Math.ceil(Math.max(...all));
  const x = depth => left + (depth / (norms.length - 1)) * (width - left - right);
  const y = value => top + ((high - Math.log10(value)) / (high - low || 1)) * (height - top - bottom);
  const shapes = [];
  for (let power = low; power <= high; power++) {
    shapes.push(svg("path", { d: `M${left} ${y(10 ** power)}H${width - right}`, class: "rule" }));
    shapes.push(svg("text", { x: left - 8, y: y(10 ** power) + 4, class: "row" }, power >= 0 ? String(10 ** power) : (10 ** power).toFixed(-power)));
  }
  norms.forEach((_, depth) => {
    if (norms.length > 16 && depth % 4) return;
    shapes.push(svg("text", { x: x(depth), y: height - bottom + 18, class: "middle" }, depth ? String(depth - 1) : say("embedding")));
  });
  shapes.push(svg("text", { x: width - right, y: height - 8, class: "row" }, say("block")));
  const order = [...texts.keys()].filter(t => t !== selected);
  if (selected >= 0) order.push(selected);
  for (const t of order)
    shapes.push(svg("polyline", { points: norms.map((row, depth) => `${x(depth).toFixed(1)},${y(row[t]).toFixed(1)}`).join(" "), class: t === selected ? "track mine" : "track", onclick: () => choose(t) },
      svg("title", {}, visible(texts[t]))));
  return picture(width, height, say("residual"), shapes);
}

// The tree of branches: a line for each, from where it leaves another to its end.
export function branchMap(branches, current, choose, name) {
  const deepest = Math.max(1, ...branches.map(branch => branch.depth)), row = 22, width = 320, shapes = [];
  const x = depth => 10 + (depth / deepest) * (width - 20), y = lane => 14 + lane * row;
  branches.forEach((branch, lane) => {
    if (branch.parent >= 0) {
      const from = x(branch.from);
      shapes.push(svg("path", { d: `M${from} ${y(branch.parent)} C${from} ${y(lane)} ${from} ${y(lane)} ${from + 12} ${y(lane)}`, class: "bough" }));
    }
    const mine = branch.node === current;
    shapes.push(svg("path", { d: `M${x(branch.from) + (branch.parent >= 0 ? 12 : 0)} ${y(lane)}H${Math.max(x(branch.from) + 14, x(branch.depth))}`, class: mine ? "bough mine" : "bough" }));
    shapes.push(svg("circle", { cx: Math.max(x(branch.from) + 14, x(branch.depth)), cy: y(lane), r: mine ? 6 : 4.5, class: mine ? "tip mine" : "tip", onclick: () => choose(branch.node) }, svg("title", {}, name(branch, lane))));
  });
  return picture(width, branches.length * row + 8, say("branches"), shapes);
}

function picture(width, height, name, shapes) {
  const found = svg("svg", { viewBox: `0 0 ${Math.ceil(width)} ${Math.ceil(height)}`, width: Math.ceil(width), height: Math.ceil(height), role: "img", "aria-label": name }, ...shapes);
  return vars(found, { width: Math.ceil(width) });
}

function shortened(text, most) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

// A picture as an SVG document of its own, with the colours that it has on the page now.
export function standalone(picture) {
  const copy = picture.cloneNode(true), sources = [picture, ...picture.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(sources[i]);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-opacity", "fill-opacity", "font-size", "font-family", "font-weight", "text-anchor", "stroke-dasharray"])
      element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
    element.removeAttribute("style");
  });
  const ground = svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor });
  copy.prepend(ground);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return new XMLSerializer().serializeToString(copy);
}

export async function asPng(picture, scale = 2) {
  const image = new Image(), { width, height } = picture.viewBox.baseVal;
  const url = URL.createObjectURL(new Blob([standalone(picture)], { type: "image/svg+xml" }));
  try {
    image.src = url;
    await image.decode();
    const canvas = el("canvas", { width: width * scale, height: height * scale });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise(resolve => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}
