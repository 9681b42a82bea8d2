// Samples in and out in pieces of any size, in a ring that never allocates.

export class Fifo {
  constructor(capacity) {
    this.ring = new Float32Array(capacity);
    this.read = 0;
    this.write = 0;
  }

  get length() {
    return this.write - this.read;
  }

  // Takes in what there is room for.
  push(samples) {
    const count = Math.min(samples.length, this.ring.length - this.length);
    for (let i = 0; i < count; i++) this.ring[(this.write + i) % this.ring.length] = samples[i];
    this.write += count;
    return count;
  }

  // Fills `out` as far as it can and returns how far.
  pull(out) {
    const count = Math.min(out.length, this.length);
    for (let i = 0; i < count; i++) out[i] = this.ring[(this.read + i) % this.ring.length];
    this.read += count;
    return count;
  }

  drop(count) {
    this.read += Math.min(count, this.length);
  }
}
