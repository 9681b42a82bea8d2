// The audio thread: microphone or file in, codec, ear out. Its clock drives everything, so that a
// hidden page keeps playing. A large model's codec is in a worker, with which hops are exchanged.
//
// Messages in: {model} or {worker: port, rate, frame} to begin, {ear: "codec" | "original" | "mute"}
// and those of Engine.control. Out: {ready}, {hop} with both sides of one frame, {packet}, {failed}.
import { Engine } from "./engine.js";
import { Fifo } from "./fifo.js";
import { Resampler } from "./resample.js";

const QUANTUM = 128;
// How much longer than the audio thread a worker may take before there is a gap.
const WORKER_S = 0.02;
// A queue this many frames longer than wanted is left over from a stall, and only adds delay.
const MAX_SURPLUS_FRAMES = 3;
// At most this much audio is with the worker. On a machine that is too slow, further hops are left
// out until all are back: otherwise the backlog would only grow, and one gap is better than many.
const MAX_AWAY_S = 1;
const QUEUE_SAMPLES = 1 << 15;

class CodecProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    Object.assign(this, { engine: null, worker: null, ear: "codec", hops: 0, underruns: 0, playing: false });
    // Hops that are with the worker, and those left out since.
    Object.assign(this, { away: 0, missed: 0 });
    this.port.onmessage = ({ data }) => this.guarded(() => this.receive(data));
  }

  // An error is reported to the page; there is no sound from then on.
  guarded(work) {
    try {
      work();
    } catch (error) {
      this.engine = this.worker = null;
      this.port.postMessage({ failed: error.message });
    }
  }

  receive(data) {
    if (data.model) {
      this.engine = new Engine(data.model, data.books, (packet) => this.port.postMessage({ packet }, [packet.buffer]));
      const { codec } = this.engine;
      this.begin(codec.about.sampling_rate, codec.hop, 0);
      this.port.postMessage({ ready: { frame: codec.hop } });
    } else if (data.worker) {
      this.begin(data.rate, data.frame, WORKER_S);
      this.worker = data.worker;
      this.worker.onmessage = ({ data: hop }) => {
        this.away -= 1;
        this.give(hop);
      };
      this.port.postMessage({ ready: { frame: data.frame } });
    }
    if (data.ear) this.ear = data.ear;
    this.engine?.control(data, currentTime);
  }

  begin(rate, frame, spareS) {
    this.down = new Resampler(sampleRate, rate);
    this.up = { codec: new Resampler(rate, sampleRate), original: new Resampler(rate, sampleRate) };
    this.queues = { codec: new Fifo(QUEUE_SAMPLES), original: new Fifo(QUEUE_SAMPLES) };
    this.input = new Float32Array(frame);
    this.filled = 0;
    this.maxAway = Math.ceil((MAX_AWAY_S * rate) / frame);
    this.frame = Math.ceil((frame * sampleRate) / rate);
    // A quantum may ask for samples just before a hop is complete.
    this.target = this.frame + QUANTUM + Math.round(spareS * sampleRate);
  }

  process([input], [output]) {
    if (!this.engine && !this.worker) return true;
    this.guarded(() => {
      this.take(this.down.push(input[0] ?? new Float32Array(output[0].length)));
      // In a call a hop is taken from the buffer only when the ear needs it: nothing waits twice.
      while (this.engine?.inCall && this.queues.codec.length < output[0].length) {
        this.give({ original: this.input.slice(), ...this.engine.hear(currentTime) });
      }
      this.play(output);
    });
    return true;
  }

  take(samples) {
    for (const sample of samples) {
      this.input[this.filled++] = sample;
      if (this.filled < this.input.length) continue;
      this.filled = 0;
      if (this.worker) this.ask();
      else if (this.engine.inCall) this.engine.say(this.input, currentTime);
      else this.give({ original: this.input.slice(), ...this.engine.loop(this.input) });
    }
  }

  ask() {
    if (this.away >= this.maxAway || (this.missed && this.away)) {
      this.missed += 1;
      return;
    }
    this.worker.postMessage({ hop: this.input, time: currentTime, missed: this.missed });
    this.away += 1;
    this.missed = 0;
  }

  give({ original, decoded, lost, counts, held }) {
    this.hops += 1;
    const { codec } = this.queues;
    if (this.worker && codec.length > this.target + MAX_SURPLUS_FRAMES * this.frame) {
      for (const queue of Object.values(this.queues)) queue.drop(this.frame);
    }
    codec.push(this.up.codec.push(decoded));
    this.queues.original.push(this.up.original.push(original));
    const { hops, underruns } = this;
    const waiting = codec.length / sampleRate;
    this.port.postMessage({ hop: { original, decoded, lost, hops, underruns, waiting, counts, held } }, [
      original.buffer,
      decoded.buffer,
    ]);
  }

  play(output) {
    const { codec, original } = this.queues;
    const wanted = output[0].length;
    if (!this.playing && codec.length >= (this.engine?.inCall ? wanted : this.target)) this.playing = true;
    if (!this.playing) return;
    const heard = new Float32Array(wanted);
    const said = new Float32Array(wanted);
    const had = codec.pull(heard);
    original.pull(said);
    if (had < wanted) {
      this.underruns += 1;
      this.playing = false;
    }
    const chosen = { codec: heard, original: said }[this.ear];
    if (chosen) for (const channel of output) channel.set(chosen);
  }
}

registerProcessor("encodec", CodecProcessor);
