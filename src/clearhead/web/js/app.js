// The page: a text that the model continues, the distribution of each token, branches, settings, and a look inside.

import { DEFAULTS } from "./sampling.js";
import { speak, say } from "./words.js";
import { HttpBackend, WorkerBackend } from "./backend.js";
import { Tree } from "./tree.js";
import { $, el, vars, debounced, visible, percent } from "./dom.js";
import { branchMap } from "./pictures.js";
import { Distribution, likeliest } from "./distribution.js";
import { Inside } from "./inside.js";
import { EXPORTS } from "./exports.js";

const SHOWN = 400; // tokens of the text on the page
const SCORE_LIMIT = 1.5e9; // multiplications: a longer prompt is not scored, so its tokens have no tint

const page = {
  backend: null, about: null, config: null, tree: new Tree(), settings: { ...DEFAULTS }, length: 100, ablation: new Set(),
  language: "en", theme: "auto", selected: null, running: null, request: 0, pending: 0, distribution: null, inside: null, endOfText: null, simd: null,
  path: () => page.tree.path(),
  changed: async () => {
    await score();
    await refresh();
  },
  during,
};

const position = () => page.selected ?? page.path().ids.length;

// Runs what a control starts. Meanwhile the document's state is "busy". Whatever fails (a server that is gone, a worker
// that ran out of memory) leaves the text and says so.
async function during(work) {
  page.pending++;
  document.documentElement.dataset.state = "busy";
  try {
    await (typeof work === "function" ? work() : work);
  } catch (error) {
    announce(say("lost", { error: error.message }), "error");
    page.running = null;
    render();
  }
  if (!--page.pending) document.documentElement.dataset.state = "ready";
}

// Turns an action into a listener.
const does = action => event => during(() => action(event));

// ---- Starting ------------------------------------------------------------------------------------------------------

async function start() {
  page.about = JSON.parse($("about").textContent);
  const saved = JSON.parse($("state").textContent);
  page.language = saved?.language ?? page.about.language ?? "en";
  if (!saved && page.language === "en" && navigator.language.startsWith("zh")) page.language = "zh";
  speak(page.language);
  if (page.about.server) page.backend = new HttpBackend(page.about);
  if (page.about.locked) await unlock();
  page.config = page.about.config;
  page.inside = new Inside(page);
  if (saved) restore(saved);
  page.distribution = new Distribution(page.settings, (id, share) => during(() => pick(id, share)));
  build();
  label();
  announce(say("opening"));
  try {
    page.backend ??= openWorker();
    Object.assign(page, await page.backend.open()); // endOfText, simd
  } catch (error) {
    return fail(error.message);
  }
  await during(() => (saved ? page.changed() : plant(page.about.prompt ?? "Once upon a time")));
}

function openWorker() {
  if (typeof Worker === "undefined") throw new Error(say("workers"));
  return new WorkerBackend($("worker").textContent, page.about, $("weights").textContent);
}

function fail(sentence) {
  document.documentElement.dataset.state = "failed";
  announce(say("failed", { error: sentence }), "error");
  for (const control of document.querySelectorAll("main :is(button, input, textarea, select)")) control.disabled = true;
}

// Asks for the server's API key until the server accepts one; it is kept in memory only.
async function unlock() {
  for (let problem = ""; page.about.locked;) {
    const key = await askForKey(problem);
    try {
      page.about = { server: true, ...(await page.backend.unlock(key)) };
    } catch (error) {
      problem = error.message;
    }
  }
}

