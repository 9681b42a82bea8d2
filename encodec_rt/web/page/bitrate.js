// What to send, from what the reports say: the same decisions as encodec_rt/voice/bitrate.py, which
// says why, but without estimates of the bandwidth, since a data channel gives none. Golden traces of
// that file test this one.
import { MAX_REDUNDANT_FRAMES, packedSize } from "./packet.js";

const HEADER_BYTES = 60;
const MAX_FRAMES = 3;
const MIN_BOOKS = 2;
const RAISE_AFTER_S = 1;
const RAISE_LONGEST_S = 16;
const FAILED_S = 5;
const LOSS_FADES = 0.7;
const QUEUE_S = 0.2;
const CUT = 0.7;
const CUT_EVERY_S = 1;
const REGAIN_PER_S = 1.1;
// From this share of lost packets on: the number of frames that are repeated, and their codebooks.
const REDUNDANCY = [
  [0.1, 4, 4],
  [0.05, 3, 3],
  [0.02, 2, 2],
  [0, 1, 2],
];

export class RateController {
  // `books` are the most to send.
  constructor({ books, bits, frameRateHz, redundancy = true }) {
    Object.assign(this, { books, bits, frameRateHz, redundancy });
    this.loss = 0;
    this.limitBps = Infinity;
    this.shortestS = Infinity;
    this.cutS = -Infinity;
    this.betterSinceS = null;
    this.raisedS = -Infinity;
    this.patienceS = RAISE_AFTER_S;
    this.now = this.best(Infinity);
  }

  // A receiver report: share of packets lost since the last one, and the round trip or null.
  onReport(fractionLost, roundTripS, nowS) {
    const faded = LOSS_FADES * this.loss + (1 - LOSS_FADES) * fractionLost;
    this.loss = Math.max(faded, fractionLost);
    if (roundTripS === null) return;
    this.shortestS = Math.min(this.shortestS, roundTripS);
    if (nowS - this.cutS < CUT_EVERY_S) return;
    if (roundTripS > this.shortestS + QUEUE_S) {
      this.limitBps = CUT * Math.min(this.limitBps, this.rateBps(this.now));
    } else {
      this.limitBps *= REGAIN_PER_S;
    }
    this.cutS = nowS;
  }

  // The plan for the next packet: {frames, books, copies, copyBooks}.
  plan(nowS) {
    const best = this.best(this.limitBps);
    const isMore = best.frames < this.now.frames || best.books > this.now.books;
    if (!isMore) {
      const isLess = this.rateBps(best) < this.rateBps(this.now);
      if (isLess && nowS - this.raisedS < FAILED_S) {
        this.patienceS = Math.min(RAISE_LONGEST_S, 2 * this.patienceS);
        this.raisedS = -Infinity;
      }
      this.now = best;
      this.betterSinceS = null;
    } else if (this.betterSinceS === null) {
      this.betterSinceS = nowS;
    } else if (nowS - this.betterSinceS >= this.patienceS) {
      this.now = best;
      this.betterSinceS = null;
      this.raisedS = nowS;
    }
    return this.now;
  }

  best(budgetBps) {
    const least = Math.max(Math.min(MIN_BOOKS, this.books), Math.floor(this.books / 2));
    const full = this.rateBps(this.planned(1, this.books, 0));
    let wanted = this.books;
    while (wanted > least && this.rateBps(this.planned(1, wanted, this.loss)) > full) wanted -= 1;
    for (let frames = 1; frames <= MAX_FRAMES; frames++) {
      const plan = this.planned(frames, wanted, this.loss);
      if (this.rateBps(plan) <= budgetBps) return plan;
    }
    let plan;
    for (let books = wanted; books >= Math.min(MIN_BOOKS, wanted); books--) {
      plan = this.planned(MAX_FRAMES, books, this.loss);
      if (this.rateBps(plan) <= budgetBps) break;
    }
    return plan;
  }

  planned(frames, books, loss) {
    if (!this.redundancy) return { frames, books, copies: 0, copyBooks: 0 };
    const [, copies, coarse] = REDUNDANCY.find(([from]) => loss >= from);
    // One lost packet takes all its frames with it.
    return {
      frames,
      books,
      copies: Math.min(Math.max(copies, frames), MAX_REDUNDANT_FRAMES),
      copyBooks: Math.min(coarse, this.books),
    };
  }

  rateBps({ frames, books, copies, copyBooks }) {
    const extra = copies ? 1 + packedSize(copies * copyBooks, this.bits) : 0;
    const bytes = HEADER_BYTES + 1 + packedSize(frames * books, this.bits) + extra;
    return (bytes * 8 * this.frameRateHz) / frames;
  }
}
