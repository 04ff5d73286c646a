// GPT-2: one sequence, with a cache of keys and values. compute.js multiplies; the rest is here, in plain JavaScript.
//
// Matrices are [out, in], row after row.

import { decodeBase64, openCompute, vector } from "./compute.js";

export class Model {
  // config: the model's shape; table: { name, shape, dtype, offset } of each tensor, by Clearhead's canonical names;
  // weights: the tensors in base64; kernels: the WebAssembly module.
  constructor(config, table, weights, kernels) {
    const { n_layers: layers, emb_dim: width, context_length: context, ff_dim: inner, vocab_size: vocabulary } = config;
    this.config = config;
    this.width = width;
    this.headWidth = width / config.n_heads;
    // The whole context's scratch arrays, each under its name and with its number of floats.
    const scratch = {
      x: context * width, normed: context * width, qkv: 3 * context * width, mixed: context * width, added: context * width,
      inner: context * inner, attention: context, one: width, logits: vocabulary,
    };
    const cache = new Array(2 * layers).fill(context * width), size = (3 * weights.length) / 4;
    this.compute = openCompute(kernels, size, Math.max(width, inner), [...Object.values(scratch), ...cache]);
    decodeBase64(weights, this.compute.bytes);
    this.scratch = Object.fromEntries(Object.entries(scratch).map(([name, count]) => [name, this.compute.floats(count)]));
    this.keys = Array.from({ length: layers }, () => this.compute.floats(context * width));
    this.values = Array.from({ length: layers }, () => this.compute.floats(context * width));
    this.cached = []; // the ids whose keys and values are in the cache
    this.removed = ""; // what was ablated when they were computed
    this.place(table);
  }

  // Finds each tensor's place in the network.
  place(table) {
    const { compute } = this, entries = new Map(table.map(entry => [entry.name, entry]));
    const read = name => entries.has(name) ? vector(compute.bytes, entries.get(name)) : null;
    const matrix = name => ({ ...compute.matrix(entries.get(`${name}.weight`)), bias: read(`${name}.bias`) });
    const norm = name => ({ weight: read(`${name}.weight`), bias: read(`${name}.bias`) });
    this.tokens = matrix("token_embedding");
    this.positions = read("position_embedding.weight");
    this.blocks = Array.from({ length: this.config.n_layers }, (_, i) => ({
      norm1: norm(`blocks.${i}.norm_1`), qkv: matrix(`blocks.${i}.attention.qkv`), out: matrix(`blocks.${i}.attention.out`),
      norm2: norm(`blocks.${i}.norm_2`), up: matrix(`blocks.${i}.feed_forward.up`), down: matrix(`blocks.${i}.feed_forward.down`),
    }));
    this.finalNorm = norm("final_norm");
    this.head = entries.has("head.weight") ? matrix("head") : this.tokens;
  }

  // The logits after the last of `ids`, which may be at most context_length. What the cache has of them is not computed
  // again. `ablation` is a set of names such as "attention.2.5" (block 2, head 5), "attention.2" or "feed_forward.2".
  logits(ids, ablation = new Set()) {
    const x = this.extend(ids, this.shared(ids, ablation), ablation);
    return this.unembed(x.subarray(x.length - this.width));
  }

  // How many of the cached tokens can be kept for `ids`; at least the last one is computed again.
  shared(ids, ablation) {
    const removed = [...ablation].sort().join();
    let kept = 0;
    if (removed === this.removed) while (kept < ids.length - 1 && ids[kept] === this.cached[kept]) kept++;
    this.removed = removed;
    return kept;
  }

