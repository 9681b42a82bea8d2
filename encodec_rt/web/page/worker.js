// The codec of a model that is too large for the audio thread. Hops come from the worklet by
// `port` and go back by it; the page controls, and carries the packets.
import { Engine } from "./engine.js";

let engine = null;
let port = null;
// The audio clock of the last hop, for packets too: a device that stalls must not look like a slow
// network.
let nowS = 0;

function step({ hop, time, missed }) {
  nowS = time;
  if (missed && engine.inCall) engine.skip(missed, nowS);
  const original = hop.slice();
  if (engine.inCall) engine.say(hop, nowS);
  const heard = engine.inCall ? engine.hear(nowS) : engine.loop(hop);
  port.postMessage({ original, ...heard }, [original.buffer, heard.decoded.buffer]);
}

// An error is reported to the page, which shows it; the sound then stops.
function guarded(work) {
  return ({ data }) => {
    try {
      work(data);
    } catch (error) {
      self.postMessage({ failed: error.message });
    }
  };
}

self.onmessage = guarded((data) => {
  if (data.model) {
    engine = new Engine(data.model, data.books, (packet) => self.postMessage({ packet }, [packet.buffer]));
    port = data.port;
    port.onmessage = guarded(step);
    self.postMessage({ ready: { frame: engine.codec.hop } });
  }
  engine?.control(data, nowS);
});
