import { DEFAULTS, probability, sample } from "./sampling.js";

// What the page asks of a model. A backend has these methods, all of which return promises:
//
//   open()                                  -> { endOfText, simd? }
//   encode(text)                            -> { ids, texts }
//   describe(ids)                           -> { texts, names }
//   logits(ids, ablation)                   -> Float32Array of the next token's logits
//   score(ids, ablation)                    -> probabilities, null for the first token
//   generate(ids, options, onToken)         -> { ended }; onToken({ id, probability, name? }) for each token
//   stop()
//   inspect(ids, ablation, most)            -> { start, count, layers, patterns, norms }
//   lens(position, most), journey(position, layer)   of what was inspected last

export class WorkerBackend {
  constructor(source, about, weights) {
    this.url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(this.url);
    this.about = about;
    this.weights = weights;
    this.number = 0;
    this.waiting = new Map();
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = event => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the worker failed"));
      this.waiting.clear();
    };
  }

  receive({ number, result, error, token }) {
    const request = this.waiting.get(number);
    if (!request) return;
    if (token) return request.onToken(token);
    this.waiting.delete(number);
    if (error) request.reject(new Error(error));
    else request.resolve(result);
  }

  ask(kind, details = {}, onToken = null) {
    const number = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject, onToken });
      this.worker.postMessage({ ...details, kind, number });
    });
  }

  open() {
    const { about, weights } = this;
    this.weights = null;
    return this.ask("open", { about, weights });
  }

  encode(text) {
    return this.ask("encode", { text });
  }

  describe(ids) {
    return this.ask("describe", { ids });
  }

  logits(ids, ablation) {
    return this.ask("logits", { ids, ablation });
  }

  score(ids, ablation) {
    return this.ask("score", { ids, ablation });
  }

  generate(ids, options, onToken) {
    return this.ask("generate", { ids, ...options }, onToken);
  }

  stop() {
    this.worker.postMessage({ kind: "stop", number: this.number });
  }

  inspect(ids, ablation, most) {
    return this.ask("inspect", { ids, ablation, most });
  }

  lens(position, most) {
    return this.ask("lens", { position, most });
  }

  journey(position, layer) {
    return this.ask("journey", { position, layer });
  }
}

// A server of Clearhead: `/v1/completions` streams text, `/inspect` tells the rest.
export class HttpBackend {
  constructor(about) {
    this.about = about;
    this.key = null; // never stored
    this.aborts = new AbortController();
    this.window = [];
  }

  async request(path, options = {}) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the server answered ${answer.status}`);
  }

  post(path, body, signal) {
    return this.request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  }

  // Uses an API key from now on, and returns the description of the model for the page.
  async unlock(key) {
    this.key = key;
    this.about = await (await this.request("inspect")).json();
    return this.about;
  }

  async inspected(prompt, details = {}) {
    return (await this.post("inspect", { prompt, ...details })).json();
  }

  async open() {
    return { endOfText: this.about.endOfText };
  }

  encode(text) {
    return this.inspected(text.toWellFormed?.() ?? text);
  }

  describe(ids) {
    return this.inspected(ids);
  }

  async logits(ids, ablation) {
    const { logits } = await this.inspected(ids, { ask: ["logits"], removed: ablation });
    return new Float32Array(Uint8Array.from(atob(logits), letter => letter.charCodeAt(0)).buffer);
  }

  async score(ids, ablation) {
    const { probabilities, start } = await this.inspected(ids, { ask: ["probabilities"], removed: ablation });
    return [...new Array(start).fill(null), ...probabilities];
  }

  // A text from its beginning is streamed. One that goes on from a branch, or with parts removed, asks for the logits of
  // each token, so that the noise of a seed stays that of the token's position.
  async generate(ids, { generated, params, most, ablation }, onToken) {
    this.aborts = new AbortController();
    const room = this.about.config.context_length - ids.length;
    try {
      if (!generated && !ablation.length && room > 0) return await this.stream(ids, { ...DEFAULTS, ...params }, Math.min(most, room), onToken);
      return await this.loop(ids, generated, params, most, ablation, onToken);
    } catch (error) {
      if (error.name === "AbortError") return { ended: "stopped" };
      throw error;
    }
  }

  async stream(ids, params, most, onToken) {
    const { temperature, topK, topP, minP, repetition, presence, frequency, seed } = params;
    const body = {
      prompt: ids, max_tokens: most, stream: true, logprobs: 0, return_tokens_as_token_ids: true, temperature, top_p: topP, seed,
      min_p: minP, repetition_penalty: repetition, presence_penalty: presence, frequency_penalty: frequency, ...(topK ? { top_k: topK } : {}),
    };
    const reader = (await this.post("v1/completions", body, this.aborts.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    let buffered = "", ended = null;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (buffered + value).split("\n");
      buffered = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const { choices, error } = JSON.parse(line.slice(6));
        if (error) throw new Error(error.message);
        const [{ logprobs, finish_reason: reason }] = choices;
        (logprobs?.tokens ?? []).forEach((token, i) => onToken({ id: Number(token.split(":")[1]), probability: Math.exp(logprobs.token_logprobs[i]) }));
        if (reason) ended = reason === "stop" ? "end of text" : "length";
      }
    }
    if (ended === null) throw new Error("the server closed the connection");
    return { ended };
  }

  async loop(ids, generated, params, most, ablation, onToken) {
    const path = ids.slice(), prompt = ids.length - generated, { signal } = this.aborts;
    const history = new Map(path.slice(0, prompt).map(id => [id, 0]));
    for (const id of path.slice(prompt)) history.set(id, (history.get(id) ?? 0) + 1);
    for (let step = 0; step < most; step++) {
      const logits = await this.logits(path, ablation);
      if (signal.aborted) return { ended: "stopped" };
      const id = sample(logits, params, history, generated + step);
      if (id === this.about.endOfText) return { ended: "end of text" };
      path.push(id);
      history.set(id, (history.get(id) ?? 0) + 1);
      onToken({ id, probability: probability(logits, id) });
    }
    return { ended: "length" };
  }

  stop() {
    this.aborts.abort();
  }

  async inspect(ids, ablation, most) {
    this.window = ids.slice(-most);
    this.removed = ablation;
    const { start, attention, norms } = await this.inspected(ids, { ask: ["attention", "norms"], removed: ablation, last: most });
    return { start, count: norms[0].length, layers: attention.length, patterns: attention, norms };
  }

  async lens(position, most) {
    return (await this.inspected(this.window, { ask: ["lens"], removed: this.removed, position, top: most })).lens;
  }

  async journey(position, block) {
    return (await this.inspected(this.window, { ask: ["vectors"], removed: this.removed, position, block })).vectors;
  }
}
