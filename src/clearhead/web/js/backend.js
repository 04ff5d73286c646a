// What the page asks of a model. A backend has these methods, all of which return promises:
//
//   open()                                  -> { endOfText }
//   encode(text)                            -> { ids, texts }
//   describe(ids)                           -> { texts, names }
//   logits(ids, ablation)                   -> Float32Array of the next token's logits
//   score(ids, ablation)                    -> probabilities, null for the first token
//   generate(ids, options, onToken)         -> { ended }; onToken({ id, probability }) for each token
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
