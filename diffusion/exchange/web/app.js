// The page: what a visitor sets, sees and saves. The worker draws.
import { gif } from "./gif.js";
import { Painter } from "./painter.js";
import { cloud, enlarged, evenly, imageAt, show, table } from "./pictures.js";

const FRAMES = 101; // states that are kept at most
const IN_GIF = 41;
const $ = (id) => document.getElementById(id);
const json = (id) => JSON.parse($(id).textContent);
const model = json("model");
const points = model.shape.length === 1;
// No module worker: a page that is a file may not start one.
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
let states = []; // {x, x0, step, steps, time} of the drawing that is shown
let [id, ready, playing] = [0, false, null];

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

/** The bytes of a part of the page (base64 of gzip), or of an address whose hash is known. */
async function bytesOf(name) {
  const element = $(`blob-${name}`);
  if (element) {
    const packed = await (await fetch(`data:application/gzip;base64,${element.textContent.trim()}`)).blob();
    element.remove();
    return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }
  const source = json("sources")[name];
  if (!source) return null;
  return (await fetch(source.address, { integrity: source.integrity })).arrayBuffer();
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text ?? value, value, false, value === chosen)));
}

function prepare() {
  const parts = { classes: model.num_classes > 0, guidance: model.guidable, painting: model.paintable };
  for (const element of document.querySelectorAll("[data-for]")) element.hidden = !parts[element.dataset.for];
  if (points) $("count-name").textContent = "Points";
  $("n").max = points ? 20000 : 256;
  $("n").value = points ? 2000 : 16;
  options($("sampler"), Object.keys(model.samplers).map((name) => [name]), model.sampler);
  const classes = [...Array(model.num_classes).keys()].map((k) => [String(k)]);
  options($("label"), [["", "each in turn"], ...classes], "");
  chooseSteps(model.steps);
  readLink();
  show($("x"), frame(new Float32Array(model.shape.reduce((a, b) => a * b, 1))));
  show($("x0"), frame(new Float32Array(model.shape.reduce((a, b) => a * b, 1))));
}

/** A sampler has the grids that it can go along. */
function chooseSteps(wanted = Number($("steps").value)) {
  const counts = model.samplers[$("sampler").value].steps;
  const near = counts.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
  options($("steps"), counts.map((count) => [String(count)]), String(near));
}

/** The address after # holds settings, so that a drawing can be sent as a link. */
function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["seed", "n", "sampler", "label", "guidance"]) if (given.has(name)) $(name).value = given.get(name);
  if (!$("sampler").value) $("sampler").value = model.sampler;
  chooseSteps(Number(given.get("steps") ?? model.steps));
}

function settings() {
  const n = Number($("n").value);
  const label = $("label").value;
  const labels = Array.from({ length: n }, (_, k) => (label === "" ? k % model.num_classes : Number(label)));
  return {
    seed: $("seed").value,
    n,
    sampler: model.samplers[$("sampler").value].formula,
    steps: $("steps").value,
    labels: model.num_classes ? labels : null,
    guidance: model.guidable ? Number($("guidance").value) : 1,
    frames: Math.max(2, Math.min(FRAMES, Math.floor(2e7 / (n * model.shape.reduce((a, b) => a * b, 1))))),
  };
}

function draw(part = {}) {
  if (!$("settings").reportValidity()) return;
  states = [];
  stopPlaying();
  id++;
  const names = ["seed", "n", "sampler", "steps", "label", "guidance"];
  const shown = names.filter((name) => !$(name).closest("[hidden]")).map((name) => [name, $(name).value]);
  $("link").href = `#${new URLSearchParams(shown)}`;
  $("stop").disabled = false;
  document.documentElement.dataset.drawing = "going";
  say("Drawing …");
  worker.postMessage({ kind: "draw", id, settings: settings(), ...part });
}

const frame = (values) => (points ? cloud(values, model.limit) : table(values, model.shape));

function showState(k) {
  const state = states[k];
  show($("x"), frame(state.x));
  show($("x0"), frame(state.x0));
  const level = state.time.t === 0 ? "data" : `noise / data = ${(state.time.sigma / state.time.alpha).toPrecision(3)}`;
  $("level").textContent = `step ${state.step} of ${state.steps}, ${level}`;
  $("time").value = k;
}

