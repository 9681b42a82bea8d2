// node timed_frames.mjs CODEC.wasm MODEL.bin PCM.f32 BOOKS: times blocks of frames as lines on
// standard input ask for them ("from count"), CPU milliseconds of this process per frame.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [wasm, file, audio, count] = process.argv.slice(2);
const books = Number(count);
const codec = (await WebAssembly.instantiate(readFileSync(wasm), {})).instance.exports;
const blob = readFileSync(file);
const at = codec.reserve(blob.length);
new Uint8Array(codec.memory.buffer).set(blob, at);
if (codec.load() !== 0) throw new Error("the model was refused");
const encoder = codec.open(1, books);
const decoder = codec.open(2, books);
const hop = codec.describe(1);
const pcm = new Float32Array(codec.memory.buffer, codec.pcm(), hop);
const codes = new Uint16Array(codec.memory.buffer, codec.codes(), books);
const bytes = readFileSync(audio);
const samples = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const cpuMs = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};

for await (const line of createInterface({ input: process.stdin })) {
  const [from, frames] = line.split(" ").map(Number);
  const result = { encode: [], decode: [], codes: [] };
  for (let frame = from; frame < from + frames; frame++) {
    pcm.set(samples.subarray(frame * hop, (frame + 1) * hop));
    let start = cpuMs();
    codec.encode(encoder, hop, books, 0);
    result.encode.push(cpuMs() - start);
    result.codes.push([...codes]);
    start = cpuMs();
    codec.decode(decoder, 1, books, 0);
    result.decode.push(cpuMs() - start);
  }
  console.log(JSON.stringify(result));
}
