// GPT-2 in plain typed arrays: one sequence, with a cache of keys and values.
//
// Matrices are [out, in], row after row. Sums are computed in double precision and stored as float32.

const GROUP = 32; // weights that share a scale

// tensors: name -> Float32Array, by Clearhead's canonical names.
export class Model {
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    const { n_layers: layers, emb_dim: width, context_length: context } = config;
    this.width = width;
    this.headWidth = width / config.n_heads;
    this.keys = Array.from({ length: layers }, () => new Float32Array(context * width));
    this.values = Array.from({ length: layers }, () => new Float32Array(context * width));
    this.cached = []; // the ids whose keys and values are in the cache
    this.removed = ""; // what was ablated when they were computed
    this.blocks = Array.from({ length: layers }, (_, i) => {
      const get = name => tensors.get(`blocks.${i}.${name}`) ?? null;
      return {
        norm1: [get("norm_1.weight"), get("norm_1.bias")],
        qkv: [get("attention.qkv.weight"), get("attention.qkv.bias")],
        out: [get("attention.out.weight"), get("attention.out.bias")],
        norm2: [get("norm_2.weight"), get("norm_2.bias")],
        up: [get("feed_forward.up.weight"), get("feed_forward.up.bias")],
        down: [get("feed_forward.down.weight"), get("feed_forward.down.bias")],
      };
    });
    this.finalNorm = [tensors.get("final_norm.weight"), tensors.get("final_norm.bias")];
    this.head = tensors.get("head.weight") ?? tensors.get("token_embedding.weight");
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
    const tokens = this.tensors.get("token_embedding.weight"), positions = this.tensors.get("position_embedding.weight");
    const x = new Float32Array(count * width), normed = new Float32Array(count * width), added = new Float32Array(count * width);
    const qkv = new Float32Array(count * 3 * width), mixed = new Float32Array(count * width), wide = new Float32Array(count * config.ff_dim);
    for (let t = 0; t < count; t++) for (let c = 0; c < width; c++)
      x[t * width + c] = tokens[ids[start + t] * width + c] + positions[(start + t) * width + c];
    watch?.("embedding", 0, x);
    for (let layer = 0; layer < config.n_layers; layer++) {
      const block = this.blocks[layer];
      normalize(x, block.norm1, normed, config.norm_eps);
      watch?.("norm_1.output", layer, normed);
      product(normed, block.qkv, qkv, width);
      const keys = this.keys[layer], values = this.values[layer];
      for (let t = 0; t < count; t++) {
        keys.set(qkv.subarray((3 * t + 1) * width, (3 * t + 2) * width), (start + t) * width);
        values.set(qkv.subarray((3 * t + 2) * width, (3 * t + 3) * width), (start + t) * width);
      }
      this.attend(qkv, layer, start, count, mixed, ablation, watch);
      product(mixed, block.out, added, width);
      if (ablation.has(`attention.${layer}`)) added.fill(0);
      watch?.("attention.output", layer, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      normalize(x, block.norm2, normed, config.norm_eps);
      watch?.("norm_2.output", layer, normed);
      product(normed, block.up, wide, width);
      watch?.("feed_forward.up", layer, wide);
      for (let i = 0; i < wide.length; i++) wide[i] = gelu(wide[i], config.activation);
      watch?.("feed_forward.activated", layer, wide);
      product(wide, block.down, added, config.ff_dim);
      if (ablation.has(`feed_forward.${layer}`)) added.fill(0);
      watch?.("feed_forward.output", layer, added);
      for (let i = 0; i < x.length; i++) x[i] += added[i];
      watch?.("residual_out", layer, x);
    }
    this.cached = ids.slice();
    return x;
  }

