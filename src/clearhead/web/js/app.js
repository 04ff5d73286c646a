// The page: a text that the model continues, the distribution of each token, branches, settings, and a look inside.

import { DEFAULTS, distribution, probability } from "./sampling.js";
import { speak, say } from "./words.js";
import { HttpBackend, WorkerBackend } from "./backend.js";
import { Tree } from "./tree.js";
import { $, el, vars, debounced, save, visible, percent } from "./dom.js";
import { branchMap, standalone, asPng } from "./pictures.js";
import { Inside } from "./inside.js";

const SHOWN = 400; // tokens of the text on the page
const LIKELIEST = 20;
const SCORE_LIMIT = 1.5e9; // multiplications: a longer prompt is not scored, so its tokens have no tint
const SLIDERS = {
  temperature: { min: 0, max: 2, step: 0.05, digits: 2 }, topK: { min: 0, max: 100, step: 1, digits: 0, all: true },
  topP: { min: 0.05, max: 1, step: 0.01, digits: 2 }, minP: { min: 0, max: 0.5, step: 0.01, digits: 2 },
};
const PENALTIES = {
  repetition: { min: 1, max: 2, step: 0.05, digits: 2 }, presence: { min: -2, max: 2, step: 0.1, digits: 1 }, frequency: { min: -2, max: 2, step: 0.1, digits: 1 },
};

const page = {
  backend: null, about: null, config: null, tree: new Tree(), settings: { ...DEFAULTS }, length: 100, ablation: new Set(),
  language: "en", theme: "auto", selected: null, running: null, logits: null, intact: null, names: new Map(), request: 0, inside: null, endOfText: null,
  path: () => page.tree.path(),
  changed: async () => {
    await score();
    await refresh();
  },
};

const position = () => page.selected ?? page.path().ids.length;

// ---- Starting ------------------------------------------------------------------------------------------------------

async function start() {
  page.about = JSON.parse($("about").textContent);
  page.config = page.about.config;
  page.inside = new Inside(page);
  const saved = JSON.parse($("state").textContent);
  page.language = saved?.language ?? page.about.language ?? "en";
  if (!saved && page.language === "en" && navigator.language.startsWith("zh")) page.language = "zh";
  if (saved) restore(saved);
  build();
  label();
  if (typeof Worker === "undefined" && !page.about.server) return fail(say("workers"));
  try {
    page.backend = page.about.server ? new HttpBackend(page.about) : new WorkerBackend($("worker").textContent, page.about, $("weights").textContent);
    page.endOfText = (await page.backend.open()).endOfText;
  } catch (error) {
    return fail(say("failed", { error: error.message }));
  }
  if (saved) await page.changed();
  else await plant(page.about.prompt ?? "Once upon a time");
  document.documentElement.dataset.state = "ready";
}

function fail(sentence) {
  document.documentElement.dataset.state = "failed";
  announce(sentence);
}

function restore(saved) {
  page.tree = Tree.from(saved.tree);
  Object.assign(page.settings, saved.settings);
  page.length = saved.length;
  page.theme = saved.theme;
  page.ablation = new Set(saved.ablation);
  Object.assign(page.inside, saved.inside);
}

// ---- Building --------------------------------------------------------------------------------------------------------

