// What went wrong or is missing, in a sentence that says what to do.
import { isSupported } from "./codec.js";

// What this page needs and lacks, in a sentence; empty if nothing.
export function lacking() {
  if (!globalThis.isSecureContext) return "Browsers let a page process sound only over HTTPS or on this machine: open this page with https://, or as localhost on the machine that serves it.";
  if (!isSupported()) return "This browser is too old: it lacks WebAssembly SIMD. Please update it.";
  return globalThis.AudioWorkletNode ? "" : "This browser is too old: it lacks audio worklets. Please update it.";
}

export function micHint() {
  return navigator.mediaDevices ? "" : "This browser does not let pages use a microphone; the example and files work here.";
}

// Why sound did not begin.
export function explain(error) {
  if (error.name === "NotAllowedError") return "The microphone is blocked. Allow it for this page (the lock or camera icon beside the address), then start again; or play the example.";
  if (error.name === "NotFoundError") return "No microphone was found. Plug one in, or play the example.";
  if (error.name === "NotReadableError") return "Another program holds the microphone. Close it there, then start again.";
  if (error.name === "EncodingError") return "This browser cannot read that file. Try WAV, FLAC or MP3.";
  return `That did not work: ${error.message}`;
}
