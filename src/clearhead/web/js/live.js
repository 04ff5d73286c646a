// The page's components in another document, such as a chapter of the tour: each figure with `data-live` gets a prompt and
// a component that follows it, in place of its picture. All figures share one worker with one model.

import { DEFAULTS } from "./sampling.js";
import { say, speak } from "./words.js";
import { WorkerBackend } from "./backend.js";
import { debounced, el } from "./dom.js";
import { Distribution, likeliest } from "./distribution.js";
import { Inside } from "./inside.js";

const FIGURE_SLIDERS = { temperature: ["temperature"], cut: ["temperature", "topK", "topP", "minP"] };
const LISTED = 8; // tokens of a distribution

// The parts of a page that `Inside` and `Distribution` use, for one figure.
class LiveFigure {
  constructor(figure, backend, config) {
    Object.assign(this, { figure, backend, config, ablation: new Set(), selected: null, pending: 0, request: 0, settled: debounced(250) });
    this.settings = { ...DEFAULTS, temperature: 1, topP: 1 };
    this.text = { ids: [], texts: [] };
  }

  path() {
    return this.text;
  }

  async during(work) {
    this.pending++;
    this.figure.dataset.state = "busy";
    try {
      await work();
    } catch (error) {
      this.status.textContent = say("lost", { error: error.message });
    }
    if (!--this.pending) this.figure.dataset.state = "ready";
  }

  changed() {
    return this.inside.refresh();
  }

  // Puts the component where the picture is.
  open() {
    const { live, prompt, block, head } = this.figure.dataset, id = `${live}-prompt`;
    this.input = el("input", { id, class: "live-prompt", value: prompt, spellcheck: false, autocomplete: "off", oninput: () => this.during(async () => {
      if (await this.settled()) await this.read();
    }) });
    this.status = el("p", { role: "status", class: "soft small" });
    let component;
    if (FIGURE_SLIDERS[live]) {
      this.distribution = new Distribution(this.settings, null, { prefix: `${live}-`, most: LISTED });
      component = [this.distribution.list, ...FIGURE_SLIDERS[live].map(name => this.distribution.slider(name))];
    } else {
      this.inside = new Inside(this, [live]);
      if (block) Object.assign(this.inside, { block: Number(block), head: Number(head) });
      component = [this.inside.build()];
    }
    this.figure.replaceChildren(el("label", { for: id, class: "caption" }, say("prompt")), this.input, ...component, this.status);
    for (const element of this.figure.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
    this.distribution?.showSettings();
    return this.during(() => this.read());
  }

  async read() {
    this.text = await this.backend.encode(this.input.value);
    await (this.inside ? this.inside.refresh() : this.show());
  }

  // Shows the distribution after the prompt.
  async show() {
    const { ids } = this.text, { names } = this.distribution, request = ++this.request;
    const logits = ids.length ? await this.backend.logits(ids, []) : null;
    const listed = logits ? likeliest(logits, LISTED) : [];
    if (logits) (await this.backend.describe(listed)).names.forEach((name, i) => names.set(listed[i], name));
    if (request === this.request) this.distribution.show(logits && { logits, intact: logits, history: new Map(), taken: null });
    this.status.textContent = say(logits ? "marksLive" : "nothing");
  }
}

// Replaces the figures' pictures as soon as the model is here. If that fails, the pictures stay.
async function openFigures() {
  const figures = [...document.querySelectorAll("figure[data-live]")];
  if (!figures.length || typeof Worker === "undefined") return;
  speak(document.documentElement.lang.startsWith("zh") ? "zh" : "en");
  const answer = await fetch("/live.json");
  if (!answer.ok) return;
  const { about, weights, worker } = await answer.json(), backend = new WorkerBackend(worker, about, weights);
  await backend.open();
  for (const figure of figures) await new LiveFigure(figure, backend, about.config).open();
}

openFigures();