function build() {
  const themes = ["auto", "light", "dark"].map(value => el("option", { value, selected: value === page.theme, "data-word": value }));
  const exports = { exportHtml, exportJson, exportSvg: () => exportPicture("svg"), exportPng: () => exportPicture("png") };
  $("app").replaceChildren(
    el("header", {}, el("div", { class: "brand" }, el("b", {}, "Clearhead"), el("h1", { "data-word": "title" })),
      el("div", { class: "controls" },
        el("details", { id: "export" }, el("summary", { "data-word": "export" }),
          el("div", { class: "menu" }, ...Object.entries(exports).filter(([word]) => word !== "exportHtml" || !page.about.server).map(([word, action]) => el("button", { type: "button", id: word, "data-word": word, onclick: () => {
            $("export").open = false;
            action();
          } })))),
        el("label", {}, el("span", { "data-word": "theme", class: "wide-only" }), el("select", { id: "theme", onchange: event => theme(event.target.value) }, ...themes)),
        el("button", { id: "language", type: "button", "data-word": "language", onclick: () => {
          page.language = page.language === "zh" ? "en" : "zh";
          label();
          render();
        } })),
      el("p", { id: "model", class: "soft" })),
    el("main", {},
      el("section", { class: "card writing", "aria-labelledby": "text-title" },
        el("h2", { id: "text-title", "data-word": "text" }),
        el("label", { for: "prompt", "data-word": "prompt", class: "caption" }),
        el("textarea", { id: "prompt", rows: 2, spellcheck: false, oninput: debounced(250, event => plant(event.target.value)) }),
        el("div", { class: "toolbar" },
          el("button", { id: "run", class: "primary", type: "button", onclick: () => generate(page.length) }, el("span", { "data-word": "run" })),
          el("button", { id: "stop", type: "button", "data-word": "stop", onclick: () => page.backend.stop() }),
          el("button", { id: "step", type: "button", "data-word": "step", onclick: () => generate(1) }),
          el("button", { id: "undo", type: "button", "data-word": "undo", onclick: () => travel("undo") }),
          el("button", { id: "redo", type: "button", "data-word": "redo", onclick: () => travel("redo") }),
          el("label", { class: "number" }, el("span", { "data-word": "length" }), el("input", { id: "length", type: "number", min: 1, max: 1000, value: page.length, onchange: event => {
            page.length = Math.min(1000, Math.max(1, Math.round(Number(event.target.value)) || 100));
            event.target.value = page.length;
          } })),
          el("output", { id: "speed", class: "soft" })),
        el("p", { id: "status", role: "status", "aria-live": "polite", class: "soft" }),
        el("div", { id: "tokens", role: "group", onkeydown: walk }),
        el("p", { class: "soft small", "data-word": "legend" })),
      el("section", { class: "card choosing", "aria-labelledby": "next-title" },
        el("h2", { id: "next-title" }), el("p", { id: "next-after", class: "soft" }), el("ol", { id: "distribution" }), el("p", { class: "soft small", "data-word": "marks" }),
        el("h3", { "data-word": "settings" }), ...Object.entries(SLIDERS).map(([name, range]) => slider(name, range)),
        el("label", { class: "slider" }, el("span", { "data-word": "seed" }), el("input", { id: "seed", type: "number", min: 0, max: 2 ** 53 - 1, step: 1, value: page.settings.seed, onchange: event => {
          page.settings.seed = Math.min(2 ** 53 - 1, Math.max(0, Math.floor(Number(event.target.value)) || 0));
          event.target.value = page.settings.seed;
        } })),
        el("details", { id: "penalties" }, el("summary", { "data-word": "penalties" }), ...Object.entries(PENALTIES).map(([name, range]) => slider(name, range))),
        el("button", { id: "reset", type: "button", "data-word": "reset", onclick: () => {
          page.settings = { ...DEFAULTS };
          showSettings();
          drawDistribution();
        } })),
      el("section", { class: "card branching", "aria-labelledby": "branches-title" }, el("h2", { id: "branches-title", "data-word": "branches" }), el("p", { class: "soft", "data-word": "branchesHint" }), el("div", { id: "branch-map" }), el("ul", { id: "branches" })),
      page.inside.build()),
    el("footer", {}, el("p", { class: "soft", "data-word": "made" })));
  theme(page.theme);
  if (page.tree.root.texts.length) $("prompt").value = page.tree.root.texts.join("");
}

function slider(name, { min, max, step }) {
  return el("label", { class: "slider" }, el("span", { "data-word": name }), el("input", { id: name, type: "range", min, max, step, value: page.settings[name], oninput: event => {
    page.settings[name] = Number(event.target.value);
    showSettings();
    drawDistribution();
  } }), el("output", { id: `${name}-value` }));
}

// Puts the words of the current language everywhere.
function label() {
  speak(page.language);
  document.documentElement.lang = page.language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  const { config, about } = page, parameters = (about.parameters ?? 0).toLocaleString("en");
  $("model").textContent = say(about.server ? "modelServed" : "model", { name: about.name, parameters, layers: config.n_layers, heads: config.n_heads, vocabulary: config.vocab_size.toLocaleString("en") });
  $("prompt").placeholder = say("promptHint");
  $("tokens").setAttribute("aria-label", say("tokens"));
  $("theme").setAttribute("aria-label", say("theme"));
  document.title = `${say("title")} · Clearhead`;
  if (document.documentElement.dataset.state === undefined) announce(say("opening"));
  showSettings();
}

