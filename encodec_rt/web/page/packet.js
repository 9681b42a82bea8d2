// The payload of one live packet (docs/format.md) and the RTP header before it (RFC 3550).
// A payload has exactly one meaning; for bytes that are not one nothing but PacketError is thrown.

export const MAX_FRAMES = 4;
export const MAX_CODEBOOKS = 32;
export const MAX_BACK = 16;
export const MAX_REDUNDANT_FRAMES = 4;
export const MAX_REDUNDANT_CODEBOOKS = 4;
const RTP_BYTES = 12;

export class PacketError extends Error {}

export function packedSize(count, bits) {
  return Math.ceil((count * bits) / 8);
}

// Codes as bits, least significant first; the last byte is padded with zeros.
export function packCodes(codes, bits) {
  const bytes = new Uint8Array(packedSize(codes.length, bits));
  let held = 0;
  let have = 0;
  let at = 0;
  for (const code of codes) {
    if (!(Number.isInteger(code) && code >= 0 && code < 1 << bits)) throw new RangeError(`code ${code} in ${bits} bits`);
    held |= code << have;
    have += bits;
    for (; have >= 8; have -= 8) {
      bytes[at++] = held & 255;
      held >>>= 8;
    }
  }
  if (have) bytes[at] = held;
  return bytes;
}

export function unpackCodes(bytes, bits, count) {
  if (bytes.length !== packedSize(count, bits)) throw new PacketError(`${bytes.length} bytes for ${count} codes`);
  const codes = new Uint16Array(count);
  let held = 0;
  let have = 0;
  let at = 0;
  for (let i = 0; i < count; i++) {
    for (; have < bits; have += 8) held |= bytes[at++] << have;
    codes[i] = held & ((1 << bits) - 1);
    held >>>= bits;
    have -= bits;
  }
  if (held) throw new PacketError("the bits that fill the last byte are not zero");
  return codes;
}

// {frames, books, codes: Uint16Array, redundancy: {back, frames, books, codes} | null} -> bytes.
export function encodePacket({ frames, books, codes, redundancy = null }, bits) {
  check(frames, 1, MAX_FRAMES, "frames");
  check(books, 1, MAX_CODEBOOKS, "codebooks");
  check(codes.length, frames * books, frames * books, "codes");
  const parts = [[((frames - 1) << 6) | ((books - 1) << 1) | (redundancy ? 1 : 0)], packCodes(codes, bits)];
  if (redundancy) {
    const { back, frames: copies, books: coarse } = redundancy;
    check(copies, 1, MAX_REDUNDANT_FRAMES, "copies");
    check(coarse, 1, MAX_REDUNDANT_CODEBOOKS, "redundant codebooks");
    check(back, copies, MAX_BACK, "frames back");
    check(redundancy.codes.length, copies * coarse, copies * coarse, "redundant codes");
    parts.push([((back - 1) << 4) | ((copies - 1) << 2) | (coarse - 1)], packCodes(redundancy.codes, bits));
  }
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

// The packet whose payload `bytes` is. Throws PacketError and nothing else.
export function parsePacket(bytes, bits, maxCodebooks = MAX_CODEBOOKS) {
  if (!bytes.length) throw new PacketError("an empty payload");
  const frames = (bytes[0] >> 6) + 1;
  const books = ((bytes[0] >> 1) & 31) + 1;
  if (books > maxCodebooks) throw new PacketError(`${books} codebooks; ${maxCodebooks} are accepted`);
  const end = 1 + packedSize(frames * books, bits);
  if (!(bytes[0] & 1)) {
    return { frames, books, codes: unpackCodes(bytes.subarray(1), bits, frames * books), redundancy: null };
  }
  if (bytes.length <= end) throw new PacketError("the redundancy announced is missing");
  const back = (bytes[end] >> 4) + 1;
  const copies = ((bytes[end] >> 2) & 3) + 1;
  const coarse = (bytes[end] & 3) + 1;
  if (copies > back) throw new PacketError("redundancy that overlaps the packet");
  if (coarse > maxCodebooks) throw new PacketError(`${coarse} redundant codebooks`);
  const codes = unpackCodes(bytes.subarray(1, end), bits, frames * books);
  const extra = unpackCodes(bytes.subarray(end + 1), bits, copies * coarse);
  return { frames, books, codes, redundancy: { back, frames: copies, books: coarse, codes: extra } };
}

// {payloadType, marker, sequence, timestamp, ssrc, payload} -> the bytes of an RTP packet.
export function encodeRtp({ payloadType, marker, sequence, timestamp, ssrc, payload }) {
  const bytes = new Uint8Array(RTP_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, 0x80);
  view.setUint8(1, (marker ? 128 : 0) | payloadType);
  view.setUint16(2, sequence);
  view.setUint32(4, timestamp);
  view.setUint32(8, ssrc);
  bytes.set(payload, RTP_BYTES);
  return bytes;
}

// The RTP packet in `bytes`, without sources, extension and padding. Throws PacketError.
export function parseRtp(bytes) {
  if (bytes.length < RTP_BYTES || bytes[0] >> 6 !== 2) throw new PacketError("not an RTP packet");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = RTP_BYTES + 4 * (bytes[0] & 15);
  if (bytes[0] & 16) {
    if (bytes.length < at + 4) throw new PacketError("an RTP extension that is cut off");
    at += 4 + 4 * view.getUint16(at + 2);
  }
  let end = bytes.length;
  if (bytes[0] & 32) {
    const padding = bytes[end - 1];
    if (!padding) throw new PacketError("RTP padding of no bytes");
    end -= padding;
  }
  if (at > end) throw new PacketError("an RTP packet that is cut off");
  return {
    payloadType: bytes[1] & 127,
    marker: Boolean(bytes[1] & 128),
    sequence: view.getUint16(2),
    timestamp: view.getUint32(4),
    ssrc: view.getUint32(8),
    payload: bytes.subarray(at, end),
  };
}

function check(value, least, most, name) {
  if (!(Number.isInteger(value) && value >= least && value <= most)) throw new RangeError(`${value} ${name}; ${least} to ${most}`);
}
