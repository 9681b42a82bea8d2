// Frames of codes to payloads, with copies of earlier frames, and none while nobody speaks
// (encodec_rt/voice/packetizer.py).
import { encodePacket, MAX_REDUNDANT_CODEBOOKS, MAX_REDUNDANT_FRAMES } from "./packet.js";

// Silence is announced again every 400 ms.
const REFRESH_FRAMES = 30;

export class Packetizer {
  constructor({ hop, bits }) {
    Object.assign(this, { hop, bits, frames: 0, silent: 0, marker: true });
    this.pending = [];
    this.earlier = [];
  }

  // The packets to send after a frame's codes, often none: [{payload, timestamp, marker}].
  push(codes, plan, active) {
    const index = this.frames++;
    if (!active) return this.silence(index, plan);
    this.silent = 0;
    this.pending.push(codes);
    return this.pending.length >= plan.frames ? this.emit(plan, this.frames) : [];
  }

  // Skips frames that were never encoded. The frames of a packet are consecutive, so pending ones are
  // dropped too.
  skip(count) {
    this.frames += count;
    this.pending = [];
    this.earlier = [];
  }

  silence(index, plan) {
    const packets = this.pending.length ? this.emit(plan, index) : [];
    if (this.silent++ % REFRESH_FRAMES === 0) {
      packets.push({ payload: new Uint8Array(0), timestamp: index * this.hop, marker: false });
    }
    this.marker = true;
    this.earlier = [];
    return packets;
  }

  emit(plan, end) {
    const { pending, marker } = this;
    const books = Math.min(plan.books, pending[0].length);
    const codes = pending.flatMap((frame) => [...frame.subarray(0, books)]);
    const content = { frames: pending.length, books, codes, redundancy: this.redundancy(plan) };
    for (const frame of pending) this.earlier.push(frame.subarray(0, MAX_REDUNDANT_CODEBOOKS));
    this.earlier = this.earlier.slice(-MAX_REDUNDANT_FRAMES);
    this.pending = [];
    this.marker = false;
    const timestamp = (end - pending.length) * this.hop;
    return [{ payload: encodePacket(content, this.bits), timestamp, marker }];
  }

  redundancy({ copies, copyBooks }) {
    const back = Math.min(copies, this.earlier.length);
    if (!back) return null;
    const codes = this.earlier.slice(-back).flatMap((frame) => [...frame.subarray(0, copyBooks)]);
    return { back, frames: back, books: codes.length / back, codes };
  }
}
