// From logits to a token, as `clearhead.inference.sampling` does it: the same seed gives the same text.
//
// Penalties change the logits; temperature 0 takes the largest; otherwise top-k, top-p and min-p leave tokens out in this
// order, and the token with the largest logit / temperature + Gumbel noise wins. The noise is a function of seed, sample
// index, position and token id: SplitMix64's output number `id` for a state hashed from the other three.

const GAMMA = 0x9e3779b97f4a7c15n, MIX_1 = 0xbf58476d1ce4e5b9n, MIX_2 = 0x94d049bb133111ebn, MASK = (1n << 64n) - 1n;
const [GAMMA_HIGH, GAMMA_LOW] = halves(GAMMA), [MIX_1_HIGH, MIX_1_LOW] = halves(MIX_1), [MIX_2_HIGH, MIX_2_LOW] = halves(MIX_2);
const fround = Math.fround;

export const DEFAULTS = {
  temperature: 0.8, topK: 0, topP: 0.95, minP: 0, repetition: 1, presence: 0, frequency: 0, seed: 1,
};

function halves(value) {
  return [Number(value >> 32n) >>> 0, Number(value & 0xffffffffn) >>> 0];
}

export function streamKey(seed, sampleIndex, position) {
  let key = 0n;
  for (const word of [BigInt(seed), BigInt(sampleIndex), BigInt(position)]) {
    let z = ((key ^ word) + GAMMA) & MASK;
    z = ((z ^ (z >> 30n)) * MIX_1) & MASK;
    z = ((z ^ (z >> 27n)) * MIX_2) & MASK;
    key = z ^ (z >> 31n);
  }
  return halves(key);
}

// The upper half of a product of two unsigned 32-bit numbers; `Math.imul` gives the lower half.
function upper(a, b) {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const other = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(other / 65536)) >>> 0;
}

// A token's uniform number, strictly between 0 and 1, from the upper 53 of its 64 random bits.
export function uniform([keyHigh, keyLow], id) {
  const n = id + 1; // z = key + (id + 1) * GAMMA
  let low = Math.imul(n, GAMMA_LOW) >>> 0;
  let high = (upper(n, GAMMA_LOW) + Math.imul(n, GAMMA_HIGH)) >>> 0;
  const sum = low + keyLow;
  high = (high + keyHigh + (sum > 0xffffffff ? 1 : 0)) >>> 0;
  low = sum >>> 0;
  // z = (z ^ (z >> 30)) * MIX_1
  let xLow = (low ^ ((low >>> 30) | (high << 2))) >>> 0, xHigh = (high ^ (high >>> 30)) >>> 0;
  low = Math.imul(xLow, MIX_1_LOW) >>> 0;
  high = (upper(xLow, MIX_1_LOW) + Math.imul(xLow, MIX_1_HIGH) + Math.imul(xHigh, MIX_1_LOW)) >>> 0;
  // z = (z ^ (z >> 27)) * MIX_2
  xLow = (low ^ ((low >>> 27) | (high << 5))) >>> 0;
  xHigh = (high ^ (high >>> 27)) >>> 0;
  low = Math.imul(xLow, MIX_2_LOW) >>> 0;
  high = (upper(xLow, MIX_2_LOW) + Math.imul(xLow, MIX_2_HIGH) + Math.imul(xHigh, MIX_2_LOW)) >>> 0;
  // z = z ^ (z >> 31)
  xLow = (low ^ ((low >>> 31) | (high << 1))) >>> 0;
  xHigh = (high ^ (high >>> 31)) >>> 0;
  return (xHigh * 2 ** 21 + (xLow >>> 11) + 0.5) * 2 ** -53;
}

// Penalties on the tokens seen before. history: Map from id to how often it was generated (0: only in the prompt).
export function penalized(logits, history, params) {
  if (params.repetition === 1 && !params.presence && !params.frequency) return logits;
  const changed = Float32Array.from(logits);
  const repetition = fround(params.repetition), presence = fround(params.presence), frequency = fround(params.frequency);
  for (const [id, count] of history) {
    let value = changed[id];
    if (repetition !== 1) value = fround(value > 0 ? value / repetition : value * repetition);
    if (presence || frequency) value = fround(fround(value - (count ? presence : 0)) - fround(frequency * count));
    changed[id] = value;
  }
  return changed;
}

// The ids that top-k, top-p and min-p leave, ascending; null if they leave all.
function remaining(logits, best, params) {
  let ids = null;
  if (params.topK > 0 && params.topK < logits.length) {
    const edge = Float32Array.from(logits).sort()[logits.length - params.topK];
    ids = [];
    for (let id = 0; id < logits.length; id++) if (logits[id] > edge) ids.push(id);
    let room = params.topK - ids.length;
    for (let id = 0; id < logits.length && room; id++) if (logits[id] === edge) {
      ids.push(id);
      room--;
    }
    ids.sort((a, b) => a - b);
  }
  if (params.topP < 1) {
    const among = ids ?? Array.from(logits, (_, id) => id);
    const temperature = fround(params.temperature), top = fround(best);
    const weights = among.map(id => fround(Math.exp(fround(fround(logits[id] - top) / temperature))));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const lightest = ((1 - params.topP) * total) / weights.length; // lighter ones cannot belong to the set
    const order = [...weights.keys()].filter(i => weights[i] >= lightest).sort((a, b) => weights[b] - weights[a] || a - b);
    let reached = 0, count = 0;
    for (; count < order.length; count++) {
      reached += weights[order[count]];
      if (reached >= params.topP * total) break;
    }
    ids = order.slice(0, count + 1).map(i => among[i]).sort((a, b) => a - b);
  }
  if (params.minP > 0) {
    const lowest = fround(best + params.temperature * Math.log(params.minP));
    ids = (ids ?? Array.from(logits, (_, id) => id)).filter(id => logits[id] >= lowest);
  }
  return ids;
}

function largest(logits) {
  let found = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[found]) found = id;
  return found;
}

// What `sample` chooses from: { ids (null for all), probabilities, top }.
export function distribution(logits, params, history = new Map()) {
  const adjusted = penalized(logits, history, params), top = largest(adjusted), best = adjusted[top];
  if (params.temperature === 0) return { ids: [top], probabilities: [1], top };
  const ids = remaining(adjusted, best, params);
  const weights = new Float64Array(ids ? ids.length : adjusted.length);
  let total = 0;
  for (let i = 0; i < weights.length; i++) {
    weights[i] = Math.exp((adjusted[ids ? ids[i] : i] - best) / params.temperature);
    total += weights[i];
  }
  for (let i = 0; i < weights.length; i++) weights[i] /= total;
  return { ids, probabilities: weights, top };
}

export function sample(logits, params, history, position, sampleIndex = 0) {
  const adjusted = penalized(logits, history, params), top = largest(adjusted), best = adjusted[top];
  if (params.temperature === 0) return top;
  const ids = remaining(adjusted, best, params), key = streamKey(params.seed, sampleIndex, position);
  let found = -1, greatest = -Infinity;
  for (let i = 0; i < (ids ? ids.length : adjusted.length); i++) {
    const id = ids ? ids[i] : i;
    const score = (adjusted[id] - best) / params.temperature - Math.log(-Math.log(uniform(key, id)));
    if (score > greatest) {
      greatest = score;
      found = id;
    }
  }
  return found;
}

// The model's own probability of one token: the softmax of the logits, without any option.
export function probability(logits, id) {
  let best = -Infinity, total = 0;
  for (const logit of logits) if (logit > best) best = logit;
  for (const logit of logits) total += Math.exp(logit - best);
  return Math.exp(logits[id] - best) / total;
}