function showSettings() {
  for (const [name, { digits, all }] of Object.entries({ ...SLIDERS, ...PENALTIES })) {
    const text = all && page.settings[name] === 0 ? say("all") : page.settings[name].toFixed(digits);
    $(name).value = page.settings[name];
    $(name).setAttribute("aria-valuetext", text);
    $(`${name}-value`).textContent = text;
  }
  $("seed").value = page.settings.seed;
}

function theme(value) {
  page.theme = value;
  document.documentElement.dataset.theme = value;
  if (page.inside?.found) page.inside.draw(); // the thumbnails are pixels
}

const announce = sentence => ($("status").textContent = sentence);

// ---- Text -----------------------------------------------------------------------------------------------------------

async function plant(text) {
  if (page.running) return;
  const { ids, texts } = await page.backend.encode(text);
  if (page.tree.root.ids.length || page.tree.nodes.length > 1) page.tree.mark();
  page.tree.plant(ids, texts);
  page.selected = null;
  if ($("prompt").value !== text && document.activeElement !== $("prompt")) $("prompt").value = text;
  announce("");
  await page.changed();
}

// Computes the probabilities of the prompt's tokens, for their tint.
async function score() {
  const { root } = page.tree, count = Math.min(root.ids.length, page.config.context_length);
  root.probabilities = null;
  if (count < 2 || count * page.config.vocab_size * page.config.emb_dim > SCORE_LIMIT) return;
  root.probabilities = await page.backend.score(root.ids, [...page.ablation]);
}

async function generate(most) {
  if (page.running || !page.path().ids.length) return;
  const { ids, prompt } = page.path(), run = (page.running = { count: 0, begun: performance.now() });
  page.tree.mark();
  page.selected = null;
  announce(say("running"));
  render();
  const options = { generated: ids.length - prompt, params: page.settings, most, ablation: [...page.ablation] };
  try {
    const { ended } = await page.backend.generate(ids, options, ({ id, probability }) => {
      run.queue = (run.queue ?? Promise.resolve()).then(async () => {
        const text = await pieceOf(id);
        page.tree.grow(id, text, probability);
        run.count++;
        appendToken();
        $("speed").textContent = say("speed", { speed: ((1000 * run.count) / (performance.now() - run.begun)).toFixed(0) });
      });
    });
    await run.queue;
    announce(say(`ended.${ended}`, { count: run.count }));
  } catch (error) {
    await run.queue;
    announce(say("lost", { error: error.message }));
  }
  page.running = null;
  render();
  await respell();
  await refresh();
}

async function pieceOf(id) {
  if (!page.names.has(id)) await learn([id]);
  return page.names.get(id);
}

async function learn(ids) {
  const unknown = [...new Set(ids)].filter(id => !page.names.has(id));
  if (!unknown.length) return;
  const { names } = await page.backend.describe(unknown);
  unknown.forEach((id, i) => page.names.set(id, names[i]));
}

// Tokens that are parts of one character get their text from the whole line.
async function respell() {
  const line = page.tree.line().slice(1), { ids, prompt } = page.path();
  if (!line.length) return;
  const { texts } = await page.backend.describe(ids);
  line.forEach((node, i) => (page.tree.nodes[node].text = texts[prompt + i]));
}

async function travel(direction) {
  if (page.running || !page.tree[direction]()) return;
  page.selected = null;
  announce("");
  $("prompt").value = page.tree.root.texts.join("");
  await page.changed();
}

async function goTo(node) {
  if (page.running || node === page.tree.current) return;
  page.tree.mark();
  page.tree.current = node;
  page.selected = null;
  announce("");
  await refresh();
}

async function pick(id, share) {
  if (page.running) return;
  page.tree.mark();
  page.tree.branch(position(), id, await pieceOf(id), share);
  page.selected = null;
  announce("");
  await respell();
  $("prompt").value = page.tree.root.texts.join("");
  await refresh();
}

// ---- Drawing ---------------------------------------------------------------------------------------------------------

async function refresh() {
  render();
  await Promise.all([showDistribution(), page.inside.refresh()]);
}

