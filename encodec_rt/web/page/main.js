// The page: buttons, what they start, and what is drawn. The audio thread is worklet.js.
import { Call } from "./call.js";
import { describe } from "./codec.js";
import { levelDb } from "./conceal.js";
import { playCancellable } from "./echo.js";
import { explain, lacking, micHint } from "./explain.js";
import { wayTo } from "./signalling.js";
import { Spectrogram } from "./spectrogram.js";
import { showRows } from "./table.js";
import { wav } from "./wav.js";

const KEPT_S = 600;
const element = (id) => document.getElementById(id);
// `calls` is whom a call goes to: another of the "pages", or who serves this one: a "listener", or a
// "server" that sends back what it hears.
const { folder, model: modelUrl, clip: clipUrl, calls } = document.body.dataset;

// A model's file beyond this takes more of the audio thread's time than is safe.
const MAX_INSIDE_BYTES = globalThis.encodecMaxInsideBytes ?? 16e6;

const page = { worker: null, context: null, node: null, source: null, stream: null, ear: "codec", muted: false, saved: [], about: null };
// Firefox computes `outputLatency` with its audio graph locked, by asking the process that plays, which
// may be waiting for that graph: the page then hangs for ever (seen in Firefox 153, on PulseAudio).
const tellsOutputLatency = !navigator.userAgent.includes("Firefox/");

// For tests.
globalThis.encodec = page;

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

const token = () => new URLSearchParams(location.hash.slice(1)).get("token");

async function bytes(url) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const response = await fetch(url, { headers });
  if (!response.ok) throw new Error(`the server refused ${url} (${response.status})`);
  return response.arrayBuffer();
}

async function load() {
  if (lacking()) throw new Error(lacking());
  const [wasm, blob] = await Promise.all([bytes(`${folder}/codec.wasm`), bytes(modelUrl)]);
  page.model = { wasm, blob };
  page.about = describe(new Uint8Array(blob));
  const { bandwidths_kbps: rates, codebooks } = page.about;
  const chosen = rates.includes(6) ? 6 : rates[rates.length - 1];
  rates.forEach((kbps, i) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "kbps", value: codebooks[i], checked: kbps === chosen });
    input.addEventListener("change", () => codecPort()?.postMessage({ books: codebooks[i] }));
    label.append(input, ` ${kbps} kbps`);
    element("bandwidths").append(label);
  });
  for (const id of ["microphone", "clip", "file", "call", "send-clip"]) element(id).disabled = false;
  page.ready = performance.now();
  say(`Ready: ${page.about.model}, ${page.about.sampling_rate / 1000} kHz. ${micHint()}`);
}

// Called in the click itself: some browsers let no audio begin later.
function openContext(ownRate) {
  const latencyHint = "interactive";
  try {
    page.context = new AudioContext(ownRate ? { latencyHint } : { latencyHint, sampleRate: page.about.sampling_rate });
  } catch {
    page.context = new AudioContext({ latencyHint });
  }
  page.context.onerror = () => stop().then(() => say("The sound device is gone. Plug it in and start again.", true));
  page.resumed = page.context.resume();
}

async function openNode() {
  await page.context.audioWorklet.addModule(`${folder}/worklet.js`);
  page.node = new AudioWorkletNode(page.context, "encodec", {
    numberOfInputs: 1, numberOfOutputs: 1, outputChannelCount: [1],
    channelCount: 1, channelCountMode: "explicit", channelInterpretation: "speakers",
  });
  const books = Number(document.querySelector("input[name=kbps]:checked").value);
  const start = { model: page.model, books, loss: element("loss").value / 100 };
  if (page.model.blob.byteLength > MAX_INSIDE_BYTES) await openWorker(start);
  else await answered(page.node.port, start);
  page.node.port.postMessage({ ear: page.muted ? "mute" : page.ear });
  await route();
}

// To headphones, or to speakers that the echo canceller must see.
async function route() {
  const { node } = page;
  page.speakers?.close();
  page.speakers = null;
  node.disconnect();
  if (!element("speakers").checked) return void node.connect(page.context.destination);
  const speakers = await playCancellable(node);
  if (page.node === node && element("speakers").checked) page.speakers = speakers;
  else speakers.close();
}

