// Draws in a thread of its own, so that the page stays alive. Messages in: load, draw, stop.
import { clipped, guided, inpainted } from "./denoisers.js";
import { normal } from "./noise.js";
import { sample } from "./samplers.js";

const NUMBERS = 16384; // of one call: larger batches are no faster on one thread, and need more memory
let ort, model, denoiser, decoder, provider;
let current = 0; // the drawing that goes on; another number ends it

const size = (shape) => shape.reduce((a, b) => a * b, 1);

async function open(bytes) {
  return ort.InferenceSession.create(bytes, { executionProviders: provider === "webgpu" ? ["webgpu", "wasm"] : ["wasm"] });
}

/** x0 of rows of x, in batches. */
async function ask(x, { t }, labels) {
  const [each, shape] = [size(model.state_shape), model.state_shape];
  const answer = new Float32Array(x.length);
  const most = Math.max(1, Math.floor(NUMBERS / each));
  for (let begin = 0; begin * each < x.length; begin += most) {
    const rows = Math.min(most, x.length / each - begin);
    const part = x.slice(begin * each, (begin + rows) * each);
    const inputs = {
      x_t: new ort.Tensor("float32", part, [rows, ...shape]),
      t: new ort.Tensor("float32", new Float32Array(rows).fill(t), [rows]),
    };
    if (labels) {
      const these = labels.slice(begin, begin + rows).map(BigInt);
      inputs.label = new ort.Tensor("int64", BigInt64Array.from(these), [rows]);
    }
    const { x0 } = await denoiser.run(inputs);
    answer.set(await x0.getData(), begin * each);
  }
  return answer;
}

/** What a state shows: itself, or the decoded data of latents scaled to unit variance. */
async function shown(x, { alpha, sigma }) {
  if (!decoder) return x;
  const each = size(model.state_shape);
  const scale = 1 / Math.hypot(alpha, sigma);
  const pictures = [];
  for (let begin = 0; begin < x.length; begin += each) {
    const z = x.slice(begin, begin + each).map((value) => value * scale);
    const { x: picture } = await decoder.run({ z: new ort.Tensor("float32", z, [1, ...model.state_shape]) });
    pictures.push(await picture.getData());
  }
  const all = new Float32Array(pictures.length * pictures[0].length);
  pictures.forEach((picture, i) => all.set(picture, i * picture.length));
  return all;
}

/** The largest difference from what Python answered on the same noise. */
async function difference() {
  const { time, x0, label } = model.probe;
  const x = normal(0n, 0, size(model.state_shape)).map((value) => value * time.sigma);
  const found = await ask(x, time, label === null ? null : [label]);
  return Math.max(...x0.map((value, i) => Math.abs(value - found[i])));
}

async function load(message) {
  model = message.model;
  // A blob of this thread's own: one of the page has another origin where the page is a file.
  const address = URL.createObjectURL(new Blob([message.runtime], { type: "text/javascript" }));
  ort = await import(address);
  ort.env.wasm.wasmBinary = message.wasm;
  ort.env.wasm.numThreads = 1; // more need a server's headers
  ort.env.logLevel = "error";
  const adapter = message.gpu ? await navigator.gpu?.requestAdapter() : null;
  // A fallback adapter computes on the processor, and slower than WebAssembly does.
  const candidates = adapter && !adapter.info?.isFallbackAdapter ? ["webgpu", "wasm"] : ["wasm"];
  const failures = [];
  for (const candidate of candidates) {
    try {
      provider = candidate;
      denoiser = await open(message.denoiser);
      decoder = message.decoder && (await open(message.decoder));
      const error = await difference();
      if (error < 0.01) return { provider, error };
      failures.push(`${candidate} differs from Python by ${error.toPrecision(2)}`);
    } catch (error) {
      failures.push(`${candidate}: ${error.message}`);
    }
  }
  throw new Error(failures.join("; "));
}

async function draw({ id, settings, known, mask }) {
  current = id;
  const { seed, n, sampler, steps, labels, guidance, frames } = settings;
  const each = size(model.state_shape);
  const times = model.grids[steps].map(([t, alpha, sigma, logSNR]) => ({ t, alpha, sigma, logSNR: logSNR ?? -Infinity }));
  const noise = (step) => {
    const all = new Float32Array(n * each);
    for (let k = 0; k < n; k++) all.set(normal(BigInt(seed), k, each, step), k * each);
    return all;
  };
  const sigma = Math.fround(times[0].sigma);
  let denoise = guided(ask, labels, guidance);
  if (mask) denoise = inpainted(denoise, known, mask);
  if (model.clip) denoise = clipped(denoise);
  let i = 0;
  for await (const { t, x, x0 } of sample(sampler, denoise, noise(0).map((value) => value * sigma), times, noise)) {
    await new Promise((resume) => setTimeout(resume)); // lets a stop arrive
    if (current !== id) return;
    // The first and the last state and evenly spaced ones between them are kept.
    const last = times.length - 1;
    if (i === last || last < frames || Math.floor(((i + 1) * (frames - 1)) / last) > Math.floor((i * (frames - 1)) / last)) {
      const state = { x: await shown(x, t), x0: await shown(x0, { alpha: 1, sigma: 0 }) };
      postMessage({ kind: "state", id, step: i, steps: last, time: t, ...state });
    }
    i++;
  }
  postMessage({ kind: "done", id });
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") postMessage({ kind: "loaded", ...(await load(data)) });
    if (data.kind === "draw") await draw(data);
    if (data.kind === "stop") current = 0;
  } catch (error) {
    postMessage({ kind: "failed", message: error.message });
  }
};