function render() {
  drawTokens();
  drawBranches();
  drawDistribution();
  if ($("inside-title")) page.inside.draw();
  const busy = Boolean(page.running), empty = !page.path().ids.length;
  $("run").disabled = $("step").disabled = busy || empty;
  $("stop").disabled = !busy;
  $("undo").disabled = busy || !page.tree.past.length;
  $("redo").disabled = busy || !page.tree.future.length;
  $("prompt").readOnly = busy;
}

function drawTokens() {
  const { ids, texts, probabilities, prompt } = page.path(), start = Math.max(0, ids.length - SHOWN);
  const shown = ids.slice(start).map((_, i) => tokenElement(start + i, texts[start + i], probabilities[start + i], prompt));
  if (start) shown.unshift(el("p", { class: "soft small" }, say("earlier", { count: start.toLocaleString("en") })));
  $("tokens").replaceChildren(...shown);
}

function appendToken() {
  const { ids, texts, probabilities, prompt } = page.path(), last = ids.length - 1;
  if (ids.length > SHOWN) return drawTokens();
  $("tokens").append(tokenElement(last, texts[last], probabilities[last], prompt));
}

function tokenElement(index, text, share, prompt) {
  const surprise = share === null || share === undefined ? 0 : Math.min(1, -Math.log2(Math.max(share, 1e-9)) / 10); // 1 from 10 bits on
  const name = share === null || share === undefined ? visible(text) : say("token", { token: visible(text) || "…", share: percent(share) });
  const chosen = index === page.selected;
  return vars(el("span", {
    class: `token${index < prompt ? " given" : ""}`, role: "button", tabIndex: chosen || (page.selected === null && index === page.path().ids.length - 1) ? 0 : -1,
    "aria-pressed": String(chosen), "aria-label": name, title: name, "data-index": index, onclick: () => select(index),
  }, text), { surprise: surprise.toFixed(3), line: `${(1 + 3 * surprise).toFixed(1)}px` });
}

function select(index) {
  if (page.running) return;
  page.selected = index === page.selected ? null : index;
  for (const token of $("tokens").querySelectorAll(".token")) {
    const chosen = Number(token.dataset.index) === page.selected;
    token.setAttribute("aria-pressed", String(chosen));
    token.tabIndex = chosen ? 0 : -1;
  }
  page.inside.follow(page.selected ?? page.path().ids.length - 1);
  showDistribution();
}

// The arrow keys walk over the tokens; Enter and the space bar choose one.
function walk(event) {
  const token = event.target.closest(".token");
  if (!token) return;
  const all = [...$("tokens").querySelectorAll(".token")], at = all.indexOf(token);
  const target = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], Home: all[0], End: all.at(-1) }[event.key];
  if (target) {
    event.preventDefault();
    all.forEach(one => (one.tabIndex = -1));
    target.tabIndex = 0;
    target.focus();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    select(Number(token.dataset.index));
  }
}

// Asks for the logits at the selected position.
async function showDistribution() {
  const request = ++page.request, before = page.path().ids.slice(0, position());
  if (!before.length) {
    page.logits = null;
    return drawDistribution();
  }
  const ablation = [...page.ablation], logits = await page.backend.logits(before, ablation);
  const intact = ablation.length ? await page.backend.logits(before, []) : logits;
  const top = likeliest(intact, LIKELIEST), changed = likeliest(logits, LIKELIEST);
  await learn([...top, ...changed]);
  if (request !== page.request) return;
  Object.assign(page, { logits, intact });
  drawDistribution();
}

function likeliest(logits, most) {
  return Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, most);
}

function history(end) {
  const { ids, prompt } = page.path(), found = new Map(ids.slice(0, Math.min(prompt, end)).map(id => [id, 0]));
  for (const id of ids.slice(prompt, end)) found.set(id, (found.get(id) ?? 0) + 1);
  return found;
}

