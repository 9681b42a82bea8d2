// A decoder that always plays: a lost frame is the last latent, held and then fading into
// background noise (encodec_rt/voice/conceal.py, without its repair of late frames).

export const GAINS = [1, 1, 1, 1, 1, 0.67, 0.33];
const NOISE_FRAMES = 16;
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
  }

  // One hop of audio from the codes of a frame, or from null where there is none.
  play(codes) {
    if (codes) {
      this.last = this.decoder.lookUp(codes);
      this.lost = 0;
      const audio = this.decoder.decodeLatent(this.last);
      this.quiet = !this.detector.isActive(audio);
      if (this.quiet) {
        this.noise.push(this.last);
        if (this.noise.length > NOISE_FRAMES) this.noise.shift();
      }
      return audio;
    }
    const gain = GAINS[this.lost] ?? 0;
    this.lost += 1;
    this.seed = (Math.imul(this.seed, 1664525) + 1013904223) >>> 0;
    const noise = this.noise[this.seed % this.noise.length];
    const latent = this.last.map((x, i) => gain * x + (1 - gain) * noise[i]);
    this.quiet = this.lost > GAINS.length;
    return this.decoder.decodeLatent(latent);
  }
}
