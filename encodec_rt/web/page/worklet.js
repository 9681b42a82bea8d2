// The audio thread: microphone or file in, codec, ear out. Its clock drives everything, so that a
// hidden page keeps playing.
//
// Messages in: {model} to load, {books}, {ear: "codec" | "original" | "mute"}, {loss}, {call} to
// begin a call, {packet} from its network. Messages out: {ready}, {hop} with both sides of one
// frame, {packet} for the network, {failed}.
import { Codec } from "./codec.js";
import { Concealer } from "./conceal.js";
import { Fifo } from "./fifo.js";
import { Resampler } from "./resample.js";
import { Receiver, Sender } from "./voice.js";

const QUANTUM = 128;

// The codec between two queues, at the model's rate: samples in, as many out, a fixed delay later.
export class Loop {
  constructor(codec, books) {
    this.codec = codec;
    this.hop = codec.hop;
    this.input = new Float32Array(this.hop);
    this.filled = 0;
    this.loss = 0;
    this.setBooks(books);
  }

  setBooks(books) {
    this.encoder?.close();
    this.concealer?.decoder.close();
    this.books = books;
    this.encoder = this.codec.encoder(books);
    this.concealer = new Concealer(this.codec, books);
  }

  // Calls `take(original, decoded, lost)` for each hop that the samples complete.
  push(samples, take) {
    for (const sample of samples) {
      this.input[this.filled++] = sample;
      if (this.filled < this.hop) continue;
      this.filled = 0;
      const codes = this.encoder.encode(this.input);
      const lost = this.loss > 0 && Math.random() < this.loss;
      take(this.input.slice(), this.concealer.play(lost ? null : codes), lost);
    }
  }
}

// The same interface for a call: what the samples complete goes out as packets, and what comes in
// is played. `now` is the audio clock in seconds.
class Conversation {
  constructor(codec, books, ssrc, send) {
    this.codec = codec;
    this.books = books;
    this.send = send;
    this.sender = new Sender(codec, books, ssrc);
    this.receiver = new Receiver(codec, books);
    this.input = new Float32Array(codec.hop);
    this.filled = 0;
    this.said = new Float32Array(codec.hop);
  }

  push(samples) {
    for (const sample of samples) {
      this.input[this.filled++] = sample;
      if (this.filled < this.input.length) continue;
      this.filled = 0;
      this.said = this.input.slice();
      const packet = this.sender.push(this.input);
      if (packet) this.send(packet);
    }
  }
}

class LoopProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.loop = null;
    this.call = null;
    this.ear = "codec";
    this.hops = 0;
    this.underruns = 0;
    this.playing = false;
    this.port.onmessage = ({ data }) => {
      try {
        this.receive(data);
      } catch (error) {
        this.port.postMessage({ failed: error.message });
      }
    };
  }

  receive(data) {
    if (data.model) {
      const codec = new Codec(data.model.wasm, data.model.blob);
      const rate = codec.about.sampling_rate;
      this.rate = rate;
      this.down = new Resampler(sampleRate, rate);
      this.up = { codec: new Resampler(rate, sampleRate), original: new Resampler(rate, sampleRate) };
      this.queues = { codec: new Fifo(1 << 14), original: new Fifo(1 << 14) };
      // A quantum may ask for samples just before a hop is complete.
      this.target = Math.ceil((codec.hop * sampleRate) / rate) + QUANTUM;
      this.loop = new Loop(codec, data.books);
      this.port.postMessage({ ready: { frame: codec.hop, held: this.target / sampleRate } });
    }
    if (data.call && this.loop) {
      const send = (packet) => this.port.postMessage({ packet }, [packet.buffer]);
      this.call = new Conversation(this.loop.codec, this.loop.books, data.call.ssrc, send);
      this.up.codec = new Resampler(this.rate, sampleRate);
      this.queues.codec = new Fifo(1 << 14);
    }
    if (data.packet && this.call) this.call.receiver.receive(data.packet, currentTime);
    if (data.books && this.loop && !this.call && data.books !== this.loop.books) this.loop.setBooks(data.books);
    if (data.ear) this.ear = data.ear;
    if (data.loss !== undefined && this.loop) this.loop.loss = data.loss;
  }

  process([input], [output]) {
    if (!this.loop) return true;
    if (this.call) return this.converse(input[0] ?? new Float32Array(output[0].length), output);
    const samples = input[0] ?? new Float32Array(output[0].length);
    try {
      this.loop.push(this.down.push(samples), (original, decoded, lost) => this.give(original, decoded, lost));
    } catch (error) {
      this.loop = null;
      this.port.postMessage({ failed: error.message });
      return false;
    }
    const { codec, original } = this.queues;
    if (!this.playing && codec.length >= this.target) this.playing = true;
    if (!this.playing) return true;
    const heard = new Float32Array(output[0].length);
    const said = new Float32Array(heard.length);
    const had = codec.pull(heard);
    original.pull(said);
    if (had < heard.length) {
      this.underruns += 1;
      this.playing = false;
    }
    const chosen = { codec: heard, original: said }[this.ear];
    if (chosen) for (const channel of output) channel.set(chosen);
    return true;
  }

  // A hop is taken from the buffer only when the ear needs it, so that nothing waits twice.
  converse(samples, output) {
    const queue = this.queues.codec;
    try {
      this.call.push(this.down.push(samples));
      while (queue.length < output[0].length) {
        const decoded = this.call.receiver.play(currentTime);
        queue.push(this.up.codec.push(decoded));
        this.hops += 1;
        const { buffer, counts } = this.call.receiver;
        const hop = { original: this.call.said, decoded, lost: false, hops: this.hops, underruns: counts.lost };
        Object.assign(hop, { waiting: Math.max(0, buffer.targetMs) / 1000, counts: { ...counts } });
        this.port.postMessage({ hop });
      }
    } catch (error) {
      this.loop = null;
      this.port.postMessage({ failed: error.message });
      return false;
    }
    queue.pull(output[0]);
    if (this.ear === "mute") output[0].fill(0);
    for (const channel of output.slice(1)) channel.set(output[0]);
    return true;
  }

  give(original, decoded, lost) {
    this.hops += 1;
    this.queues.codec.push(this.up.codec.push(decoded));
    this.queues.original.push(this.up.original.push(original));
    const { hops, underruns } = this;
    const waiting = this.queues.codec.length / sampleRate;
    this.port.postMessage({ hop: { original, decoded, lost, hops, underruns, waiting } }, [
      original.buffer,
      decoded.buffer,
    ]);
  }
}

registerProcessor("encodec-loop", LoopProcessor);
