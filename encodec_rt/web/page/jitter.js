// The jitter buffer: which frame to play now, given when packets came. The same decisions as
// encodec_rt/voice/jitter.py and delay.py, which say why; golden traces of theirs test it.

import { floorDivide, TransitHistogram } from "./delay.js";

const AHEAD_S = 2;
const BEHIND_FRAMES = 32;
const STEP_PACKETS = 4;
const STEP_S = 0.05;
const SHRINK_S = 1;
const SHRINK_LOUD_S = 3;
const GROW_LOUD_FRAMES = 6;

export class JitterBuffer {
  constructor({ hop = 320, rateHz = 24000, floorMs = 10, ceilingMs = 400, lateCostMs = 15 } = {}) {
    this.hop = hop;
    this.hopS = hop / rateHz;
    this.floorS = floorMs / 1000;
    this.ceilingS = ceilingMs / 1000;
    this.lateCostMs = lateCostMs;
    this.ahead = Math.trunc(AHEAD_S / this.hopS);
    this.ssrc = null;
    this.probation = null;
    this.restart(0);
  }

  restart(timestamp) {
    this.lastTimestamp = timestamp;
    this.lastIndex = 0;
    this.frames = new Map();
    this.transits = new TransitHistogram(this.lateCostMs);
    this.goalS = 0;
    this.playingS = null;
    this.next = 0;
    this.played = -BEHIND_FRAMES;
    this.told = new Set();
    this.silentFrom = null;
    this.begun = false;
    this.lateRun = [];
    this.tooLongSinceS = null;
    this.tooShortFrames = 0;
  }

  get targetMs() {
    if (!this.transits.count) return this.floorS * 1000;
    return Math.max(0, this.goalS - this.transits.quantile(0.01)) * 1000;
  }

  get waiting() {
    return [...this.frames.keys()].filter((index) => index >= this.next).length;
  }

  // Takes in a parsed packet, or null for silence from its time on. What became of it: {accepted,
  // late: [[index, codes]], restarted}.
  put(packet, { sequence, timestamp, ssrc }, nowS) {
    let restarted = false;
    let index = ssrc === this.ssrc ? this.index(timestamp) : null;
    if (index === null) {
      const expected = this.probation && this.probation[0] === ssrc && this.probation[1] === sequence;
      if (this.ssrc !== null && !expected) {
        this.probation = [ssrc, (sequence + 1) & 0xffff];
        return { accepted: false, late: [], restarted: false };
      }
      restarted = this.ssrc !== null;
      this.ssrc = ssrc;
      this.restart(timestamp);
      index = 0;
    }
    this.probation = null;
    this.lastTimestamp = timestamp;
    this.lastIndex = index;
    let late = [];
    if (packet === null) {
      if (this.silentFrom === null && index > this.played) this.silentFrom = index;
    } else {
      late = this.store(packet, index, nowS);
      if (this.silentFrom !== null && this.silentFrom <= index && index < this.next) this.silentFrom = null;
    }
    this.measure(nowS - index * this.hopS, late.length > 0, nowS);
    return { accepted: true, late, restarted };
  }

  // What to play in the hop that starts now: {kind, index, codes, waitedS, skipped}.
  get(nowS, quiet = false) {
    const slot = (kind, index = 0, more = {}) => ({ kind, index, codes: null, waitedS: 0, skipped: 0, ...more });
    if (!this.transits.count) return slot("idle");
    this.playingS = nowS - this.next * this.hopS;
    if (this.mustHold(quiet)) return slot(this.begun ? "hold" : "idle", this.next);
    const skipped = this.maySkip(nowS, quiet) ? 1 : 0;
    this.next += skipped;
    const index = this.next;
    const held = this.frames.get(index);
    this.frames.delete(index);
    this.next += 1;
    this.forgetOld();
    const silent = this.silentFrom !== null && this.silentFrom <= index;
    if (!held) return slot(this.begun ? (silent ? "silence" : "lost") : "idle", index, { skipped });
    if (silent) this.silentFrom = null;
    this.begun = true;
    this.played = index;
    this.told.add(index);
    return slot(held.isCopy ? "copy" : "frame", index, { codes: held.codes, waitedS: nowS - held.arrivedS, skipped });
  }

