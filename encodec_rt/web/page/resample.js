// A streaming resampler for devices that refuse the model's rate: a windowed sinc of 32 taps.

const HALF = 16;
const PHASES = 256;

export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    const cutoff = Math.min(1, to / from) * 0.95;
    this.taps = new Float32Array((PHASES + 1) * 2 * HALF);
    for (let phase = 0; phase <= PHASES; phase++) {
      let sum = 0;
      const row = this.taps.subarray(phase * 2 * HALF, (phase + 1) * 2 * HALF);
      for (let k = 0; k < 2 * HALF; k++) {
        const x = k - HALF + 1 - phase / PHASES;
        const window = 0.5 + 0.5 * Math.cos((Math.PI * x) / HALF);
        const sinc = x === 0 ? cutoff : Math.sin(Math.PI * cutoff * x) / (Math.PI * x);
        row[k] = Math.abs(x) < HALF ? sinc * window : 0;
        sum += row[k];
      }
      for (let k = 0; k < 2 * HALF; k++) row[k] /= sum;
    }
    this.past = new Float32Array(2 * HALF);
    this.at = HALF;
  }

  // Takes any number of samples and returns those that they complete; the delay is 16 input samples.
  push(samples) {
    if (this.step === 1) return samples;
    const all = new Float32Array(this.past.length + samples.length);
    all.set(this.past);
    all.set(samples, this.past.length);
    const out = [];
    let at = this.at;
    for (; at + HALF < all.length; at += this.step) {
      const whole = Math.floor(at);
      const phase = Math.round((at - whole) * PHASES);
      const row = phase * 2 * HALF;
      let sum = 0;
      for (let k = 0; k < 2 * HALF; k++) sum += all[whole - HALF + 1 + k] * this.taps[row + k];
      out.push(sum);
    }
    const kept = Math.max(0, Math.floor(at) - HALF);
    this.past = all.slice(kept);
    this.at = at - kept;
    return Float32Array.from(out);
  }
}