function askForKey(problem) {
  return new Promise(answer => {
    const input = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: false, required: true, "aria-describedby": "key-problem" });
    $("app").replaceChildren(el("main", { class: "alone" }, el("form", { class: "card", onsubmit: event => {
      event.preventDefault();
      if (input.value) answer(input.value.trim());
    } }, el("h1", {}, say("title")), el("p", { class: "soft" }, say("keyHint")), el("label", { for: "key", class: "caption" }, say("key")), input,
      el("p", { id: "key-problem", role: "alert" }, problem), el("button", { class: "primary" }, say("unlock")))));
    document.title = `${say("title")} · Clearhead`;
    document.documentElement.dataset.state = "locked";
    input.focus();
  });
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
  const { distribution } = page, kinds = Object.keys(EXPORTS).filter(word => word !== "exportHtml" || !page.about.server);
  $("app").replaceChildren(
    el("header", {}, el("div", { class: "brand" }, el("b", {}, "Clearhead"), el("h1", { "data-word": "title" })),
      el("div", { class: "controls" },
        el("details", { id: "export" }, el("summary", { "data-word": "export" }),
          el("div", { class: "menu" }, ...kinds.map(word => el("button", { type: "button", id: word, "data-word": word, onclick: does(() => {
            $("export").open = false;
            return EXPORTS[word](page);
          }) })))),
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
        el("textarea", { id: "prompt", rows: 2, spellcheck: false, oninput: event => during(() => typed(event.target.value)) }),
        el("div", { class: "toolbar" },
          el("button", { id: "run", class: "primary", type: "button", onclick: does(() => generate(page.length)) }, el("span", { "data-word": "run" })),
          el("button", { id: "stop", type: "button", "data-word": "stop", onclick: () => page.backend.stop() }),
          el("button", { id: "step", type: "button", "data-word": "step", onclick: does(() => generate(1)) }),
          el("button", { id: "undo", type: "button", "data-word": "undo", onclick: does(() => travel("undo")) }),
          el("button", { id: "redo", type: "button", "data-word": "redo", onclick: does(() => travel("redo")) }),
          el("label", { class: "number" }, el("span", { "data-word": "length" }), el("input", { id: "length", type: "number", min: 1, max: 1000, value: page.length, onchange: event => {
            page.length = Math.min(1000, Math.max(1, Math.round(Number(event.target.value)) || 100));
            event.target.value = page.length;
          } }))),
        el("div", { class: "status-line" }, el("p", { id: "status", role: "status", "aria-live": "polite" }), el("output", { id: "speed", class: "soft" })),
        el("div", { id: "tokens", role: "group", onkeydown: walk }),
        el("p", { class: "soft small", "data-word": "legend" })),
      el("section", { class: "card choosing", "aria-labelledby": "next-title" },
        el("h2", { id: "next-title" }), el("p", { id: "next-after", class: "soft" }), distribution.list, el("p", { class: "soft small", "data-word": "marks" }),
        el("h3", { "data-word": "settings" }), ...["temperature", "topK", "topP", "minP"].map(name => distribution.slider(name)), distribution.seed(),
        el("details", { id: "penalties" }, el("summary", { "data-word": "penalties" }), ...["repetition", "presence", "frequency"].map(name => distribution.slider(name))),
        el("button", { id: "reset", type: "button", "data-word": "reset", onclick: () => distribution.reset() })),
      el("section", { class: "card branching", "aria-labelledby": "branches-title" }, el("h2", { id: "branches-title", "data-word": "branches" }), el("p", { class: "soft", "data-word": "branchesHint" }), el("div", { id: "branch-map", class: "scroll" }), el("ul", { id: "branches" })),
      page.inside.build()),
    el("footer", {}, el("p", { class: "soft", "data-word": "made" })));
  theme(page.theme);
  if (page.tree.root.texts.length) $("prompt").value = page.tree.root.texts.join("");
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
  page.distribution.showSettings();
}

function theme(value) {
  page.theme = value;
  document.documentElement.dataset.theme = value;
  if (page.inside?.found) page.inside.draw(); // the thumbnails are pixels
}

function announce(sentence, kind = "") {
  $("status").textContent = sentence;
  $("status").className = kind;
}

// ---- Text -----------------------------------------------------------------------------------------------------------

const settled = debounced(250);

async function typed(text) {
  if (await settled()) await plant(text);
}

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
  announce(say("running"), "running");
  drawTokens();
  drawButtons();
  const options = { generated: ids.length - prompt, params: page.settings, most, ablation: [...page.ablation] };
  try {
    const { ended } = await page.backend.generate(ids, options, token => {
      run.queue = (run.queue ?? Promise.resolve()).then(() => receive(run, token));
    });
    await run.queue;
    announce(say(`ended.${ended}`, { count: run.count }));
  } catch (error) {
    await run.queue?.catch(() => null); // the text generated so far is kept
    announce(say("lost", { error: error.message }), "error");
  }
  showSpeed(run);
  page.running = null;
  render();
  await respell();
  await refresh();
}

// Adds a token to the text; the screen shows it with the next frame, together with those that come meanwhile.
async function receive(run, { id, probability, name }) {
  if (name !== undefined) page.distribution.names.set(id, name);
  page.tree.grow(id, await pieceOf(id), probability);
  run.count++;
  run.frame ??= requestAnimationFrame(() => {
    run.frame = null;
    if (page.running !== run) return;
    appendTokens();
    showSpeed(run);
  });
}

