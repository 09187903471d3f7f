// Denoisers around the network's, as in diffusion/guidance.py: each takes (x, time) and gives x0.

/** Linear interpolation as torch rounds it. */
const lerp = (a, b, w) => (w < 0.5 ? a + w * (b - a) : b - (b - a) * (1 - w));

/**
 * Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6): both answers come from one batch.
 * @param ask (x, time, labels) => x0
 * @param labels one for each sample; null for a model without classes
 */
export function guided(ask, labels, scale) {
  if (labels === null || scale === 1) return (x, time) => ask(x, time, labels);
  const none = labels.map(() => -1);
  return async (x, time) => {
    const twice = new Float32Array(2 * x.length);
    twice.set(x);
    twice.set(x, x.length);
    const both = await ask(twice, time, [...labels, ...none]);
    return Float32Array.from(x, (_, i) => lerp(both[x.length + i], both[i], scale));
  };
}

/** Keeps what is known where the mask is 0 (Song et al. 2021, arXiv 2011.13456, appendix I.2); 1 is generated. */
export function inpainted(denoise, known, mask) {
  return async (x, time) => {
    const x0 = await denoise(x, time);
    return x0.map((value, i) => (mask[i % mask.length] ? value : known[i % known.length]));
  };
}

/** Clamps x0 to the range of images. */
export function clipped(denoise) {
  return async (x, time) => (await denoise(x, time)).map((value) => Math.min(Math.max(value, -1), 1));
}
