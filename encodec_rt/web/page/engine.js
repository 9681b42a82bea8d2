// What happens to each hop of samples, in the audio thread or in a worker: it goes through the codec
// and back to one's own ear, or into a call.
import { Codec } from "./codec.js";
import { Concealer } from "./conceal.js";
import { Receiver, Sender } from "./voice.js";

export class Engine {
  // `send` takes the packets of a call.
  constructor({ wasm, blob }, books, send) {
    this.codec = new Codec(wasm, blob);
    this.send = send;
    this.loss = 0;
    this.sender = null;
    this.setBooks(books);
  }

  // Only without a call: in a call both sides agreed on the number.
  setBooks(books) {
    if (this.sender || books === this.books) return;
    this.encoder?.close();
    this.concealer?.close();
    this.books = books;
    this.encoder = this.codec.encoder(books);
    this.concealer = new Concealer(this.codec, books);
  }

  // Streams begin anew for each path of a call, so that each decoder is where the encoder is; the
  // counts go on.
  beginCall({ ssrc, limit }) {
    const counts = this.receiver?.counts;
    this.sender?.close();
    this.receiver?.close();
    this.sender = new Sender(this.codec, { books: this.books, limit, ssrc });
    this.receiver = new Receiver(this.codec, this.books);
    if (counts) this.receiver.counts = counts;
  }

  get inCall() {
    return this.sender !== null;
  }

  // Acts on a message that the worklet and the worker both take.
  control(data, nowS) {
    if (data.books) this.setBooks(data.books);
    if (data.loss !== undefined) this.loss = data.loss;
    if (data.call) this.beginCall(data.call);
    if (data.packet) this.receiver?.receive(data.packet, nowS);
    if (data.report) this.sender?.controller.onReport(data.report.fractionLost, data.report.roundTripS, nowS);
  }

  // One hop through the codec: {decoded, lost}.
  loop(samples) {
    const codes = this.encoder.encode(samples);
    const lost = Math.random() < this.loss;
    return { decoded: this.concealer.play(lost ? null : codes), lost };
  }

  // One hop into the call.
  say(samples, nowS) {
    for (const packet of this.sender.push(samples, nowS)) this.send(packet);
  }

  // Hops just before now that this machine had no time for: the call's clocks go on.
  skip(count, nowS) {
    this.sender.skip(count);
    const hopS = this.codec.hop / this.codec.about.sampling_rate;
    for (let ago = count; ago > 0; ago--) this.receiver.skip(nowS - ago * hopS);
  }

  // One hop out of the call: {decoded, lost, counts, held}.
  hear(nowS) {
    const decoded = this.receiver.play(nowS);
    const { buffer, counts } = this.receiver;
    return { decoded, lost: false, counts: { ...counts }, held: buffer.targetMs / 1000 };
  }
}