function showSpeed({ count, begun }) {
  $("speed").textContent = say("speed", { speed: ((1000 * count) / (performance.now() - begun)).toFixed(0) });
}

async function pieceOf(id) {
  await learn([id]);
  return page.distribution.names.get(id);
}

async function learn(ids) {
  const { names } = page.distribution, unknown = [...new Set(ids)].filter(id => !names.has(id));
  if (unknown.length) (await page.backend.describe(unknown)).names.forEach((name, i) => names.set(unknown[i], name));
}

// Tokens that are parts of one character get their text from the whole line.
async function respell() {
  const line = page.tree.line().slice(1), { ids, prompt } = page.path();
  if (!line.length) return;
  const from = Math.max(0, prompt - 4); // a character has at most four bytes
  const { texts } = await page.backend.describe(ids.slice(from));
  line.forEach((node, i) => (page.tree.nodes[node].text = texts[prompt - from + i]));
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
  drawButtons();
}

function drawButtons() {
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

// Draws the tokens that are not on the screen yet.
function appendTokens() {
  const { ids, texts, probabilities, prompt } = page.path();
  if (ids.length > SHOWN) return drawTokens();
  for (let i = $("tokens").children.length; i < ids.length; i++) $("tokens").append(tokenElement(i, texts[i], probabilities[i], prompt));
}

function tokenElement(index, text, share, prompt) {
  const surprise = share === null || share === undefined ? 0 : Math.min(1, -Math.log2(Math.max(share, 1e-9)) / 10); // 1 from 10 bits on
  const name = share === null || share === undefined ? visible(text) : say("token", { token: visible(text) || "…", share: percent(share) });
  const chosen = index === page.selected;
  return vars(el("span", {
    class: `token${index < prompt ? " given" : ""}`, role: "button", tabIndex: chosen || (page.selected === null && index === page.path().ids.length - 1) ? 0 : -1,
    "aria-pressed": String(chosen), "aria-label": name, title: name, "data-index": index, onclick: () => select(index),
  }, text), { surprise: surprise.toFixed(3), edge: `${(1 + 3 * surprise).toFixed(1)}px` });
}

function select(index) {
  if (page.running) return;
  page.selected = index === page.selected ? null : index;
  for (const token of $("tokens").querySelectorAll(".token")) {
    const chosen = Number(token.dataset.index) === page.selected;
    token.setAttribute("aria-pressed", String(chosen));
    token.tabIndex = chosen ? 0 : -1;
  }
  page.inside.follow();
  during(showDistribution);
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
  const request = ++page.request, end = position(), { ids } = page.path(), before = ids.slice(0, end);
  let given = null;
  if (before.length) {
    const ablation = [...page.ablation], logits = await page.backend.logits(before, ablation);
    const intact = ablation.length ? await page.backend.logits(before, []) : logits;
    await learn([...likeliest(intact), ...likeliest(logits)]);
    given = { logits, intact, history: history(end), taken: ids[end] };
  }
  if (request !== page.request) return;
  page.distribution.show(given);
  drawDistribution();
}

function history(end) {
  const { ids, prompt } = page.path(), found = new Map(ids.slice(0, Math.min(prompt, end)).map(id => [id, 0]));
  for (const id of ids.slice(prompt, end)) found.set(id, (found.get(id) ?? 0) + 1);
  return found;
}

function drawDistribution() {
  const { texts } = page.path(), at = position();
  $("next-title").textContent = page.selected === null ? say("next") : say("instead", { token: visible(texts[at] ?? "") });
  $("next-after").textContent = at ? say("after", { token: visible(texts[at - 1] ?? ""), position: at }) : say("nothing");
  page.distribution.draw();
}

function drawBranches() {
  const branches = page.tree.branches(), name = (branch, lane) => say("branch", { number: lane + 1, text: snippet(branch) });
  document.querySelector(".branching").hidden = branches.length < 2;
  if (branches.length < 2) return;
  $("branch-map").replaceChildren(branchMap(branches, page.tree.current, node => during(() => goTo(node)), name));
  $("branches").replaceChildren(...branches.map((branch, lane) => el("li", {},
    el("button", { type: "button", "aria-current": branch.node === page.tree.current ? "true" : undefined, onclick: does(() => goTo(branch.node)) }, el("b", {}, `${lane + 1} `), snippet(branch)))));
}

function snippet({ node, from }) {
  const texts = page.tree.line(node).slice(1).map(i => page.tree.nodes[i].text).slice(from);
  const text = texts.join("").trim();
  return text.length > 90 ? `${text.slice(0, 88)}…` : text;
}

start();