// A large model computes beside the audio thread, at the cost of a longer queue.
async function openWorker(start) {
  const { port1, port2 } = new MessageChannel();
  page.worker = new Worker(`${folder}/worker.js`, { type: "module" });
  page.worker.onerror = ({ message }) => say(`The codec stopped: ${message}`, true);
  const { frame } = await answered(page.worker, { ...start, port: port1 }, [port1]);
  await answered(page.node.port, { worker: port2, rate: page.about.sampling_rate, frame }, [port2]);
}

// Posts a message and resolves when the other side is ready; goes on taking what it says.
function answered(port, message, transfer = []) {
  return new Promise((done, fail) => {
    port.onmessage = ({ data }) => {
      if (data.failed) { fail(new Error(data.failed)); say(`The codec stopped: ${data.failed}`, true); }
      if (data.ready) { Object.assign(page, data.ready); done(data.ready); }
      if (data.hop) draw(data.hop);
      if (data.packet) page.call?.send(data.packet);
    };
    port.postMessage(message, transfer);
  });
}

// Where the codec is told what changes.
function codecPort() {
  return page.worker ?? page.node?.port;
}

async function start(connect, ownRate = false) {
  const before = stop();
  page.saved = [];
  openContext(ownRate);
  try {
    await before;
    // The prompt for the microphone comes while the worklet loads.
    const [source] = await Promise.all([connect(), openNode()]);
    await page.resumed;
    page.source = source;
    source.connect(page.node);
    source.start?.();
  } catch (error) {
    await stop();
    // Some browsers connect a microphone only to a context of the device's own rate.
    if (error.name === "NotSupportedError" && !ownRate) await start(connect, true);
    else say(explain(error), true);
    return;
  }
  element("stop").hidden = false;
  element("delay").hidden = false;
  for (const id of ["ear", "mute", "save"]) element(id).disabled = false;
  say(page.context.sampleRate === page.about.sampling_rate ? "Running." : `Running; this device keeps to ${page.context.sampleRate} Hz, so the page resamples.`);
}

// Sound first, then the network: the click that starts a call is the one that may start audio.
async function converse(connect) {
  await start(connect);
  if (!page.node) return;
  // What both sides agree upon stays; one's own voice would be no more than an echo.
  for (const id of ["ear", "loss", "bandwidths"]) element(id).disabled = true;
  page.ear = "codec";
  listen();
  const books = Number(document.querySelector("input[name=kbps]:checked").value);
  const port = codecPort();
  const call = (page.call = new Call(page.about, books, wayTo(calls, token()), {
    begin: (streams) => port.postMessage({ call: streams }),
    receive: (packet) => port.postMessage({ packet }, [packet.buffer]),
    report: (report) => port.postMessage({ report }),
    tell: (words) => page.call === call && say(words),
    ended: (why) => page.call === call && stop().then(() => say(why, true)),
  }));
  say(calls === "pages" ? "Waiting for another browser to open this page and call…" : "Calling…");
  try {
    await call.connect();
  } catch (error) {
    if (page.call !== call) return;
    await stop();
    say(`No call: ${error.message}.`, true);
    return;
  }
  page.saved = [];
  say("In a call. Use headphones.");
}

// In a call a file takes the microphone's place.
async function send(connect) {
  try {
    const source = await connect();
    page.source?.disconnect();
    page.source = source;
    source.connect(page.node);
    source.start();
  } catch (error) {
    say(explain(error), true);
  }
}

async function microphone() {
  if (!navigator.mediaDevices) throw new Error(micHint());
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false };
  page.stream = await navigator.mediaDevices.getUserMedia({ audio });
  const [track] = page.stream.getAudioTracks();
  track.addEventListener("ended", () => { stop(); say("The microphone is gone. Plug it in and start again.", true); });
  return page.context.createMediaStreamSource(page.stream);
}

async function playing(content) {
  const source = page.context.createBufferSource();
  source.buffer = await page.context.decodeAudioData(content);
  source.loop = true;
  return source;
}

