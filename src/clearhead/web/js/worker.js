// The worker: holds the model and answers the page's requests. Everything slow is here, so that the page never freezes.

import { Tokenizer } from "./tokenizer.js";
import { probability, sample } from "./sampling.js";
import { Model } from "./model.js";

let model, tokenizer, stopped = 0, inspected = null;

const handlers = {
  open({ about, weights }) {
    tokenizer = new Tokenizer(about.tokenizer);
    const kernels = Uint8Array.from(atob(about.kernels), letter => letter.charCodeAt(0));
    model = new Model(about.config, about.tensors, weights, kernels);
    return { endOfText: tokenizer.endOfText, simd: model.compute.simd };
  },

  encode({ text }) {
    const ids = tokenizer.encode(text);
    return { ids, texts: tokenizer.texts(ids) };
  },

  describe({ ids }) {
    return { texts: tokenizer.texts(ids), names: ids.map(id => tokenizer.name(id)) };
  },

  // The logits after `ids`.
  logits({ ids, ablation }) {
    return model.logits(windowOf(ids), new Set(ablation));
  },

  // The model's probability of each token given those before it; the first has none.
  score({ ids, ablation }) {
    const window = windowOf(ids), found = new Array(ids.length).fill(null);
    const removed = new Set(ablation), hidden = model.extend(window, 0, removed), width = model.width;
    model.removed = [...removed].sort().join();
    for (let t = 0; t + 1 < window.length; t++) {
      const logits = model.unembed(hidden.subarray(t * width, (t + 1) * width));
      found[ids.length - window.length + t + 1] = probability(logits, window[t + 1]);
    }
    return found;
  },

  // Generates tokens one after another; each is posted as soon as it is chosen.
  async generate({ number, ids, generated, params, most, ablation }) {
    const path = ids.slice(), prompt = ids.length - generated, removed = new Set(ablation);
    const history = new Map(path.slice(0, prompt).map(id => [id, 0]));
    for (const id of path.slice(prompt)) history.set(id, (history.get(id) ?? 0) + 1);
    let window = windowOf(path, prompt);
    for (let step = 0; step < most; step++) {
      const logits = model.logits(window, removed);
      const id = sample(logits, params, history, generated + step);
      if (id === tokenizer.endOfText) return { ended: "end of text" };
      path.push(id);
      history.set(id, (history.get(id) ?? 0) + 1);
      window = moved(window, id);
      postMessage({ number, token: { id, name: tokenizer.name(id), probability: probability(logits, id) } });
      await new Promise(resume => channel(resume)); // lets a request to stop come in
      if (stopped >= number) return { ended: "stopped" };
    }
    return { ended: "length" };
  },

  // One full pass over the last tokens of `ids`, kept for `lens` and `journey`.
  inspect({ ids, ablation, most }) {
    const window = ids.slice(-Math.min(most, model.config.context_length));
    const layers = model.config.n_layers, patterns = [], residuals = [], parts = [];
    const first = value => Float32Array.from(value);
    model.removed = [...ablation].sort().join();
    model.extend(window, 0, new Set(ablation), (name, layer, value, head) => {
      if (name === "attention.pattern") (patterns[layer] ??= [])[head] = value;
      else if (name === "embedding" || name === "residual_out") residuals.push(first(value));
      if (name !== "attention.pattern") parts.push({ name, layer, value: first(value) });
    });
    inspected = { window, residuals, parts };
    const width = model.width;
    const norms = residuals.map(x => window.map((_, t) => rootMeanSquare(x.subarray(t * width, (t + 1) * width))));
    return { start: ids.length - window.length, count: window.length, layers, patterns, norms };
  },

  // What the head makes of the residual stream at one position, after the embedding and after each block.
  lens({ position, most }) {
    const width = model.width;
    return inspected.residuals.map(x => {
      const logits = model.unembed(x.subarray(position * width, (position + 1) * width));
      return likeliest(logits, most);
    });
  },

  // The vectors of one position on their way: for each step its width, size and first numbers.
  journey({ position, layer }) {
    const found = [], { window, parts } = inspected;
    for (const part of parts) {
      if (part.name !== "embedding" && part.layer !== layer) continue;
      const width = part.value.length / window.length;
      const vector = part.value.subarray(position * width, (position + 1) * width);
      found.push({ name: part.name, width, size: rootMeanSquare(vector), numbers: Array.from(vector.subarray(0, 8)) });
    }
    return found;
  },
};

// The part of a path that the model reads: when a generated token no longer fits, the newest half stays.
function windowOf(ids, prompt = ids.length) {
  const context = model.config.context_length;
  let window = ids.slice(Math.max(0, prompt - context), prompt);
  for (const id of ids.slice(prompt)) window = moved(window, id);
  return window;
}

function moved(window, id) {
  const context = model.config.context_length;
  return window.length < context ? [...window, id] : [...window, id].slice(-Math.max(1, context >> 1));
}

function likeliest(logits, most) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, most);
  return order.map(id => ({ id, name: tokenizer.name(id), probability: probability(logits, id) }));
}

const rootMeanSquare = vector => Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0) / vector.length);

const messages = new MessageChannel(), waiting = [];
messages.port1.onmessage = () => waiting.shift()();
function channel(resume) {
  waiting.push(resume);
  messages.port2.postMessage(null);
}

onmessage = async ({ data }) => {
  if (data.kind === "stop") {
    stopped = data.number;
    return;
  }
  try {
    postMessage({ number: data.number, result: await handlers[data.kind](data) });
  } catch (error) {
    postMessage({ number: data.number, error: String(error?.message ?? error) });
  }
};
