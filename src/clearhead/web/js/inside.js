// "A look inside": attention, logit lens, residual stream and one token's vectors, for the last tokens of the text.

import { $, el, vars, visible, percent } from "./dom.js";
import { say } from "./words.js";
import { arcs, matrix, thumbnail, residual } from "./pictures.js";

const MOST = 32; // tokens: more would be too small to read
const TABS = ["attention", "lens", "residual", "journey"];
const LENS_TOP = 5;

export class Inside {
  // tabs: which pictures there are; with one, there is neither a heading nor a row of tabs. page: { backend, config, path(), selected, ablation, changed(), during(action) }
  constructor(page, tabs = TABS) {
    this.page = page;
    this.tabs = tabs;
    this.tab = tabs[0];
    this.block = Math.floor(page.config.n_layers / 3); // early blocks look everywhere, middle ones at something
    this.head = Math.min(1, page.config.n_heads - 1);
    this.token = 0; // among those inspected
    this.found = null;
    this.request = 0;
  }

  build() {
    if (this.tabs.length === 1) return el("div", { id: "panel", role: "group", "aria-label": say(this.tab) });
    const tabs = this.tabs.map(name =>
      el("button", { id: `tab-${name}`, type: "button", role: "tab", "aria-controls": "panel", onclick: () => this.open(name), onkeydown: event => this.turn(event) }));
    return el("section", { id: "inside", class: "card", "aria-labelledby": "inside-title" },
      el("h2", { id: "inside-title" }), el("p", { id: "inside-hint", class: "soft" }),
      el("div", { class: "tabs", role: "tablist", "aria-labelledby": "inside-title" }, ...tabs),
      el("div", { id: "panel", role: "tabpanel", tabIndex: 0 }));
  }

  turn(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    this.open(this.tabs.at((this.tabs.indexOf(this.tab) + move) % this.tabs.length));
    $(`tab-${this.tab}`).focus();
  }

  open(tab) {
    this.tab = tab;
    this.draw();
  }

  // Runs the model over the end of the text again.
  async refresh() {
    const request = ++this.request, { selected } = this.page, { ids: all, texts } = this.page.path();
    // The end of the text; or the tokens up to the selected one, if that is earlier. What comes later changes nothing.
    const ids = selected === null || selected >= all.length - MOST ? all : all.slice(0, Math.max(MOST, selected + 1));
    if (!ids.length) {
      this.found = null;
      return this.draw();
    }
    const found = await this.page.backend.inspect(ids, [...this.page.ablation], MOST);
    if (request !== this.request) return;
    this.found = { ...found, texts: texts.slice(found.start, ids.length) };
    this.choose((selected ?? ids.length - 1) - found.start);
  }

  // Follows the token that was chosen in the text, or its last one.
  follow() {
    if (!this.found) return;
    const token = (this.page.selected ?? this.page.path().ids.length - 1) - this.found.start;
    if (token >= 0 && token < this.found.count) this.choose(token);
    else this.page.during(() => this.refresh());
  }

  choose(token) {
    this.token = token;
    this.draw();
  }

  // focus: the id of the control that caused it, which is drawn anew.
  draw(focus = null) {
    const panel = $("panel");
    if (this.tabs.length > 1) this.drawTabs(panel);
    if (!this.found) return panel.replaceChildren();
    this.page.during(async () => {
      await this[this.tab](panel);
      if (focus) $(focus)?.focus();
    });
  }

