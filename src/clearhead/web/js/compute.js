// The model's arithmetic: in WebAssembly with SIMD (kernels.wat), or in plain JavaScript where the browser has none.
//
// Both have the same methods. Float arrays that they work on come from `floats`; a matrix is what `matrix` returns.

const GROUP = 32; // weights that share a scale

// kernels: the WebAssembly module; size: bytes of the model's tensors; widest: the longest row of a matrix; counts: of the
// float arrays that will be asked for.
export function openCompute(kernels, size, widest, counts) {
  try {
    return new SimdCompute(kernels, size, widest, counts);
  } catch {
    return new PlainCompute(size); // no WebAssembly, no SIMD, or the page may not compile it
  }
}

class SimdCompute {
  constructor(kernels, size, widest, counts) {
    const most = [widest, ...counts].reduce((sum, count) => sum + aligned(4 * count), aligned(size));
    this.memory = new WebAssembly.Memory({ initial: Math.ceil(most / 65536) });
    this.run = new WebAssembly.Instance(new WebAssembly.Module(kernels), { page: { memory: this.memory } }).exports;
    this.bytes = new Uint8Array(this.memory.buffer, 0, size);
    this.next = aligned(size);
    this.unpacked = this.floats(widest); // one row of a matrix
    this.simd = true;
  }

  floats(count) {
    const array = new Float32Array(this.memory.buffer, this.next, count);
    this.next += aligned(4 * count);
    return array;
  }

  // A matrix stays as it is in the file.
  matrix({ shape: [rows, width], offset }) {
    return { rows, width, weights: offset, scales: offset + rows * width };
  }

  row({ width, weights, scales }, row, out) {
    this.run.unpack(weights + row * width, scales + 2 * row * Math.ceil(width / GROUP), width, out.byteOffset);
  }

  // out [T, rows] = x [T, width] times the matrix. One token multiplies the int8 weights; several share each unpacked row.
  product(x, matrix, out) {
    const { rows, width, weights, scales } = matrix, count = x.length / width;
    if (count === 1) return this.run.product(x.byteOffset, weights, scales, rows, width, out.byteOffset);
    for (let row = 0; row < rows; row++) {
      this.row(matrix, row, this.unpacked);
      this.run.dots(this.unpacked.byteOffset, x.byteOffset, width, count, width, 1, out.byteOffset + 4 * row, rows);
    }
  }

  // out[s] = factor * query . (row s of keys), whose rows are `stride` floats apart.
  scores(query, keys, stride, factor, out) {
    this.run.dots(query.byteOffset, keys.byteOffset, stride, out.length, query.length, factor, out.byteOffset, 1);
  }

  // out = the sum of weights[s] * (row s of values).
  blend(weights, values, stride, out) {
    this.run.blend(weights.byteOffset, values.byteOffset, stride, weights.length, out.length, out.byteOffset);
  }
}

class PlainCompute {
  constructor(size) {
    this.bytes = new Uint8Array(size);
    this.simd = false;
  }

  floats(count) {
    return new Float32Array(count);
  }

  matrix({ shape: [rows, width], offset }) {
    const groups = Math.ceil(width / GROUP), values = new Float32Array(rows * width);
    const whole = new Int8Array(this.bytes.buffer, offset, rows * width), scales = bfloat16(this.bytes, offset + rows * width, rows * groups);
    for (let row = 0, i = 0; row < rows; row++)
      for (let c = 0; c < width; c++, i++) values[i] = whole[i] * scales[row * groups + ((c / GROUP) | 0)];
    return { rows, width, values };
  }

  row({ width, values }, row, out) {
    out.set(values.subarray(row * width, (row + 1) * width));
  }

  // Four sums run side by side, since none has to wait for another; in double precision.
  product(x, { rows, width, values }, out) {
    const count = x.length / width, whole = width - (width % 4);
    for (let row = 0; row < rows; row++) {
      const w = row * width;
      for (let t = 0; t < count; t++) {
        let a = 0, b = 0, c = 0, d = 0, i = 0;
        for (let p = t * width; i < whole; i += 4, p += 4) {
          a += values[w + i] * x[p];
          b += values[w + i + 1] * x[p + 1];
          c += values[w + i + 2] * x[p + 2];
          d += values[w + i + 3] * x[p + 3];
        }
        for (; i < width; i++) a += values[w + i] * x[t * width + i];
        out[t * rows + row] = a + b + (c + d);
      }
    }
  }

  scores(query, keys, stride, factor, out) {
    for (let s = 0; s < out.length; s++) {
      let sum = 0;
      for (let d = 0, k = s * stride; d < query.length; d++) sum += query[d] * keys[k + d];
      out[s] = sum * factor;
    }
  }

  blend(weights, values, stride, out) {
    out.fill(0);
    for (let s = 0; s < weights.length; s++)
      for (let d = 0, v = s * stride; d < out.length; d++) out[d] += weights[s] * values[v + d];
  }
}

const aligned = bytes => Math.ceil(bytes / 16) * 16;

// A vector of the file, as a copy.
export function vector(bytes, { shape, dtype, offset }) {
  const size = shape.reduce((a, b) => a * b, 1), start = bytes.byteOffset + offset;
  return dtype === "bfloat16" ? bfloat16(bytes, offset, size) : new Float32Array(bytes.buffer.slice(start, start + 4 * size));
}

function bfloat16(bytes, offset, size) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, 2 * size), bits = new Uint32Array(size);
  for (let i = 0; i < size; i++) bits[i] = view.getUint16(2 * i, true) << 16;
  return new Float32Array(bits.buffer);
}

// Decodes base64 into `bytes`, a piece at a time, so that no second string of the whole size exists.
export function decodeBase64(text, bytes) {
  const piece = 1 << 20; // a multiple of 4 characters
  for (let start = 0, at = 0; start < text.length; start += piece) {
    const letters = atob(text.slice(start, start + piece));
    for (let i = 0; i < letters.length; i++) bytes[at++] = letters.charCodeAt(i);
  }
}