function received({ data }) {
  if (data.kind === "failed") {
    say(`This browser cannot draw: ${data.message}`, true);
    $("stop").disabled = true;
    document.documentElement.dataset.drawing = "failed";
  } else if (data.kind === "loaded") {
    ready = true;
    $("draw").disabled = false;
    const where = data.provider === "webgpu" ? "graphics processor (WebGPU)" : "processor (WebAssembly)";
    $("runtime").textContent = `It runs on the ${where} and agrees with Python to ${data.error.toPrecision(1)}.`;
    painter?.changed();
    draw();
  } else if (data.id === id && data.kind === "state") {
    states.push(data);
    $("time").max = states.length - 1;
    showState(states.length - 1);
    say(`Drawing: step ${data.step} of ${data.steps}`);
  } else if (data.id === id && data.kind === "done") {
    say("Done. Move the slider to go through time.");
    $("stop").disabled = true;
    for (const name of ["time", "play", "png", "gif", "take"]) $(name).disabled = false;
    $("taken").max = $("n").value - 1;
    document.documentElement.dataset.drawing = "done";
  }
}

function stopPlaying() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
}

function play() {
  if (playing) return stopPlaying();
  $("play").textContent = "Pause";
  let k = Number($("time").value) === states.length - 1 ? 0 : Number($("time").value);
  playing = setInterval(() => {
    showState(k);
    if (++k >= states.length) stopPlaying();
  }, 120);
}

function save(blob, suffix) {
  const link = document.createElement("a");
  link.download = `${model.dataset}-${$("seed").value}.${suffix}`;
  link.href = URL.createObjectURL(blob);
  link.click();
  URL.revokeObjectURL(link.href);
}

const savePng = async () => save(await enlarged(frame(states[$("time").value].x)).convertToBlob(), "png");

function saveGif() {
  const logSNR = states.map(({ time }, k) => (k === states.length - 1 ? Infinity : time.logSNR));
  const frames = evenly(logSNR, IN_GIF).map((k) => {
    const canvas = enlarged(frame(states[k].x));
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  });
  save(gif(frames), "gif");
}

/** The values that the bytes of a saved picture stand for, so that a completion keeps what a file would hold. */
const asSaved = (values) => values.map((value) => Math.min(Math.max(Math.round((value + 1) * 127.5), 0), 255) / 127.5 - 1);

function take(k) {
  const each = model.shape.reduce((a, b) => a * b, 1);
  const last = states.at(-1).x;
  if (k * each >= last.length) return;
  $("taken").value = k;
  painter.begin(asSaved(last.slice(k * each, (k + 1) * each)));
}

/** Opens a picture: its centre is cropped and resized to the size of the model's images. */
async function openPicture(file) {
  const [channels, height, width] = model.shape;
  const picture = await createImageBitmap(file);
  const scale = Math.min(picture.width / width, picture.height / height);
  const [w, h] = [width * scale, height * scale];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (picture.width - w) / 2, (picture.height - h) / 2, w, h, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = (i) => Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]);
  const value = (c, i) => (channels === 1 ? grey(4 * i) : data[4 * i + c]) / 127.5 - 1;
  const plane = height * width;
  painter.begin(Float32Array.from({ length: channels * plane }, (_, i) => value(Math.floor(i / plane), i % plane)));
}

let painter = null;
function preparePainting() {
  const changed = () => {
    const painted = painter?.image && painter.mask.some(Boolean);
    $("complete").disabled = !(ready && painted);
    $("erase").disabled = !painted;
  };
  painter = new Painter($("painter"), model.shape, () => Number($("brush").value), changed);
  $("x").addEventListener("click", (event) => {
    const box = $("x").getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (!$("take").disabled) take(imageAt(across, down, Number($("n").value)));
  });
  $("take").addEventListener("click", () => take(Number($("taken").value)));
  $("open").addEventListener("change", ({ target }) =>
    openPicture(target.files[0]).catch(() => say(`${target.files[0].name} is no picture that this browser opens`, true)),
  );
  $("erase").addEventListener("click", () => painter.erase());
  $("complete").addEventListener("click", () => draw({ known: painter.image, mask: painter.mask }));
}

async function start() {
  prepare();
  if (model.paintable) preparePainting();
  worker.onmessage = received;
  worker.onerror = ({ message }) => received({ data: { kind: "failed", message: message ?? "its worker did not start" } });
  $("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  $("sampler").addEventListener("change", () => chooseSteps());
  $("stop").addEventListener("click", () => {
    worker.postMessage({ kind: "stop" });
    received({ data: { kind: "done", id } });
  });
  $("time").addEventListener("input", () => showState(Number($("time").value)));
  $("play").addEventListener("click", play);
  $("png").addEventListener("click", savePng);
  $("gif").addEventListener("click", saveGif);
  addEventListener("hashchange", () => {
    readLink();
    draw();
  });
  const names = ["script", "wasm", "denoiser", "decoder"];
  const [script, wasm, denoiser, decoder] = await Promise.all(names.map(bytesOf));
  worker.postMessage({ kind: "load", model, runtime: script, wasm, denoiser, decoder, gpu: "gpu" in navigator });
}

start().catch((error) => received({ data: { kind: "failed", message: error.message } }));
