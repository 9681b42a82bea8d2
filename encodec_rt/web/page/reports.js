// RTCP on the channel that carries the packets (encodec_rt/link/rtp_session.py): reports what
// arrived, and reads what the other side reports. Every call is given the time.
import { PacketError, parseRtp } from "./packet.js";

const SENDER_REPORT = 200;
const RECEIVER_REPORT = 201;
const MAX_BYTES = 1200;
const MAX_LOST = (1 << 23) - 1;
const MAX_ROUND_TRIP_S = 60;

export function isReport(message) {
  return message.length > 1 && message[1] >= 192 && message[1] < 224;
}

// The middle 32 bits of an NTP timestamp; only this side needs to know where its clock starts.
const middle = (nowS) => {
  const seconds = Math.floor(nowS);
  return ((seconds % 65536) * 65536 + Math.floor((nowS - seconds) * 65536)) >>> 0;
};

// Packets lost and interarrival jitter of one source (encodec_rt/voice/statistics.py).
class Arrivals {
  constructor(rateHz) {
    Object.assign(this, { rateHz, ssrc: null, first: 0, highest: 0, received: 0, lostBefore: 0 });
    this.transit = null;
    this.jitterS = 0;
  }

  get lost() {
    const expected = this.ssrc === null ? 0 : this.highest - this.first + 1;
    return this.lostBefore + expected - this.received;
  }

  add({ sequence, timestamp, ssrc }, nowS) {
    if (ssrc !== this.ssrc) {
      this.lostBefore = this.lost;
      Object.assign(this, { ssrc, first: sequence, highest: sequence, received: 0, transit: null });
    }
    const moved = ((sequence - this.highest) << 16) >> 16;
    this.highest = Math.max(this.highest, this.highest + moved);
    this.received += 1;
    const transit = nowS - timestamp / this.rateHz;
    if (this.transit !== null && Math.abs(transit - this.transit) < 10) {
      this.jitterS += (Math.abs(transit - this.transit) - this.jitterS) / 16;
    }
    this.transit = transit;
  }
}

export class Reports {
  constructor(rateHz, ssrc) {
    Object.assign(this, { rateHz, ssrc: ssrc >>> 0, sent: 0, sentBytes: 0, reported: 0 });
    this.lastTimestamp = 0;
    this.arrivals = new Arrivals(rateHz);
    this.received = 0;
    this.before = [0, 0];
    this.source = null;
    this.theirs = null;
    // What the other side last reported: {fractionLost, packetsLost}, and the round trip.
    this.latest = null;
    this.roundTripS = null;
  }

  // A packet of ours that was sent.
  onSent(message) {
    const { timestamp, payload } = parseRtp(message);
    this.lastTimestamp = timestamp;
    this.sent += 1;
    this.sentBytes += payload.length;
  }

  // A packet of theirs. Throws PacketError for anything else.
  onPacket(message, nowS) {
    const rtp = parseRtp(message);
    this.source = rtp.ssrc;
    this.received += 1;
    this.arrivals.add(rtp, nowS);
  }

  // A message that reports what was sent and received until now.
  write(nowS) {
    const sends = this.sent !== this.reported;
    const blocks = this.source === null ? 0 : 1;
    const bytes = new Uint8Array(8 + (sends ? 20 : 0) + 24 * blocks);
    const view = new DataView(bytes.buffer);
    view.setUint8(0, 0x80 | blocks);
    view.setUint8(1, sends ? SENDER_REPORT : RECEIVER_REPORT);
    view.setUint16(2, bytes.length / 4 - 1);
    view.setUint32(4, this.ssrc);
    if (sends) {
      const seconds = Math.floor(nowS);
      view.setUint32(8, seconds);
      view.setUint32(12, Math.floor((nowS - seconds) * 2 ** 32));
      [this.lastTimestamp, this.sent, this.sentBytes].forEach((n, i) => view.setUint32(16 + 4 * i, n));
      this.reported = this.sent;
    }
    if (blocks) this.writeReception(new DataView(bytes.buffer, bytes.length - 24), nowS);
    return bytes;
  }

  writeReception(view, nowS) {
    const lost = this.arrivals.lost;
    const lostNow = lost - this.before[0];
    const receivedNow = this.received - this.before[1];
    this.before = [lost, this.received];
    const share = lostNow > 0 ? Math.floor((256 * lostNow) / (lostNow + receivedNow)) : 0;
    const counted = Math.max(-MAX_LOST, Math.min(lost, MAX_LOST)) & 0xffffff;
    const [report, atS] = this.theirs ?? [0, nowS];
    view.setUint32(0, this.source);
    view.setUint32(4, counted);
    view.setUint8(4, Math.min(share, 255));
    view.setUint32(8, this.arrivals.highest);
    view.setUint32(12, Math.trunc(this.arrivals.jitterS * this.rateHz));
    view.setUint32(16, report);
    view.setUint32(20, Math.trunc((nowS - atS) * 65536));
  }

  // Takes what a message of reports says. Throws PacketError, and nothing else, for anything else.
  read(message, nowS) {
    if (message.length > MAX_BYTES) throw new PacketError("a long report");
    const view = new DataView(message.buffer, message.byteOffset, message.length);
    for (let at = 0; at < message.length; ) {
      if (message.length < at + 4 || message[at] >> 6 !== 2) throw new PacketError("not a report");
      const kind = message[at + 1];
      const start = at + 4;
      let end = start + 4 * view.getUint16(at + 2);
      const count = message[at] & 31;
      if (end > message.length) throw new PacketError("a report that is cut off");
      const next = end;
      if (message[at] & 32) {
        const padding = end > start ? message[end - 1] : 0;
        if (!padding || padding > end - start) throw new PacketError("a report's padding");
        end -= padding;
      }
      if (kind === SENDER_REPORT) this.readSender(view, start, end - start, count, nowS);
      else if (kind === RECEIVER_REPORT) this.readBlocks(view, start + 4, end - start - 4, count, nowS);
      at = next;
    }
  }

  readSender(view, at, length, count, nowS) {
    if (length !== 24 + 24 * count) throw new PacketError("a sender report's length");
    this.theirs = [((view.getUint16(at + 6) << 16) | view.getUint16(at + 8)) >>> 0, nowS];
    this.readBlocks(view, at + 24, length - 24, count, nowS);
  }

  readBlocks(view, at, length, count, nowS) {
    if (length !== 24 * count) throw new PacketError("a receiver report's length");
    for (let i = 0; i < count; i++, at += 24) {
      if (view.getUint32(at) !== this.ssrc) continue;
      const packetsLost = (view.getInt32(at + 4) << 8) >> 8;
      this.latest = { fractionLost: view.getUint8(at + 4) / 256, packetsLost };
      const report = view.getUint32(at + 16);
      if (!report) continue;
      const passedS = ((middle(nowS) - report - view.getUint32(at + 20)) >>> 0) / 65536;
      if (passedS <= MAX_ROUND_TRIP_S) this.roundTripS = passedS;
    }
  }
}
