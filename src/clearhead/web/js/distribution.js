// The distribution of one token as bars, and the sliders that change it before anything is generated.

import { DEFAULTS, distribution, probability } from "./sampling.js";
import { say } from "./words.js";
import { el, vars, visible, percent } from "./dom.js";

const LIKELIEST = 20;
const SLIDERS = {
  temperature: { min: 0, max: 2, step: 0.05, digits: 2 }, topK: { min: 0, max: 100, step: 1, digits: 0, all: true },
  topP: { min: 0.05, max: 1, step: 0.01, digits: 2 }, minP: { min: 0, max: 0.5, step: 0.01, digits: 2 },
  repetition: { min: 1, max: 2, step: 0.05, digits: 2 }, presence: { min: -2, max: 2, step: 0.1, digits: 1 }, frequency: { min: -2, max: 2, step: 0.1, digits: 1 },
};

export class Distribution {
  // settings: the sampling options, which the sliders change; pick(id, share): called when a token is chosen, or null;
  // prefix: of the elements' ids, if several are in one document; most: how many tokens are listed.
  constructor(settings, pick = null, { prefix = "", most = LIKELIEST } = {}) {
    Object.assign(this, { settings, pick, prefix, most, names: new Map(), sliders: new Map(), given: null });
    this.list = el("ol", { id: `${prefix}distribution`, class: "distribution" });
  }

  slider(name) {
    const { min, max, step } = SLIDERS[name], id = `${this.prefix}${name}`, output = el("output", { id: `${id}-value` });
    const input = el("input", { id, type: "range", min, max, step, value: this.settings[name], oninput: () => {
      this.settings[name] = Number(input.value);
      this.showSettings();
      this.draw();
    } });
    this.sliders.set(name, { input, output });
    return el("label", { class: "slider" }, el("span", { "data-word": name }), input, output);
  }

  seed() {
    const most = 2 ** 53 - 1;
    this.seedInput = el("input", { id: `${this.prefix}seed`, type: "number", min: 0, max: most, step: 1, value: this.settings.seed, onchange: ({ target }) => {
      target.value = this.settings.seed = Math.min(most, Math.max(0, Math.floor(Number(target.value)) || 0));
    } });
    return el("label", { class: "slider" }, el("span", { "data-word": "seed" }), this.seedInput);
  }

  reset() {
    Object.assign(this.settings, DEFAULTS);
    this.showSettings();
    this.draw();
  }

  showSettings() {
    for (const [name, { input, output }] of this.sliders) {
      const { digits, all } = SLIDERS[name], text = all && this.settings[name] === 0 ? say("all") : this.settings[name].toFixed(digits);
      input.value = this.settings[name];
      input.setAttribute("aria-valuetext", text);
      output.textContent = text;
    }
    if (this.seedInput) this.seedInput.value = this.settings.seed;
  }

  // given: { logits, intact: those of the whole model, history: Map from id to how often it was generated, taken: the
  // token that the text has here }, or null for an empty list.
  show(given) {
    this.given = given && { ...given, listed: likeliest(given.logits, this.most).map(id => ({ id, own: probability(given.intact, id) })) };
    this.draw();
  }

  draw() {
    if (!this.given) return this.list.replaceChildren();
    const { logits, listed, history, taken } = this.given, focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const { ids, probabilities } = distribution(logits, this.settings, history);
    const shares = ids && new Map(ids.map((id, i) => [id, probabilities[i]])), of = id => (shares ? shares.get(id) ?? 0 : probabilities[id]);
    const rows = listed.map(({ id, own }) => ({ id, now: of(id), own }));
    const left = which => Math.max(0, 1 - rows.reduce((sum, row) => sum + row[which], 0));
    const others = Math.max(0, probabilities.length - rows.filter(row => row.now > 0).length);
    this.list.replaceChildren(...rows.map(row => this.row(row, row.id === taken)),
      bars(el("li", { class: "rest" }), el("div"), say("rest", { count: others.toLocaleString("en") }), { now: others && left("now"), own: left("own") }));
    if (focused !== null) this.list.querySelector(`[data-id="${focused}"]`)?.focus();
  }

  row({ id, now, own }, taken) {
    const name = visible(this.names.get(id) ?? ""), details = { "data-id": id, class: taken ? "taken" : undefined };
    const holder = this.pick
      ? el("button", { ...details, type: "button", title: say("pick", { token: name, share: percent(now) }), onclick: () => this.pick(id, own) })
      : el("div", details);
    return bars(el("li"), holder, name, { now, own });
  }
}

// A token's name, its bar and its percentage, in `holder`.
function bars(item, holder, name, { now, own }) {
  holder.append(el("span", { class: "piece" }, name), el("span", { class: "track" }, el("i", { class: "bar" }), el("i", { class: "own" })), el("span", { class: "share" }, percent(now)));
  item.append(holder);
  return vars(item, { now, own });
}

export function likeliest(logits, most = LIKELIEST) {
  return Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, most);
}
