// The WebAssembly codec (docs/web.md): one model, its streams, and their snapshots.
// Runs on the page, in workers and in audio worklets, which have no TextDecoder.

export const LEFT = 1;
export const RIGHT = 2;
const ENCODER = 1;
const DECODER = 2;
const HEADER_BYTES = 64;
const SNAPSHOT_BYTES = 80;
const MAGIC = [0x45, 0x52, 0x54, 0x53];
const STARTS = ["primed", "exact", "zero"];
const REFUSALS = {
  "-3": "its header is of another kind or version",
  "-4": "its layers do not fit one another",
  "-5": "its length is wrong",
  "-6": "it holds a weight that is not a number",
  "-7": "there is not enough memory",
};

// Whether this engine has what the codec needs: WebAssembly with SIMD.
export function isSupported() {
  // A module with one function that makes a vector of 16 bytes.
  const probe = [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253,
    15, 253, 98, 11,
  ];
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(probe));
}

// What a model's file says of itself, and its hop.
export function describe(blob) {
  const bytes = new Uint8Array(blob.buffer ?? blob, blob.byteOffset ?? 0, blob.byteLength);
  const header = new DataView(bytes.buffer, bytes.byteOffset);
  const length = header.getUint32(8, true);
  let text = "";
  for (const byte of bytes.subarray(HEADER_BYTES, HEADER_BYTES + length)) {
    text += String.fromCharCode(byte);
  }
  return { ...JSON.parse(text), hop: header.getUint32(24, true) };
}

export class Codec {
  // `wasm` and `blob` are the bytes of codec.wasm and of a model's file.
  constructor(wasm, blob) {
    this.exports = new WebAssembly.Instance(new WebAssembly.Module(wasm), {}).exports;
    const bytes = new Uint8Array(blob);
    const at = this.exports.reserve(bytes.length);
    if (!at) throw new Error("no memory for the model");
    new Uint8Array(this.exports.memory.buffer).set(bytes, at);
    const refused = this.exports.load();
    if (refused) throw new Error(`the model was refused: ${REFUSALS[refused] ?? refused}`);
    this.about = describe(bytes);
    const [channels, hop, latent, books, size] = [0, 1, 2, 3, 4].map((n) => this.exports.describe(n));
    Object.assign(this, { channels, hop, latent, books, size });
    this.encoderStart = this.exports.describe(6);
    this.decoderStart = this.exports.describe(7);
    this.decoderLag = this.exports.describe(8);
  }

  codebooksFor(kbps) {
    const at = this.about.bandwidths_kbps.indexOf(kbps);
    if (at < 0) throw new Error(`this model has no ${kbps} kbps`);
    return this.about.codebooks[at];
  }

  // A new view each time: the memory may have grown since.
  floats(at, count) {
    return new Float32Array(this.exports.memory.buffer, at >>> 0, count);
  }

  pcm(samples) {
    return this.floats(this.exports.pcm(), samples * this.channels);
  }

  codes(frames, books) {
    return new Uint16Array(this.exports.memory.buffer, this.exports.codes() >>> 0, frames * books);
  }

  latents(frames) {
    return this.floats(this.exports.latents(), frames * this.latent);
  }

  open(direction, books) {
    const handle = this.exports.open(direction, books);
    if (handle < 0) throw new Error(`no stream could be opened (${handle})`);
    return handle;
  }

  encoder(books, start = "primed") {
    return new Encoder(this, books, start);
  }

  decoder(books, start = "primed") {
    return new Decoder(this, books, start);
  }
}

class Stream {
  constructor(codec, direction, books, start) {
    if (!["primed", "zero"].includes(start)) throw new Error(`start ${start}; primed or zero`);
    this.codec = codec;
    this.start = start;
    this.books = books;
    this.handle = codec.open(direction, start === "primed" ? books : 0);
    this.consumed = 0;
    this.produced = 0;
  }

  close() {
    this.codec.exports.close(this.handle);
  }

  get state() {
    const { exports } = this.codec;
    return this.codec.floats(exports.state(this.handle), exports.state_floats(this.handle));
  }
}

export class Encoder extends Stream {
  constructor(codec, books, start) {
    super(codec, ENCODER, books, start);
  }

  // One hop of samples (interleaved where there are two channels) -> a copy of its codes.
  encode(samples) {
    const { codec } = this;
    codec.pcm(codec.hop).set(samples);
    const frames = codec.exports.encode(this.handle, codec.hop, this.books, 0);
    if (frames !== 1) throw new Error(`the audio was refused (${frames})`);
    this.consumed += codec.hop;
    this.produced += 1;
    return codec.codes(1, this.books).slice();
  }

