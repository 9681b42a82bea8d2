// A decoder that always plays (encodec_rt/voice/conceal.py, which says why): a lost frame is the last
// latent, held and then fading into background noise; a frame that comes just too late still puts
// the state right. Golden traces of Python's test it.

export const GAINS = [1, 1, 1, 1, 1, 0.67, 0.33];
const REPAIR_FRAMES = 3;
const NOISE_FRAMES = 16;
const FADE_S = 0.005;
const FADE_AFTER = 2;
const MIN_FLOOR_DB = -65;
const FLOOR_RISE_DB_PER_S = 3;
const MARGIN_DB = 9;

export function levelDb(pcm) {
  let power = 0;
  for (const x of pcm) power += x * x;
  return 10 * Math.log10(Math.max(power / Math.max(1, pcm.length), 1e-12));
}

// Speech from background by energy: the floor falls with the quietest frame and rises slowly.
export class EnergyDetector {
  constructor(frameS, hangoverS = 0) {
    this.riseDb = FLOOR_RISE_DB_PER_S * frameS;
    this.hangover = Math.round(hangoverS / frameS);
    this.left = this.hangover;
    this.floorDb = MIN_FLOOR_DB;
  }

  isActive(pcm) {
    const level = levelDb(pcm);
    this.floorDb = Math.max(MIN_FLOOR_DB, Math.min(level, this.floorDb + this.riseDb));
    if (level > this.floorDb + MARGIN_DB) {
      this.left = this.hangover;
      return true;
    }
    this.left -= 1;
    return this.left >= 0;
  }
}

export class Concealer {
  constructor(codec, books) {
    this.decoder = codec.decoder(books);
    const encoder = codec.encoder(books);
    const silence = this.decoder.lookUp(encoder.encode(new Float32Array(codec.hop * codec.channels)));
    encoder.close();
    this.noise = [silence];
    this.last = silence;
    this.lost = 0;
    this.seed = 1;
    this.detector = new EnergyDetector(codec.hop / codec.about.sampling_rate);
    this.quiet = true;
    // The last hops played: {index, codes, before}, where `before` is the state ahead of a lost one.
    this.history = [];
    this.fading = null;
    this.fade = Math.round(FADE_S * codec.about.sampling_rate);
    this.channels = codec.channels;
  }

  close() {
    this.decoder.close();
  }

  // One hop of audio from the codes of frame `index`, or from null where there is none.
  play(codes, index = null) {
    const latent = codes && this.decoder.lookUp(codes);
    if (codes && this.lost >= FADE_AFTER && !this.fading) {
      // What the next hop would be, were its frame lost too.
      const before = this.state();
      this.fading = this.decoder.decodeLatent(this.advance(null));
      this.goBack(before);
    }
    const audio = this.decoder.decodeLatent(this.next(codes, latent, index));
    if (this.lost) {
      this.quiet = this.lost > GAINS.length;
    } else {
      this.quiet = !this.detector.isActive(audio);
      if (this.quiet) {
        this.noise.push(this.last);
        if (this.noise.length > NOISE_FRAMES) this.noise.shift();
      }
    }
    return this.crossFade(audio);
  }

  // Corrects the state with frames [[index, codes]] that came too late; returns how many were of use.
  repair(late) {
    const come = new Map(late);
    const hops = this.history;
    const useful = hops.filter((hop) => hop.before && come.has(hop.index));
    if (!useful.length) return 0;
    const first = hops.indexOf(useful[0]);
    this.fading = this.decoder.decodeLatent(this.advance(null));
    this.goBack(useful[0].before);
    this.history = hops.slice(0, first);
    for (const { index, codes } of hops.slice(first)) {
      const known = codes ?? come.get(index) ?? null;
      this.decoder.decodeLatent(this.next(known, known && this.decoder.lookUp(known), index));
    }
    return useful.length;
  }

  next(codes, latent, index) {
    this.history.push({ index, codes, before: codes ? null : this.state() });
    if (this.history.length > REPAIR_FRAMES) this.history.shift();
    return this.advance(latent);
  }

  // The next latent: that of the frame if it came, else the last one fading into noise.
  advance(latent) {
    if (latent) {
      this.last = latent;
      this.lost = 0;
      return latent;
    }
    const gain = GAINS[this.lost] ?? 0;
    this.lost += 1;
    this.seed = (Math.imul(this.seed, 1664525) + 1013904223) >>> 0;
    const noise = this.noise[this.seed % this.noise.length];
    return this.last.map((x, i) => gain * x + (1 - gain) * noise[i]);
  }

  state() {
    return { decoder: this.decoder.state.slice(), last: this.last, lost: this.lost };
  }

  goBack({ decoder, last, lost }) {
    this.decoder.state.set(decoder);
    Object.assign(this, { last, lost });
  }

  crossFade(audio) {
    if (!this.fading) return audio;
    for (let i = 0; i < this.fade * this.channels; i++) {
      const ramp = Math.floor(i / this.channels) / (this.fade - 1);
      audio[i] = ramp * audio[i] + (1 - ramp) * this.fading[i];
    }
    this.fading = null;
    return audio;
  }
}
