// Samples as pixels: images side by side, or points as a cloud.

const GAP = 1; // pixels between images

/** Columns and rows of a near-square table of n images. */
export function layout(n) {
  const columns = Math.ceil(Math.sqrt(n));
  return { columns, rows: Math.ceil(n / columns) };
}

/** A value in [-1, 1] as a byte, as Python rounds it. */
export const toByte = (value) => Math.min(Math.max(Math.round((value + 1) * 127.5), 0), 255);

const VISIBLE = [-4, 8]; // log-SNR between which a change of the noise can be seen, as in diffusion/sampling/pipeline.py

/** At most so many of the states with these log-SNRs for an animation: even in log-SNR where it is visible, the first and
 * the last among them, as `visible` there chooses them. */
export function evenly(logSNR, count) {
  const [low, high] = VISIBLE;
  const end = logSNR.length - 1;
  const seen = logSNR.map((_, k) => k).filter((k) => k === 0 || k === end || (low < logSNR[k] && logSNR[k] < high));
  const places = seen.map((k) => Math.min(Math.max(logSNR[k], low), high));
  const [first, last, frames] = [places[0], places.at(-1), Math.min(count, seen.length)];
  const chosen = [];
  for (let k = 0, from = 0; k < frames - 1; k++) {
    const target = first + ((last - first) * k) / (frames - 1);
    let nearest = from; // each later frame keeps a state for itself
    for (let i = from; i <= seen.length - frames + k; i++) {
      if (Math.abs(places[i] - target) < Math.abs(places[nearest] - target)) nearest = i;
    }
    chosen.push(seen[nearest]);
    from = nearest + 1;
  }
  return [...chosen, end];
}

/** Images (n, C, H, W) as one picture of native size. */
export function table(values, [channels, height, width]) {
  const plane = height * width;
  const n = values.length / (channels * plane);
  const { columns, rows } = layout(n);
  const picture = new ImageData(columns * (width + GAP) - GAP, rows * (height + GAP) - GAP);
  for (let k = 0; k < n; k++) {
    const [left, top] = [(k % columns) * (width + GAP), Math.floor(k / columns) * (height + GAP)];
    for (let i = 0; i < plane; i++) {
      const at = 4 * ((top + Math.floor(i / width)) * picture.width + left + (i % width));
      for (let c = 0; c < 3; c++) {
        picture.data[at + c] = toByte(values[(k * channels + (channels === 1 ? 0 : c)) * plane + i]);
      }
      picture.data[at + 3] = 255;
    }
  }
  return picture;
}

/** The image under a place of the picture, given as shares of its width and height. */
export function imageAt(across, down, n) {
  const { columns, rows } = layout(n);
  return Math.floor(down * rows) * columns + Math.floor(across * columns);
}

/** Points (n, 2) as a cloud in the square from -limit to limit; where more points lie the ink is darker. */
export function cloud(values, limit, side = 400) {
  const [ink, paper] = [[46, 62, 180], [255, 255, 255]];
  const weight = new Float32Array(side * side);
  const place = (value) => Math.round(((value / limit + 1) / 2) * (side - 1));
  for (let i = 0; i < values.length; i += 2) {
    const [column, row] = [place(values[i]), side - 1 - place(values[i + 1])];
    for (let y = -1; y <= 1; y++)
      for (let x = -1; x <= 1; x++)
        if (column + x >= 0 && column + x < side && row + y >= 0 && row + y < side)
          weight[(row + y) * side + column + x] += x || y ? 0.25 : 0.6;
  }
  const picture = new ImageData(side, side);
  weight.forEach((value, i) => {
    const share = Math.min(value, 1);
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round(paper[c] + share * (ink[c] - paper[c]));
    picture.data[4 * i + 3] = 255;
  });
  return picture;
}

/** Shows a picture in a canvas of its size. */
export function show(canvas, picture) {
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** The picture with each pixel as a square, so that small images can be seen in any viewer. */
export function enlarged(picture) {
  const scale = Math.max(1, Math.round(768 / Math.max(picture.width, picture.height)));
  const small = new OffscreenCanvas(picture.width, picture.height);
  small.getContext("2d").putImageData(picture, 0, 0);
  const canvas = new OffscreenCanvas(picture.width * scale, picture.height * scale);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return canvas;
}