  snapshot() {
    return writeSnapshot(this, 0, 0, 0, new Float32Array(0), this.codec.channels);
  }

  restore(bytes) {
    readSnapshot(this, bytes, 0);
  }
}

export class Decoder extends Stream {
  constructor(codec, books, start) {
    super(codec, DECODER, books, start);
    this.lost = 0;
    this.last = new Float32Array(codec.latent);
  }

  // Codes of one frame, of any number of codebooks -> a copy of its latent.
  lookUp(codes) {
    const { codec } = this;
    codec.codes(1, codes.length).set(codes);
    const frames = codec.exports.look_up(1, codes.length);
    if (frames !== 1) throw new Error(`the codes were refused (${frames})`);
    return codec.latents(1).slice();
  }

  // One latent -> a copy of one hop of samples.
  decodeLatent(latent) {
    const { codec } = this;
    codec.latents(1).set(latent);
    const samples = codec.exports.decode_latents(this.handle, 1, 0);
    if (samples < 0) throw new Error(`the latent was refused (${samples})`);
    this.consumed += 1;
    this.produced += samples;
    return codec.pcm(samples).slice();
  }

  decode(codes) {
    this.last = this.lookUp(codes);
    this.lost = 0;
    return this.decodeLatent(this.last);
  }

  snapshot() {
    return writeSnapshot(this, 1, 0, this.lost, this.last, this.codec.latent);
  }

  restore(bytes) {
    const view = readSnapshot(this, bytes, 1);
    this.lost = view.getUint32(28, true);
    const at = SNAPSHOT_BYTES + 4 * this.state.length;
    for (let i = 0; i < this.last.length; i++) this.last[i] = view.getFloat32(at + 4 * i, true);
  }
}

// The bytes that PortableSnapshot.from_bytes reads (docs/web.md).
function writeSnapshot(stream, direction, drop, lost, last, width) {
  const state = stream.state;
  const bytes = new Uint8Array(SNAPSHOT_BYTES + 4 * (state.length + last.length));
  const view = new DataView(bytes.buffer);
  bytes.set([...MAGIC, 1, direction, 1, STARTS.indexOf(stream.start)]);
  [stream.books, state.length, 0, width, drop, lost].forEach((n, i) => view.setUint32(8 + 4 * i, n, true));
  view.setBigUint64(32, BigInt(stream.consumed), true);
  view.setBigUint64(40, BigInt(stream.produced), true);
  const sha256 = stream.codec.about.weights_sha256;
  for (let i = 0; i < 32; i++) bytes[48 + i] = parseInt(sha256.slice(2 * i, 2 * i + 2), 16);
  [...state, ...last].forEach((x, i) => view.setFloat32(SNAPSHOT_BYTES + 4 * i, x, true));
  return bytes;
}

// Only a stream that has begun and holds nothing back can go on here; anything else is refused.
function readSnapshot(stream, bytes, direction) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const state = stream.state;
  const rest = direction ? stream.codec.latent : 0;
  if (bytes.length !== SNAPSHOT_BYTES + 4 * (state.length + rest)) throw new Error("not a snapshot of such a stream");
  const head = [...MAGIC, 1, direction, 1, STARTS.indexOf(stream.start)];
  if (!head.every((byte, i) => bytes[i] === byte)) throw new Error("not a snapshot of such a stream");
  let sha256 = "";
  for (const byte of bytes.subarray(48, 80)) sha256 += byte.toString(16).padStart(2, "0");
  if (sha256 !== stream.codec.about.weights_sha256) throw new Error("a snapshot of another model");
  if (view.getUint32(8, true) !== stream.books) throw new Error("a snapshot of another bandwidth");
  if (view.getUint32(16, true) || view.getUint32(24, true)) throw new Error("a snapshot in the middle of a frame");
  for (let i = 0; i < state.length + rest; i++) {
    if (!Number.isFinite(view.getFloat32(SNAPSHOT_BYTES + 4 * i, true))) throw new Error("a damaged snapshot");
  }
  for (let i = 0; i < state.length; i++) state[i] = view.getFloat32(SNAPSHOT_BYTES + 4 * i, true);
  stream.consumed = Number(view.getBigUint64(32, true));
  stream.produced = Number(view.getBigUint64(40, true));
  return view;
}
