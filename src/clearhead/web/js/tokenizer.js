// Byte-level BPE, exactly as GPT-2's: text is split by a pattern, and in each piece the pair of tokens whose merge was
// learned first is joined until no pair can be.

const SPLIT =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const LARGEST_CACHE = 50_000;

export class Tokenizer {
  // definition: { pieces: each id's bytes as a string of characters below 256, merges: [left, right, joined] flattened in
  // order, endOfText: an id or null }.
  constructor(definition) {
    this.size = definition.pieces.length;
    this.endOfText = definition.endOfText;
    this.bytes = definition.pieces.map(piece => Uint8Array.from(piece, letter => letter.charCodeAt(0)));
    this.byteIds = new Int32Array(256).fill(-1);
    for (let id = this.size - 1; id >= 0; id--) if (this.bytes[id].length === 1) this.byteIds[this.bytes[id][0]] = id;
    this.merges = new Map();
    for (let i = 0; i < definition.merges.length; i += 3) {
      const key = definition.merges[i] * this.size + definition.merges[i + 1];
      if (!this.merges.has(key)) this.merges.set(key, { rank: i, joined: definition.merges[i + 2] });
    }
    this.cache = new Map();
  }

  encode(text) {
    const encoder = new TextEncoder(), ids = [];
    for (const [piece] of text.matchAll(SPLIT)) {
      let found = this.cache.get(piece);
      if (!found) {
        found = this.join(encoder.encode(piece));
        if (this.cache.size < LARGEST_CACHE && piece.length < 64) this.cache.set(piece, found);
      }
      for (const id of found) ids.push(id);
    }
    return ids;
  }

  // Joins the tokens of one piece. A heap of candidate pairs keeps even a piece of 100,000 letters fast.
  join(bytes) {
    const ids = Array.from(bytes, byte => this.byteIds[byte]).filter(id => id >= 0);
    const next = ids.map((_, i) => i + 1), previous = ids.map((_, i) => i - 1), heap = [];
    const consider = i => {
      const merge = i >= 0 && next[i] < ids.length ? this.merges.get(ids[i] * this.size + ids[next[i]]) : undefined;
      if (merge) push(heap, { rank: merge.rank, at: i, left: ids[i], right: ids[next[i]], joined: merge.joined });
    };
    for (let i = 0; i + 1 < ids.length; i++) consider(i);
    while (heap.length) {
      const { at, left, right, joined } = pop(heap);
      if (ids[at] !== left || next[at] >= ids.length || ids[next[at]] !== right) continue; // joined otherwise meanwhile
      const gone = next[at];
      ids[at] = joined;
      ids[gone] = -1;
      next[at] = next[gone];
      if (next[gone] < ids.length) previous[next[gone]] = at;
      consider(at);
      consider(previous[at]);
    }
    return ids.filter(id => id >= 0);
  }

  decode(ids) {
    return new TextDecoder().decode(this.concatenated(ids));
  }

  // The text of each token. Tokens that share a character get it where it is complete; the others get "".
  texts(ids) {
    const decoder = new TextDecoder(), found = [];
    for (const id of ids) found.push(decoder.decode(this.bytes[id] ?? new Uint8Array(), { stream: true }));
    if (found.length) found[found.length - 1] += decoder.decode();
    return found;
  }

  // A token on its own: as text, or as its bytes if they are not text by themselves.
  name(id) {
    const bytes = this.bytes[id] ?? new Uint8Array();
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return Array.from(bytes, byte => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
    }
  }

  concatenated(ids) {
    const parts = ids.map(id => this.bytes[id] ?? new Uint8Array());
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let offset = 0;
    for (const part of parts) {
      all.set(part, offset);
      offset += part.length;
    }
    return all;
  }
}

const before = (a, b) => a.rank < b.rank || (a.rank === b.rank && a.at < b.at);

function push(heap, item) {
  let i = heap.length;
  heap.push(item);
  while (i && before(item, heap[(i - 1) >> 1])) {
    heap[i] = heap[(i - 1) >> 1];
    i = (i - 1) >> 1;
  }
  heap[i] = item;
}

function pop(heap) {
  const first = heap[0], item = heap.pop();
  if (!heap.length) return first;
  let i = 0;
  for (let child = 1; child < heap.length; child = 2 * i + 1) {
    if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child++;
    if (!before(heap[child], item)) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = item;
  return first;
}
