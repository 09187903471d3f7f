// Animated GIFs (GIF89a), uncompressed in colour: an exact palette where 256 colours do, else an even cube of 252.

/** Bytes of the LZW code of palette indices (appendix F of the specification), with codes of 9 to 12 bits. */
function lzw(indices) {
  const [CLEAR, END] = [256, 257];
  const bytes = [];
  let [buffer, filled, width, next, table] = [0, 0, 9, 258, new Map()];
  const put = (code) => {
    buffer |= code << filled;
    for (filled += width; filled >= 8; filled -= 8, buffer >>>= 8) bytes.push(buffer & 255);
  };
  put(CLEAR);
  let prefix = indices[0];
  for (const index of indices.subarray(1)) {
    const key = (prefix << 8) | index;
    if (table.has(key)) {
      prefix = table.get(key);
      continue;
    }
    put(prefix);
    if (next === 4096) {
      put(CLEAR);
      [width, next, table] = [9, 258, new Map()];
    } else {
      if (next === 1 << width) width++;
      table.set(key, next++);
    }
    prefix = index;
  }
  put(prefix);
  put(END);
  if (filled) bytes.push(buffer & 255);
  return bytes;
}

const rgb = (pixels, i) => (pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2];

/** The colours (up to 256 numbers 0xRRGGBB) and the index of each colour. */
function paletteOf(frames) {
  const exact = new Map();
  for (const { data } of frames)
    for (let i = 0; i < data.length && exact.size <= 256; i += 4)
      if (!exact.has(rgb(data, i))) exact.set(rgb(data, i), exact.size);
  if (exact.size <= 256) return [[...exact.keys()], (colour) => exact.get(colour)];
  const cube = [];
  const level = (value, count) => Math.round((value * 255) / (count - 1));
  for (let r = 0; r < 6; r++)
    for (let g = 0; g < 7; g++) for (let b = 0; b < 6; b++) cube.push((level(r, 6) << 16) | (level(g, 7) << 8) | level(b, 6));
  const near = (value, count) => Math.round(((value & 255) * (count - 1)) / 255);
  return [cube, (colour) => (near(colour >> 16, 6) * 7 + near(colour >> 8, 7)) * 6 + near(colour, 6)];
}

/**
 * @param {ImageData[]} frames of one size
 * @param {number} delay of a frame in hundredths of a second; the last one stays ten times as long
 */
export function gif(frames, delay = 20) {
  const { width, height } = frames[0];
  const word = (value) => [value & 255, value >> 8];
  const [colours, indexOf] = paletteOf(frames);
  const table = new Uint8Array(768);
  colours.forEach((colour, i) => table.set([colour >> 16, (colour >> 8) & 255, colour & 255], 3 * i));
  const ascii = (text) => [...text].map((character) => character.charCodeAt(0));
  const chunks = [ascii("GIF89a"), word(width), word(height), [0xf7, 0, 0], table];
  chunks.push([0x21, 0xff, 11], ascii("NETSCAPE2.0"), [3, 1, 0, 0, 0]); // repeats without end
  frames.forEach(({ data }, k) => {
    const indices = Uint8Array.from({ length: width * height }, (_, i) => indexOf(rgb(data, 4 * i)));
    chunks.push([0x21, 0xf9, 4, 0], word(k === frames.length - 1 ? 10 * delay : delay), [0, 0]);
    chunks.push([0x2c, 0, 0, 0, 0], word(width), word(height), [0, 8]);
    const code = lzw(indices);
    for (let i = 0; i < code.length; i += 255) {
      const part = code.slice(i, i + 255);
      chunks.push([part.length], part);
    }
    chunks.push([0]);
  });
  return new Blob([...chunks, [0x3b]].map((chunk) => Uint8Array.from(chunk)), { type: "image/gif" });
}
