// node golden.mjs CODEC.wasm MODEL.bin: the hash that tests/portable/test_streams.py expects.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const [wasm, file] = process.argv.slice(2);
const codec = (await WebAssembly.instantiate(readFileSync(wasm), {})).instance.exports;
const blob = readFileSync(file);
const at = codec.reserve(blob.length);
new Uint8Array(codec.memory.buffer).set(blob, at);
if (codec.load() !== 0) throw new Error("the model was refused");
const encoder = codec.open(1, 0);
const decoder = codec.open(2, 0);
const pcm = new Float32Array(codec.memory.buffer, codec.pcm(), 320);
const codes = new Uint16Array(codec.memory.buffer, codec.codes(), 8);
const heard = [];
for (let t = 0; t < 60; t++) {
  for (let q = 0; q < 8; q++) codes[q] = ((t * 8 + q) * 37) % 1024;
  if (codec.decode(decoder, 1, 8, 0) !== 320) throw new Error("decode");
  heard.push(pcm.slice());
}
const hash = createHash("sha256");
for (const hop of heard) hash.update(new Uint8Array(hop.buffer));
for (const hop of heard) {
  pcm.set(hop);
  if (codec.encode(encoder, 320, 8, 0) !== 1) throw new Error("encode");
  hash.update(new Uint8Array(codes.slice().buffer));
}
console.log(JSON.stringify({ sha256: hash.digest("hex") }));