function drawDistribution() {
  const { ids, texts } = page.path(), at = position(), list = $("distribution");
  $("next-title").textContent = page.selected === null ? say("next") : say("instead", { token: visible(texts[at] ?? "") });
  $("next-after").textContent = at ? say("after", { token: visible(texts[at - 1] ?? ""), position: at }) : say("nothing");
  if (!page.logits || !at) return list.replaceChildren();
  const { ids: left, probabilities } = distribution(page.logits, page.settings, history(at));
  const share = left ? new Map(left.map((id, i) => [id, probabilities[i]])) : null, of = id => (share ? share.get(id) ?? 0 : probabilities[id]);
  const listed = likeliest(page.logits, LIKELIEST), focused = document.activeElement?.closest?.("#distribution button")?.dataset.id;
  let sum = 0, models = 0;
  const rows = listed.map(id => {
    const own = probability(page.intact, id), now = of(id);
    sum += now;
    models += own;
    return vars(el("li", {}, el("button", {
      type: "button", "data-id": id, class: id === ids[at] ? "taken" : undefined, title: say("pick", { token: visible(page.names.get(id) ?? ""), share: percent(now) }), onclick: () => pick(id, own),
    }, el("span", { class: "piece" }, visible(page.names.get(id) ?? "")), el("span", { class: "track" }, el("i", { class: "bar" }), el("i", { class: "own" })), el("span", { class: "share" }, percent(now)))), { now, own });
  });
  const others = (left ? left.length : probabilities.length) - listed.filter(id => of(id) > 0).length;
  rows.push(vars(el("li", { class: "rest" }, el("div", {}, el("span", { class: "piece" }, say("rest", { count: Math.max(0, others).toLocaleString("en") })),
    el("span", { class: "track" }, el("i", { class: "bar" }), el("i", { class: "own" })), el("span", { class: "share" }, percent(Math.max(0, 1 - sum))))), { now: Math.max(0, 1 - sum), own: Math.max(0, 1 - models) }));
  list.replaceChildren(...rows);
  if (focused) list.querySelector(`[data-id="${focused}"]`)?.focus();
}

function drawBranches() {
  const branches = page.tree.branches(), name = (branch, lane) => say("branch", { number: lane + 1, text: snippet(branch) });
  document.querySelector(".branching").hidden = branches.length < 2;
  if (branches.length < 2) return;
  $("branch-map").replaceChildren(branchMap(branches, page.tree.current, goTo, name));
  $("branches").replaceChildren(...branches.map((branch, lane) => el("li", {},
    el("button", { type: "button", "aria-current": branch.node === page.tree.current ? "true" : undefined, onclick: () => goTo(branch.node) }, el("b", {}, `${lane + 1} `), snippet(branch)))));
}

function snippet({ node, from }) {
  const texts = page.tree.line(node).slice(1).map(i => page.tree.nodes[i].text).slice(from);
  const text = texts.join("").trim();
  return text.length > 90 ? `${text.slice(0, 88)}…` : text;
}

// ---- Export ----------------------------------------------------------------------------------------------------------

function state() {
  const { tree, settings, length, theme, language, ablation, inside } = page;
  return { tree, settings, length, theme, language, ablation: [...ablation], inside: { tab: inside.tab, block: inside.block, head: inside.head } };
}

function exportJson() {
  const { ids, texts, probabilities, prompt } = page.path();
  const text = { text: texts.join(""), prompt, tokens: ids.map((id, i) => ({ id, text: texts[i], probability: probabilities[i] ?? null })) };
  save("clearhead.json", JSON.stringify({ model: page.about.name, ...text, ...state() }, null, 1), "application/json");
}

function exportHtml() {
  const copy = document.documentElement.cloneNode(true);
  copy.querySelector("#app").replaceChildren();
  copy.querySelector("#state").textContent = JSON.stringify(state()).replace(/</g, "\\u003c");
  for (const name of ["state", "theme"]) delete copy.dataset[name];
  save("clearhead.html", `<!doctype html>\n${copy.outerHTML}`, "text/html");
}

async function exportPicture(kind) {
  const shown = document.querySelector("#panel svg") ?? document.querySelector("#branch-map svg");
  if (!shown) return;
  if (kind === "svg") save("clearhead.svg", standalone(shown), "image/svg+xml");
  else save("clearhead.png", await asPng(shown), "image/png");
}

// Whatever fails (a server that is gone, a worker that ran out of memory) leaves the text and says so.
addEventListener("unhandledrejection", event => {
  event.preventDefault();
  page.running = null;
  announce(say("lost", { error: event.reason?.message ?? event.reason }));
});

start();
