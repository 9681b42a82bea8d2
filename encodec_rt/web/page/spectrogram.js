// A spectrogram, drawn from left to right and then again from the left: a column per hop, or more for
// a long one, from 0 Hz at the bottom to half the sampling rate, in decibels.

const SIZE = 512;
const FLOOR_DB = -90;

export class Spectrogram {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.samples = new Float32Array(SIZE);
    this.window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
    this.column = this.context.createImageData(1, canvas.height);
    this.at = 0;
  }

  push(hop) {
    for (let at = 0; at < hop.length; at += SIZE) this.draw(hop.subarray(at, at + SIZE));
  }

  draw(piece) {
    const { samples } = this;
    samples.copyWithin(0, piece.length);
    samples.set(piece, SIZE - piece.length);
    const power = spectrum(samples, this.window);
    const { height } = this.canvas;
    for (let y = 0; y < height; y++) {
      const bin = Math.floor(((height - 1 - y) / height) * (SIZE / 2));
      const db = 10 * Math.log10(power[bin] / (SIZE * SIZE / 16) + 1e-12);
      colour(this.column.data, 4 * y, Math.min(1, Math.max(0, 1 - db / FLOOR_DB)));
    }
    this.context.putImageData(this.column, this.at, 0);
    this.at = (this.at + 1) % this.canvas.width;
    this.context.fillStyle = "#ffffff";
    this.context.fillRect(this.at, 0, 1, height);
  }
}

// Dark blue over magenta to light yellow, written into four bytes.
function colour(data, at, x) {
  data[at] = 255 * Math.min(1, Math.max(0, 1.6 * x - 0.25));
  data[at + 1] = 255 * Math.max(0, 1.5 * x - 0.5);
  data[at + 2] = 255 * (x < 0.5 ? 0.15 + 0.9 * x : Math.max(0.2, 0.6 - 0.8 * (x - 0.5)));
  data[at + 3] = 255;
}

// The power of the first half of a radix-2 FFT of real samples.
export function spectrum(samples, window) {
  const n = samples.length;
  const re = new Float32Array(n);
  const im = new Float32Array(n);
  const bits = Math.log2(n);
  for (let i = 0; i < n; i++) {
    let j = 0;
    for (let b = 0; b < bits; b++) j |= ((i >> b) & 1) << (bits - 1 - b);
    re[j] = samples[i] * window[i];
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let start = 0; start < n; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const angle = (-2 * Math.PI * k) / size;
        const c = Math.cos(angle);
        const s = Math.sin(angle);
        const a = start + k;
        const b = a + size / 2;
        const x = re[b] * c - im[b] * s;
        const y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
  return Float32Array.from({ length: n / 2 }, (_, i) => re[i] * re[i] + im[i] * im[i]);
}