  index(timestamp) {
    const moved = (timestamp - this.lastTimestamp) | 0;
    const index = this.lastIndex + Math.floor(moved / this.hop);
    const near = this.next - this.ahead <= index && index <= this.next + this.ahead;
    return moved % this.hop === 0 && near ? index : null;
  }

  store(packet, index, nowS) {
    const late = [];
    for (let offset = 0; offset < packet.frames; offset++) {
      const number = index + offset;
      const codes = packet.codes.slice(offset * packet.books, (offset + 1) * packet.books);
      if (this.next - BEHIND_FRAMES <= number && number < this.next && !this.told.has(number)) {
        late.push([number, codes]);
        this.told.add(number);
      }
      this.keep(number, { codes, arrivedS: nowS, isCopy: false });
    }
    if (packet.redundancy) {
      const { back, frames, books, codes } = packet.redundancy;
      for (let offset = 0; offset < frames; offset++) {
        this.keepCopy(index - back + offset, codes.slice(offset * books, (offset + 1) * books), nowS);
      }
    }
    return late;
  }

  keep(number, held) {
    const known = this.frames.get(number);
    const fuller = !known || held.codes.length > known.codes.length;
    if (number > this.played && number >= this.next - BEHIND_FRAMES && fuller) this.frames.set(number, held);
  }

  keepCopy(number, codes, nowS) {
    if (number >= this.next - BEHIND_FRAMES && !this.told.has(number) && !this.frames.has(number)) {
      this.transits.add(nowS - number * this.hopS);
      if (number < this.next) this.told.add(number);
    }
    this.keep(number, { codes, arrivedS: nowS, isCopy: true });
  }

  forgetOld() {
    const oldest = this.next - BEHIND_FRAMES;
    for (const number of this.frames.keys()) if (number < oldest) this.frames.delete(number);
    for (const number of this.told) if (number < oldest) this.told.delete(number);
  }

  measure(transitS, late, nowS) {
    this.transits.add(transitS);
    this.lateRun = late ? [...this.lateRun.slice(-15), [nowS, transitS]] : [];
    const run = this.lateRun;
    const recent = run.slice(-STEP_PACKETS).map(([, transit]) => transit);
    const stepped =
      run.length >= STEP_PACKETS && nowS - run[0][0] >= STEP_S && Math.min(...recent) > this.transits.quantile(0.95);
    if (stepped) {
      this.transits.shift(median(recent) - this.transits.quantile(0.5));
      this.lateRun = [];
    }
    this.aim(transitS);
    if (stepped) {
      const back = Math.trunc((nowS - this.goalS) / this.hopS);
      this.next = Math.min(this.next, Math.max(back, this.played + 1, this.next - BEHIND_FRAMES));
    }
  }

  aim(transitS) {
    if (this.playingS === null) {
      this.goalS = transitS + this.floorS;
      return;
    }
    const fastest = this.transits.quantile(0.01);
    const least = Math.ceil((fastest + this.floorS - this.playingS) / this.hopS);
    const most = floorDivide(fastest + this.ceilingS - this.playingS, this.hopS);
    const choices = [];
    for (let hops = least; hops <= Math.max(least, most); hops++) choices.push(this.playingS + hops * this.hopS);
    this.goalS = this.transits.best(choices, this.goalS);
  }

  mustHold(quiet) {
    if (this.playingS === null || this.playingS > this.goalS - this.hopS / 2) {
      this.tooShortFrames = 0;
      return false;
    }
    this.tooShortFrames += 1;
    const free = quiet || !this.begun || !this.frames.has(this.next);
    return free || this.tooShortFrames > GROW_LOUD_FRAMES;
  }

  maySkip(nowS, quiet) {
    const playingS = nowS - this.next * this.hopS;
    if (!this.begun || playingS < this.goalS + this.hopS / 2) {
      this.tooLongSinceS = null;
      return false;
    }
    this.tooLongSinceS ??= nowS;
    const enoughS = nowS - this.tooLongSinceS;
    if (!this.frames.has(this.next)) return enoughS > SHRINK_S / 2;
    if (quiet) return enoughS > SHRINK_S;
    if (enoughS > SHRINK_LOUD_S) {
      this.tooLongSinceS = nowS;
      return true;
    }
    return false;
  }
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length % 2 ? sorted[Math.floor(middle)] : (sorted[middle - 1] + sorted[middle]) / 2;
}
