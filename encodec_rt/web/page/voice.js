// Both directions of a call without clock and network: samples in and packets out, packets in and
// hops of samples out. The packets are those of encodec_rt/voice; the worklet drives it.
import { RateController } from "./bitrate.js";
import { Concealer, EnergyDetector } from "./conceal.js";
import { JitterBuffer } from "./jitter.js";
import { encodeRtp, PacketError, parsePacket, parseRtp } from "./packet.js";
import { Packetizer } from "./packetizer.js";

export const PAYLOAD_TYPE = 118;
const HANGOVER_S = 0.16;
const MAX_LATE = 8;

// Samples to RTP packets, at the bitrate that reports allow; while nobody speaks, only an
// announcement every 400 ms.
export class Sender {
  // `books` are encoded, and at most `limit` of them sent, since the other side takes no more.
  constructor(codec, { books, limit, ssrc }) {
    const { codebook_bits: bits, sampling_rate: rateHz } = codec.about;
    this.encoder = codec.encoder(books);
    this.detector = new EnergyDetector(codec.hop / rateHz, HANGOVER_S);
    this.controller = new RateController({ books: limit, bits, frameRateHz: rateHz / codec.hop });
    this.packetizer = new Packetizer({ hop: codec.hop, bits });
    this.ssrc = ssrc >>> 0;
    this.sequence = 0;
  }

  close() {
    this.encoder.close();
  }

  // The packets to send after one hop of samples, often none.
  push(samples, nowS) {
    const active = this.detector.isActive(samples);
    const codes = this.encoder.encode(samples);
    return this.packetizer.push(codes, this.controller.plan(nowS), active).map(this.packet, this);
  }

  // Hops that were never encoded: timestamps go on.
  skip(count) {
    this.packetizer.skip(count);
  }

  packet({ payload, timestamp, marker }) {
    this.sequence = (this.sequence + 1) & 0xffff;
    const { sequence, ssrc } = this;
    return encodeRtp({ payloadType: PAYLOAD_TYPE, marker, sequence, timestamp, ssrc, payload });
  }
}

export class Receiver {
  constructor(codec, books) {
    this.codec = codec;
    this.books = books;
    this.buffer = new JitterBuffer({ hop: codec.hop, rateHz: codec.about.sampling_rate });
    this.concealer = new Concealer(codec, books);
    this.late = [];
    this.counts = {
      received: 0, refused: 0, late: 0, frames: 0, copies: 0, lost: 0, silent: 0, held: 0, skipped: 0, repaired: 0, missed: 0,
    };
  }

  close() {
    this.concealer.close();
  }

  // A message from the network; garbage is counted and does nothing else.
  receive(message, nowS) {
    try {
      const rtp = parseRtp(message);
      if (rtp.payloadType !== PAYLOAD_TYPE) throw new PacketError("another payload type");
      const packet = rtp.payload.length ? this.parse(rtp.payload) : null;
      const { accepted, late } = this.buffer.put(packet, rtp, nowS);
      if (!accepted) throw new PacketError("another source");
      this.counts.received += 1;
      this.counts.late += late.length;
      this.late = [...this.late, ...late].slice(-MAX_LATE);
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      this.counts.refused += 1;
    }
  }

  parse(payload) {
    const packet = parsePacket(payload, this.codec.about.codebook_bits, this.books);
    const codes = [...packet.codes, ...(packet.redundancy?.codes ?? [])];
    if (codes.some((code) => code >= this.codec.size)) throw new PacketError("a code beyond the codebook");
    return packet;
  }

  // A hop that nobody plays.
  skip(nowS) {
    if (this.buffer.get(nowS, true).kind !== "idle") this.counts.missed += 1;
  }

  // One hop of samples to play from now on.
  play(nowS) {
    const slot = this.buffer.get(nowS, this.concealer.quiet);
    const { counts, late } = this;
    this.late = [];
    counts.skipped += slot.skipped;
    // The decoder starts with the first frame, as the encoder did.
    if (slot.kind === "idle") return new Float32Array(this.codec.hop);
    if (late.length) counts.repaired += this.concealer.repair(late);
    const counted = { frame: "frames", copy: "copies", lost: "lost", silence: "silent", hold: "held" };
    counts[counted[slot.kind]] += 1;
    const known = ["frame", "copy", "lost"].includes(slot.kind);
    return this.concealer.play(slot.codes, known ? slot.index : null);
  }
}