// Releases everything at once, and waits only for the device to close.
async function stop() {
  const { source, node, stream, context, call, worker, speakers } = page;
  Object.assign(page, { context: null, node: null, source: null, stream: null, call: null, worker: null, speakers: null, last: null });
  worker?.terminate();
  speakers?.close();
  call?.end("You hung up.");
  element("stop").hidden = true;
  for (const id of ["ear", "mute"]) element(id).disabled = true;
  for (const id of ["loss", "bandwidths"]) element(id).disabled = false;
  for (const id of ["said-level", "heard-level"]) element(id).value = -60;
  source?.disconnect();
  node?.disconnect();
  stream?.getTracks().forEach((track) => track.stop());
  await context?.close();
}

const pictures = { said: new Spectrogram(element("said")), heard: new Spectrogram(element("heard")) };

function draw(hop) {
  page.last = hop;
  page.call?.tick();
  page.saved.push({ heard: hop.decoded, said: hop.original });
  if (page.saved.length * page.frame > KEPT_S * page.about.sampling_rate) page.saved.shift();
  if (document.hidden) return;
  pictures.said.push(hop.original);
  pictures.heard.push(hop.decoded);
  element("said-level").value = levelDb(hop.original);
  element("heard-level").value = levelDb(hop.decoded);
  if (hop.hops % 38 === 1) latency(hop);
}

function latency(hop) {
  const { context } = page;
  if (!context) return;
  const rows = [
    ["Microphone, as the browser says", page.stream?.getAudioTracks()[0].getSettings().latency],
    ["One frame", page.frame / page.about.sampling_rate],
    ["Network, half the round trip", page.call?.reports?.roundTripS / 2],
    ["Held against jitter", hop.held],
    ["Waiting to be played", hop.waiting],
    ["Browser's mixer", context.baseLatency],
    ["Device, as the browser says", tellsOutputLatency ? context.outputLatency : NaN],
  ].filter(([, seconds]) => Number.isFinite(seconds));
  showRows(element("latency").tBodies[0], rows, hop.counts ? Object.entries(hop.counts) : [["Gaps so far", hop.underruns]]);
}

function listen() {
  page.node?.port.postMessage({ ear: page.muted ? "mute" : page.ear });
  element("ear").setAttribute("aria-pressed", String(page.ear === "original"));
  element("ear-text").textContent = page.ear === "original" ? "Hearing the original" : "Hearing the codec";
  element("mute").setAttribute("aria-pressed", String(page.muted));
}

const actions = {
  ear: () => { page.ear = page.ear === "codec" ? "original" : "codec"; listen(); },
  mute: () => { page.muted = !page.muted; listen(); },
  save: () => {
    const file = new Blob([wav(page.saved.map((hop) => hop.heard), page.about.sampling_rate)], { type: "audio/wav" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "heard.wav" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
};
for (const [id, action] of Object.entries(actions)) element(id).addEventListener("click", action);
document.addEventListener("keydown", (event) => {
  const id = { b: "ear", m: "mute", s: "save" }[event.key.toLowerCase()];
  const typing = event.ctrlKey || event.metaKey || event.altKey || event.target.type === "text";
  if (id && !typing && !element(id).disabled) actions[id]();
});
element("microphone").addEventListener("click", () => start(microphone));
element("clip").addEventListener("click", () => start(async () => playing(await bytes(clipUrl))));
element("call").addEventListener("click", () => converse(microphone));
element("send-clip").addEventListener("click", () => converse(async () => playing(await bytes(clipUrl))));
element("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  const connect = async () => playing(await file.arrayBuffer());
  await (page.call ? send(connect) : start(connect));
});
element("stop").addEventListener("click", () => { stop(); say("Stopped."); });
element("speakers").addEventListener("change", () => page.node && route().catch((error) => say(explain(error), true)));
element("loss").addEventListener("input", ({ target }) => {
  element("loss-text").textContent = `${target.value} %`;
  codecPort()?.postMessage({ loss: target.value / 100 });
});

element("call").textContent = { pages: "Call another browser", listener: "Call", server: "Call the server, which echoes" }[calls];
load().catch((error) => say(error.message, true));
