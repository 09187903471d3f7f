// The random numbers of diffusion/noise.py: a draw is a function of (seed, index, step, draw) and of nothing else.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const SAMPLING = 3; // the stream of samples, so that training and sampling share no numbers
const TURN = Math.fround((2 * Math.PI) / 2 ** 32);

/** The upper 32 bits of the product of two 32-bit words; a number holds only 53 bits of the 64. */
function high(a, b) {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const other = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + (middle >>> 16) + (other >>> 16)) >>> 0;
}

/** Philox4x32-10 (Salmon et al. 2011, table 2): four words of random bits for a counter of four words and a key of two. */
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [low0, low2] = [Math.imul(c0, MULTIPLIERS[0]) >>> 0, Math.imul(c2, MULTIPLIERS[1]) >>> 0];
    const [high0, high2] = [high(c0, MULTIPLIERS[0]), high(c2, MULTIPLIERS[1])];
    [c0, c1, c2, c3] = [(high2 ^ c1 ^ k0) >>> 0, low2, (high0 ^ c3 ^ k1) >>> 0, low0];
    [k0, k1] = [(k0 + WEYL[0]) >>> 0, (k1 + WEYL[1]) >>> 0];
  }
  return [c0, c1, c2, c3];
}

/** Box-Muller on two words, rounded to single precision where torch rounds. */
function pair(radiusWord, angleWord) {
  const uniform = Math.fround((radiusWord + 0.5) * 2 ** -32);
  const radius = Math.fround(Math.sqrt(Math.fround(-2 * Math.fround(Math.log(uniform)))));
  const angle = Math.fround(TURN * Math.fround(angleWord));
  return [radius * Math.fround(Math.cos(angle)), radius * Math.fround(Math.sin(angle))];
}

/**
 * Numbers of image `index` from N(0, 1), Float32Array(count).
 * @param {bigint} seed its low 64 bits count
 */
export function normal(seed, index, count, step = 0, draw = 0) {
  const key = [Number(seed & 0xffffffffn), Number((seed >> 32n) & 0xffffffffn)];
  const values = new Float32Array(count);
  for (let block = 0; 4 * block < count; block++) {
    const words = philox([block, index >>> 0, step >>> 0, ((draw << 16) | SAMPLING) >>> 0], key);
    values.set([...pair(words[0], words[1]), ...pair(words[2], words[3])].slice(0, count - 4 * block), 4 * block);
  }
  return values;
}