  attend(qkv, layer, start, count, mixed, ablation, watch) {
    const { width, headWidth } = this, keys = this.keys[layer], values = this.values[layer];
    const scale = 1 / Math.sqrt(headWidth);
    for (let head = 0; head < this.config.n_heads; head++) {
      const offset = head * headWidth, removed = ablation.has(`attention.${layer}.${head}`);
      const pattern = watch ? [] : null;
      for (let t = 0; t < count; t++) {
        const length = start + t + 1, weights = new Float64Array(length), q = t * 3 * width + offset;
        let greatest = -Infinity, total = 0;
        for (let s = 0; s < length; s++) {
          let sum = 0;
          for (let d = 0, k = s * width + offset; d < headWidth; d++) sum += qkv[q + d] * keys[k + d];
          weights[s] = sum * scale;
          if (weights[s] > greatest) greatest = weights[s];
        }
        for (let s = 0; s < length; s++) total += weights[s] = Math.exp(weights[s] - greatest);
        const m = t * width + offset;
        mixed.fill(0, m, m + headWidth);
        for (let s = 0; s < length; s++) {
          const weight = (weights[s] /= total);
          if (!removed) for (let d = 0, v = s * width + offset; d < headWidth; d++) mixed[m + d] += weight * values[v + d];
        }
        pattern?.push(Float32Array.from(weights));
      }
      watch?.("attention.pattern", layer, pattern, head);
    }
  }

  // Final norm and head on one vector [C] of the residual stream: logits [V].
  unembed(vector) {
    const normed = new Float32Array(this.width), logits = new Float32Array(this.config.vocab_size);
    normalize(vector, this.finalNorm, normed, this.config.norm_eps);
    product(normed, [this.head, null], logits, this.width);
    return logits;
  }
}

// (x - mean) / sqrt(variance + eps) * weight + bias for each row.
export function normalize(x, [weight, bias], out, eps) {
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

// out = x W^T + b, for x [T, in] and W [out, in]. Four sums run side by side, since none has to wait for another.
function product(x, [weight, bias], out, width) {
  const rows = weight.length / width, count = x.length / width, whole = width - (width % 4);
  for (let row = 0; row < rows; row++) {
    const w = row * width, start = bias ? bias[row] : 0;
    for (let t = 0; t < count; t++) {
      let a = start, b = 0, c = 0, d = 0, i = 0;
      for (let p = t * width; i < whole; i += 4, p += 4) {
        a += weight[w + i] * x[p];
        b += weight[w + i + 1] * x[p + 1];
        c += weight[w + i + 2] * x[p + 2];
        d += weight[w + i + 3] * x[p + 3];
      }
      for (; i < width; i++) a += weight[w + i] * x[t * width + i];
      out[t * rows + row] = a + b + (c + d);
    }
  }
}

const ROOT = Math.sqrt(2 / Math.PI);

function gelu(x, form) {
  if (form === "gelu_tanh") return 0.5 * x * (1 + Math.tanh(ROOT * (x + 0.044715 * x * x * x)));
  return 0.5 * x * (1 + erf(x / Math.SQRT2));
}

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

// The tensors of a file: { name, shape, dtype, offset } each, with offsets into `bytes`.
export function readTensors(table, bytes) {
  const tensors = new Map();
  for (const { name, shape, dtype, offset } of table) tensors.set(name, readers[dtype](bytes, offset, shape));
  return tensors;
}

const readers = {
  float32(bytes, offset, shape) {
    const size = shape.reduce((a, b) => a * b, 1);
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset + offset, bytes.byteOffset + offset + 4 * size));
  },
  bfloat16(bytes, offset, shape) {
    const size = shape.reduce((a, b) => a * b, 1);
    return bfloat16(bytes, offset, size);
  },
  // Rows of int8 in groups of 32, then a bfloat16 scale for each group.
  int8(bytes, offset, [rows, width]) {
    const groups = Math.ceil(width / GROUP), values = new Float32Array(rows * width);
    const whole = new Int8Array(bytes.buffer, bytes.byteOffset + offset, rows * width);
    const scales = bfloat16(bytes, offset + rows * width, rows * groups);
    for (let row = 0, i = 0; row < rows; row++)
      for (let c = 0; c < width; c++, i++) values[i] = whole[i] * scales[row * groups + ((c / GROUP) | 0)];
    return values;
  },
};

function bfloat16(bytes, offset, size) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, 2 * size), bits = new Uint32Array(size);
  for (let i = 0; i < size; i++) bits[i] = view.getUint16(2 * i, true) << 16;
  return new Float32Array(bits.buffer);
}