  drawTabs(panel) {
    $("inside-title").textContent = say("inside");
    $("inside-hint").textContent = this.found ? say("insideHint", { first: this.found.start, last: this.found.start + this.found.count - 1 }) : say("nothing");
    for (const name of this.tabs) {
      const tab = $(`tab-${name}`);
      tab.textContent = say(name);
      tab.setAttribute("aria-selected", String(name === this.tab));
      tab.tabIndex = name === this.tab ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", `tab-${this.tab}`);
  }

  get name() {
    return visible(this.found.texts[this.token]);
  }

  attention(panel) {
    const { texts, patterns } = this.found, choose = token => this.choose(token), pattern = patterns[this.block][this.head];
    panel.replaceChildren(
      el("div", { class: "controls" }, this.select("block", patterns.length), this.select("head", patterns[0].length), this.tokenChoice(), this.ablations()),
      el("div", { class: "attention" },
        el("div", {}, el("p", { class: "soft small" }, say("heads")), this.thumbnails(),
          el("p", { class: "soft small" }, say("arcs")), el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": say("arcs") }, arcs(texts, pattern, this.token, choose))),
        el("div", {}, el("p", { class: "soft small" }, say("matrix")), el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": say("matrix") }, matrix(texts, pattern, this.token, choose)))));
  }

  select(what, count) {
    const options = Array.from({ length: count }, (_, i) => el("option", { value: String(i), textContent: String(i), selected: i === this[what] }));
    return el("label", {}, `${say(what)} `, el("select", { id: `choose-${what}`, onchange: event => {
      this[what] = Number(event.target.value);
      this.draw(`choose-${what}`);
    } }, ...options));
  }

  thumbnails() {
    const { patterns } = this.found, color = getComputedStyle(document.documentElement).getPropertyValue("--accent-ink");
    const grid = vars(el("div", { id: "heads", role: "group", "aria-label": say("heads") }), { columns: patterns[0].length });
    patterns.forEach((heads, block) => heads.forEach((pattern, head) => {
      const removed = this.page.ablation.has(`attention.${block}.${head}`) || this.page.ablation.has(`attention.${block}`);
      const chosen = block === this.block && head === this.head;
      grid.append(el("button", {
        type: "button", class: removed ? "removed" : undefined, "aria-pressed": String(chosen), "aria-label": say("headName", { block, head }), title: say("headName", { block, head }),
        "data-at": `${block},${head}`, tabIndex: chosen ? 0 : -1,
        onclick: () => this.goTo(block, head), onkeydown: event => this.move(event),
      }, thumbnail(pattern, color)));
    }));
    return grid;
  }

  goTo(block, head) {
    const { patterns } = this.found;
    this.block = (block + patterns.length) % patterns.length;
    this.head = (head + patterns[0].length) % patterns[0].length;
    this.draw();
    document.querySelector("#heads [aria-pressed=true]")?.focus();
  }

  move(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    this.goTo(this.block + step[0], this.head + step[1]);
  }

  ablations() {
    const { ablation } = this.page;
    const names = { removeHead: `attention.${this.block}.${this.head}`, removeAttention: `attention.${this.block}`, removeFeedForward: `feed_forward.${this.block}` };
    const buttons = Object.entries(names).map(([word, name]) =>
      el("button", { type: "button", "aria-pressed": String(ablation.has(name)), "data-ablate": name, onclick: () => this.page.during(() => this.toggle(name)) }, say(word)));
    const removed = [...ablation].map(name => {
      const [part, block, head] = name.split(".");
      return head === undefined ? say(`${part}.name`, { block }) : say("headName", { block, head });
    });
    return el("div", { class: "ablations", role: "group", "aria-label": say("ablate") }, el("span", {}, say("ablate")), ...buttons,
      ...(removed.length ? [el("span", { class: "soft", role: "status" }, say("removed", { what: removed.join(", ") })), el("button", { type: "button", id: "restore", onclick: () => this.page.during(() => this.toggle(null)) }, say("restore"))] : []));
  }

  async toggle(name) {
    const { ablation } = this.page;
    if (name === null) ablation.clear();
    else if (!ablation.delete(name)) ablation.add(name);
    await this.page.changed();
    (name && document.querySelector(`[data-ablate="${name}"]`) || $("panel")).focus();
  }

  async lens(panel) {
    const layers = await this.page.backend.lens(this.token, LENS_TOP);
    if (this.tab !== "lens") return;
    const rows = layers.map((top, depth) => el("tr", {},
      el("th", { scope: "row" }, depth ? say("afterBlock", { block: depth - 1 }) : say("embedding")),
      ...top.map(({ name, probability }) => vars(el("td", { title: percent(probability) }, el("b", { class: "piece" }, visible(name)), el("small", {}, percent(probability, 1))), { w: probability }))));
    panel.replaceChildren(el("p", { class: "soft" }, say("lensHint", { token: this.name })), this.tokenChoice(),
      el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": say("lens") }, el("table", { id: "lens-table", class: "shaded" }, el("tbody", {}, ...rows))));
  }

  residual(panel) {
    panel.replaceChildren(el("p", { class: "soft" }, say("residualHint", { token: this.name })), this.tokenChoice(),
      el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": say("residual") }, residual(this.found.texts, this.found.norms, this.token, token => this.choose(token))));
  }

  async journey(panel) {
    const steps = await this.page.backend.journey(this.token, this.block);
    if (this.tab !== "journey") return;
    const rows = steps.map(({ name, width, size, numbers }) => {
      const most = Math.max(...numbers.map(Math.abs)) || 1;
      return el("tr", {}, el("th", { scope: "row" }, say(`part.${name}`)), el("td", { class: "n" }, String(width)), el("td", { class: "n" }, size.toFixed(3)),
        ...numbers.map(x => vars(el("td", { class: x < 0 ? "n minus" : "n plus" }, x.toFixed(3)), { w: Math.abs(x) / most })));
    });
    const head = el("tr", {}, ...["stepName", "width", "size"].map(key => el("th", { scope: "col" }, say(key))), el("th", { scope: "colgroup", colSpan: 8 }, say("numbers")));
    panel.replaceChildren(el("p", { class: "soft" }, say("journeyHint", { token: this.name, block: this.block })),
      el("div", { class: "controls" }, this.select("block", this.found.layers), this.tokenChoice()),
      el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": say("journey") }, el("table", { id: "journey-table", class: "numbers" }, el("thead", {}, head), el("tbody", {}, ...rows))));
  }

  tokenChoice() {
    const options = this.found.texts.map((text, i) => el("option", { value: String(i), textContent: `${this.found.start + i}  ${visible(text)}`, selected: i === this.token }));
    return el("label", { class: "token-choice" }, `${say("tokenLabel")} `, el("select", { id: "choose-token", onchange: event => {
      this.token = Number(event.target.value);
      this.draw("choose-token");
    } }, ...options));
  }
}
