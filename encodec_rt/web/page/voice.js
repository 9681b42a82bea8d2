// Both directions of a call without clock and network: samples in and packets out, packets in and
// hops of samples out. The same wire as encodec_rt/voice; the worklet drives it.
import { Concealer, EnergyDetector } from "./conceal.js";
import { JitterBuffer } from "./jitter.js";
import { encodePacket, encodeRtp, PacketError, parsePacket, parseRtp } from "./packet.js";

export const PAYLOAD_TYPE = 118;
const COPIES = 2;
const COPY_BOOKS = 2;
const HANGOVER_S = 0.16;
const REFRESH_FRAMES = 30;

// Frames of codes into RTP packets of one frame each, with copies of the two before; nothing but
// an announcement every 400 ms where nobody speaks.
export class Sender {
  constructor(codec, books, ssrc) {
    this.codec = codec;
    this.encoder = codec.encoder(books);
    this.detector = new EnergyDetector(codec.hop / codec.about.sampling_rate, HANGOVER_S);
    this.ssrc = ssrc >>> 0;
    this.sequence = 0;
    this.frames = 0;
    this.earlier = [];
    this.silent = 0;
    this.marker = true;
  }

  // The packet to send after one hop of samples, or null.
  push(samples) {
    const codes = this.encoder.encode(samples);
    const timestamp = (this.frames++ * this.codec.hop) >>> 0;
    if (!this.detector.isActive(samples)) {
      this.earlier = [];
      this.marker = true;
      return this.silent++ % REFRESH_FRAMES ? null : this.packet(new Uint8Array(0), timestamp, false);
    }
    this.silent = 0;
    const copies = this.earlier.length;
    const books = Math.min(COPY_BOOKS, codes.length);
    const redundancy = copies && { back: copies, frames: copies, books, codes: this.earlier.flat() };
    const content = { frames: 1, books: codes.length, codes, redundancy: redundancy || null };
    const packet = this.packet(encodePacket(content, this.codec.about.codebook_bits), timestamp, this.marker);
    this.earlier = [...this.earlier, [...codes.subarray(0, books)]].slice(-COPIES);
    this.marker = false;
    return packet;
  }

  packet(payload, timestamp, marker) {
    const { ssrc } = this;
    this.sequence = (this.sequence + 1) & 0xffff;
    return encodeRtp({ payloadType: PAYLOAD_TYPE, marker, sequence: this.sequence, timestamp, ssrc, payload });
  }
}

export class Receiver {
  constructor(codec, books) {
    this.codec = codec;
    this.books = books;
    this.buffer = new JitterBuffer({ hop: codec.hop, rateHz: codec.about.sampling_rate });
    this.concealer = new Concealer(codec, books);
    this.counts = { received: 0, refused: 0, late: 0, frames: 0, copies: 0, lost: 0, silent: 0, held: 0, skipped: 0 };
  }

  // A message from the network; garbage is counted and does nothing else.
  receive(message, nowS) {
    try {
      const rtp = parseRtp(message);
      if (rtp.payloadType !== PAYLOAD_TYPE) throw new PacketError("another payload type");
      const packet = rtp.payload.length ? this.parse(rtp.payload) : null;
      const receipt = this.buffer.put(packet, rtp, nowS);
      if (!receipt.accepted) throw new PacketError("another source");
      this.counts.received += 1;
      this.counts.late += receipt.late.length;
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      this.counts.refused += 1;
    }
  }

  parse(payload) {
    const packet = parsePacket(payload, this.codec.about.codebook_bits, this.books);
    const codes = [...packet.codes, ...(packet.redundancy?.codes ?? [])];
    if (codes.some((code) => code >= this.codec.size)) throw new PacketError("a code that the model has not");
    return packet;
  }

  // One hop of samples to play from now on.
  play(nowS) {
    const slot = this.buffer.get(nowS, this.concealer.quiet);
    const { counts } = this;
    counts.skipped += slot.skipped;
    if (slot.kind === "idle") return new Float32Array(this.codec.hop);
    const counted = { frame: "frames", copy: "copies", lost: "lost", silence: "silent", hold: "held" };
    counts[counted[slot.kind]] += 1;
    return this.concealer.play(slot.codes);
  }
}
