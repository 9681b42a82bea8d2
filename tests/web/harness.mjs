// node harness.mjs PAGE_FOLDER COMMANDS.json: runs the page's modules on what a test wrote, and
// prints what they made of it.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name}.js`));
const { encodePacket, encodeRtp, PacketError, parsePacket, parseRtp } = await load("packet");
const { JitterBuffer } = await load("jitter");
const { Codec } = await load("codec");
const { Concealer } = await load("conceal");
const { Resampler } = await load("resample");
const { RateController } = await load("bitrate");
const { Packetizer } = await load("packetizer");
const { Reports } = await load("reports");
const { Receiver } = await load("voice");
const { agree, protocolOf } = await load("path");
const { Call } = await load("call");

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hex = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("hex");
const floats = (base64) => {
  const buffer = Buffer.from(base64, "base64");
  return new Float32Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.length));
};
const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const plain = (packet) => ({ ...packet, codes: [...packet.codes], redundancy: packet.redundancy && { ...packet.redundancy, codes: [...packet.redundancy.codes] } });

function refusable(work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof PacketError) return { refused: error.message };
    throw error;
  }
}

// Hostile messages by the hundred thousand, random ones and damaged ``seeds``: how many were read.
// Nothing but a PacketError may come of any.
function hostile(count, seeds, seed, read) {
  let state = seed;
  const random = (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  let taken = 0;
  for (let i = 0; i < count; i++) {
    let message = i % 2 ? Uint8Array.from({ length: random(60) }, () => random(256)) : bytes(seeds[random(seeds.length)]);
    if (i % 2 === 0) message[random(message.length)] = random(256);
    if (i % 3 === 0) message = message.subarray(0, random(message.length + 1));
    if (!refusable(() => read(message, i)).refused) taken += 1;
  }
  return taken;
}

// A call over a channel that does nothing, and a clock that is set.
async function openCall(about, canRenew) {
  globalThis.RTCPeerConnection = class {
    close() {}
  };
  let nowS = 0;
  performance.now = () => 1000 * nowS;
  const told = { sent: 0, received: 0, words: [], ended: [], renewed: 0 };
  const connect = async (path) => {
    told.renewed += 1;
    Object.assign(path, { limit: 8, channel: { readyState: "open", bufferedAmount: 0, send: () => (told.sent += 1) } });
  };
  const call = new Call(about, 8, { connect, canRenew, hangUp() {} }, {
    begin() {}, report() {},
    receive: () => (told.received += 1), tell: (words) => told.words.push(words), ended: (why) => told.ended.push(why),
  });
  await call.connect();
  return { call, told, wait: (seconds) => (nowS += seconds) };
}

const tasks = {
  // What a call makes of a peer that says nothing more, of a full channel, and of a flood.
  call: async ({ about, message }) => {
    const silent = await openCall(about, false);
    silent.wait(9);
    silent.call.tick();
    const before = [...silent.told.ended];
    silent.wait(2);
    silent.call.tick();
    const again = await openCall(about, true);
    again.wait(4);
    again.call.tick();
    await new Promise((done) => setTimeout(done));
    const busy = await openCall(about, false);
    const { path } = busy.call;
    busy.call.send(bytes(message));
    path.channel.bufferedAmount = 4096;
    busy.call.send(bytes(message));
    for (let i = 0; i < 1000; i++) busy.call.take(path, bytes(message));
    return { before, ended: silent.told.ended, renewed: again.told, busy: { ...busy.told, refused: busy.call.refused, dropped: path.dropped } };
  },
  parse: ({ payloads, bits, most }) => payloads.map((text) => refusable(() => plain(parsePacket(bytes(text), bits, most)))),
  encode: ({ packets, bits }) => packets.map((packet) => hex(encodePacket(packet, bits))),
  rtp: ({ packets }) => packets.map((text) => refusable(() => {
    const parsed = parseRtp(bytes(text));
    return { ...parsed, payload: hex(parsed.payload), again: hex(encodeRtp(parsed)) };
  })),
  fuzz: ({ count, bits, seeds }) => {
    const taken = hostile(count, seeds, 12345, (message) => parsePacket(parseRtp(message).payload, bits, 8));
    return { count, taken };
  },
  // The packets of a sender whose frames, times and reports are given.
  send: ({ books, hop, bits, rateHz, events }) => {
    const controller = new RateController({ books, bits, frameRateHz: rateHz / hop });
    const packetizer = new Packetizer({ hop, bits });
    return events.map(([kind, now, ...rest]) => {
      if (kind === "report") return controller.onReport(...rest, now) ?? null;
      const [codes, active] = rest;
      const packets = packetizer.push(Uint16Array.from(codes), controller.plan(now), active);
      return packets.map(({ payload, timestamp, marker }) => [hex(payload), timestamp, marker]);
    });
  },
  // The reports of one side that sends and receives what is given.
  report: ({ rateHz, ssrc, events }) => {
    const reports = new Reports(rateHz, ssrc);
    return events.map(([kind, now, message]) => {
      if (kind === "sent") reports.onSent(bytes(message));
      else if (kind === "packet") reports.onPacket(bytes(message), now);
      else if (kind === "write") return hex(reports.write(now));
      else {
        reports.read(bytes(message), now);
        return reports.latest && { ...reports.latest, roundTripS: reports.roundTripS };
      }
      return null;
    });
  },
  // Damaged and random reports: nothing but a PacketError comes, and no wild round trip is believed.
  hostile_reports: ({ count, seeds, ssrc }) => {
    const reports = new Reports(24000, ssrc);
    const taken = hostile(count, seeds, 54321, (message, i) => reports.read(message, i / 100) ?? {});
    return { count, taken, roundTripS: reports.roundTripS, written: reports.write(count).length };
  },
  // What a receiver plays of the messages given, and what it counted.
  hear: ({ wasm, model, books, events }) => {
    const codec = new Codec(readFileSync(wasm), readFileSync(model));
    const receiver = new Receiver(codec, books);
    const heard = [];
    for (const [kind, now, message] of events) {
      if (kind === "put") receiver.receive(bytes(message), now);
      else heard.push(...receiver.play(now));
    }
    return { heard: base64(Float32Array.from(heard)), counts: receiver.counts };
  },
  protocol: ({ about, books, others }) => {
    const ours = protocolOf(about, books);
    const taken = others.map((theirs) => {
      try {
        return agree(ours, theirs);
      } catch (error) {
        return error.message;
      }
    });
    return { ours, taken };
  },
  jitter: ({ options, events }) => {
    const buffer = new JitterBuffer(options);
    return events.map(([kind, now, ...rest]) => {
      if (kind === "get") {
        const slot = buffer.get(now, rest[0]);
        return [slot.kind, slot.index, slot.codes && [...slot.codes], slot.skipped, slot.waitedS, buffer.targetMs];
      }
      const [payload, sequence, timestamp, ssrc] = rest;
      const packet = payload === null ? null : parsePacket(bytes(payload), 10);
      const { accepted, late, restarted } = buffer.put(packet, { sequence, timestamp, ssrc }, now);
      return [accepted, restarted, late.map(([index, codes]) => [index, [...codes]])];
    });
  },
  stream: ({ wasm, model, books, pcm, snapshot, decoderSnapshot }) => {
    const codec = new Codec(readFileSync(wasm), readFileSync(model));
    const encoder = codec.encoder(books);
    const decoder = codec.decoder(books);
    if (snapshot) encoder.restore(bytes(snapshot));
    if (decoderSnapshot) decoder.restore(bytes(decoderSnapshot));
    const samples = floats(pcm);
    const codes = [];
    const heard = [];
    for (let at = 0; at < samples.length; at += codec.hop) {
      codes.push([...encoder.encode(samples.subarray(at, at + codec.hop))]);
      heard.push(...decoder.decode(codes[codes.length - 1]));
    }
    return { codes, heard: base64(Float32Array.from(heard)), snapshot: hex(encoder.snapshot()), decoderSnapshot: hex(decoder.snapshot()) };
  },
  conceal: ({ wasm, model, books, frames }) => {
    const codec = new Codec(readFileSync(wasm), readFileSync(model));
    const concealer = new Concealer(codec, books);
    return base64(Float32Array.from(frames.flatMap((codes) => [...concealer.play(codes)])));
  },
  resample: ({ from, to, pcm, sizes }) => {
    const resampler = new Resampler(from, to);
    const samples = floats(pcm);
    const out = [];
    for (let at = 0, i = 0; at < samples.length; at += sizes[i % sizes.length], i++) {
      out.push(...resampler.push(samples.subarray(at, at + sizes[i % sizes.length])));
    }
    return base64(Float32Array.from(out));
  },
};

const { task, ...given } = JSON.parse(readFileSync(file, "utf8"));
console.log(JSON.stringify(await tasks[task](given)));