  // Runs the tokens from `start` on and returns the last block's output, [T - start, C]. `watch(name, layer, values)` gets
  // what is computed on the way; `pattern` gets each head's attention weights.
  extend(ids, start, ablation, watch = null) {
    const { config, width } = this, count = ids.length - start;
    if (ids.length > config.context_length) throw new Error(`${ids.length} tokens do not fit ${config.context_length} positions`);
    this.cached = this.cached.slice(0, start);
    const part = (name, size) => this.scratch[name].subarray(0, count * size);
    const x = part("x", width), normed = part("normed", width), added = part("added", width);
    const qkv = part("qkv", 3 * width), mixed = part("mixed", width), inner = part("inner", config.ff_dim);
    for (let t = 0; t < count; t++) {
      const row = x.subarray(t * width, (t + 1) * width), position = (start + t) * width;
      this.compute.row(this.tokens, ids[start + t], row);
      for (let c = 0; c < width; c++) row[c] += this.positions[position + c];
    }
    watch?.("embedding", 0, x);
    for (let layer = 0; layer < config.n_layers; layer++) {
      const block = this.blocks[layer];
      normalize(x, block.norm1, normed, config.norm_eps);
      watch?.("norm_1.output", layer, normed);
      this.product(normed, block.qkv, qkv);
      const keys = this.keys[layer], values = this.values[layer];
      for (let t = 0; t < count; t++) {
        keys.set(qkv.subarray((3 * t + 1) * width, (3 * t + 2) * width), (start + t) * width);
        values.set(qkv.subarray((3 * t + 2) * width, (3 * t + 3) * width), (start + t) * width);
      }
      this.attend(qkv, layer, start, count, mixed, ablation, watch);
      this.product(mixed, block.out, added);
      if (ablation.has(`attention.${layer}`)) added.fill(0);
      watch?.("attention.output", layer, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      normalize(x, block.norm2, normed, config.norm_eps);
      watch?.("norm_2.output", layer, normed);
      this.product(normed, block.up, inner);
      watch?.("feed_forward.up", layer, inner);
      const activate = ACTIVATIONS[config.activation];
      for (let i = 0; i < inner.length; i++) inner[i] = activate(inner[i]);
      watch?.("feed_forward.activated", layer, inner);
      this.product(inner, block.down, added);
      if (ablation.has(`feed_forward.${layer}`)) added.fill(0);
      watch?.("feed_forward.output", layer, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      watch?.("residual_out", layer, x);
    }
    this.cached = ids.slice();
    return x;
  }

  attend(qkv, layer, start, count, mixed, ablation, watch) {
    const { width, headWidth, compute } = this, scale = 1 / Math.sqrt(headWidth);
    for (let head = 0; head < this.config.n_heads; head++) {
      const offset = head * headWidth, removed = ablation.has(`attention.${layer}.${head}`);
      const keys = this.keys[layer].subarray(offset), values = this.values[layer].subarray(offset), pattern = watch ? [] : null;
      for (let t = 0; t < count; t++) {
        const weights = this.scratch.attention.subarray(0, start + t + 1), q = 3 * t * width + offset, m = t * width + offset;
        compute.scores(qkv.subarray(q, q + headWidth), keys, width, scale, weights);
        softmax(weights);
        if (removed) mixed.fill(0, m, m + headWidth);
        else compute.blend(weights, values, width, mixed.subarray(m, m + headWidth));
        pattern?.push(Float32Array.from(weights));
      }
      watch?.("attention.pattern", layer, pattern, head);
    }
  }

  // out = x W^T + b.
  product(x, matrix, out) {
    const { rows, bias } = matrix;
    this.compute.product(x, matrix, out);
    if (bias) for (let start = 0; start < out.length; start += rows) for (let row = 0; row < rows; row++) out[start + row] += bias[row];
  }

  // Final norm and head on one vector [C] of the residual stream: logits [V].
  unembed(vector) {
    const { one, logits } = this.scratch;
    normalize(vector, this.finalNorm, one, this.config.norm_eps);
    this.product(one, this.head, logits);
    return logits.slice();
  }
}

function softmax(values) {
  let greatest = -Infinity, total = 0;
  for (const value of values) if (value > greatest) greatest = value;
  for (let i = 0; i < values.length; i++) total += values[i] = Math.exp(values[i] - greatest);
  for (let i = 0; i < values.length; i++) values[i] /= total;
}

// (x - mean) / sqrt(variance + eps) * weight + bias for each row.
function normalize(x, { weight, bias }, out, eps) {
  const width = weight.length;
  for (let row = 0; row < x.length; row += width) {
    let mean = 0, variance = 0;
    for (let c = 0; c < width; c++) mean += x[row + c];
    mean /= width;
    for (let c = 0; c < width; c++) variance += (x[row + c] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / width + eps);
    for (let c = 0; c < width; c++) out[row + c] = (x[row + c] - mean) * scale * weight[c] + (bias ? bias[c] : 0);
  }
}

const ROOT = Math.sqrt(2 / Math.PI);

const ACTIVATIONS = {
  gelu_tanh: x => 0.5 * x * (1 + Math.tanh(ROOT * (x + 0.044715 * x * x * x))),
  gelu_erf: x => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu: x => Math.max(0, x),
};

// The error function to about 1e-15: its Taylor series near 0, the continued fraction of erfc beyond.
function erf(x) {
  const y = Math.abs(x);
  if (y < 2.5) {
    let term = y, sum = y;
    for (let n = 1; Math.abs(term) > 1e-17 * sum; n++) sum += (term *= (-y * y) / n) && term / (2 * n + 1);
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (y + fraction);
  return Math.sign(x) * (1 - Math.exp(-y * y) / (Math.sqrt(Math.PI) * (y + fraction)));
}
