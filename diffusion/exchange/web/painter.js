// A canvas on which a person paints the mask of an image, by mouse, finger, pen or keyboard.
import { table } from "./pictures.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Painter {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param shape [channels, height, width]
   * @param brush () => radius in pixels
   * @param changed called when image or mask changes
   */
  constructor(canvas, shape, brush, changed) {
    Object.assign(this, { canvas, shape, brush, changed, image: null, cursor: [shape[2] >> 1, shape[1] >> 1] });
    this.erase();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.paint(...this.placeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) this.paint(...this.placeOf(event));
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => this.show());
  }

  /** Begins anew with an image (C, H, W) in [-1, 1]. */
  begin(image) {
    this.image = image;
    this.erase();
  }

  /** Empties the mask. */
  erase() {
    this.mask = new Uint8Array(this.shape[1] * this.shape[2]);
    this.show();
    this.changed();
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const [, height, width] = this.shape;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  key(event) {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const [, height, width] = this.shape;
    if (move) {
      this.cursor = this.cursor.map((value, i) => Math.min(Math.max(value + move[i], 0), [width, height][i] - 1));
      this.show();
    } else {
      this.paint(this.cursor[0] + 0.5, this.cursor[1] + 0.5);
    }
  }

  /** Marks the pixels whose centres lie under the brush. */
  paint(x, y) {
    if (!this.image) return;
    const [, height, width] = this.shape;
    this.mask.forEach((_, i) => {
      const [column, row] = [(i % width) + 0.5, Math.floor(i / width) + 0.5];
      if (Math.hypot(column - x, row - y) <= this.brush() * Math.max(1, Math.max(height, width) / 32)) this.mask[i] = 1;
    });
    this.show();
    this.changed();
  }

  show() {
    const [channels, height, width] = this.shape;
    const picture = table(this.image ?? new Float32Array(channels * height * width), this.shape);
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--mask").match(/\w\w/g);
    const tint = (i, share) => {
      for (let c = 0; c < 3; c++) {
        picture.data[4 * i + c] += share * (parseInt(colour[c], 16) - picture.data[4 * i + c]);
      }
    };
    this.mask.forEach((painted, i) => painted && tint(i, 0.7));
    if (document.activeElement === this.canvas) tint(this.cursor[1] * width + this.cursor[0], 1);
    [this.canvas.width, this.canvas.height] = [width, height];
    this.canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}
