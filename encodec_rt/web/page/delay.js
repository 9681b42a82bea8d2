// What transit times of packets say (encodec_rt/voice/delay.py, which says why).

const BUCKET_S = 0.002;
const BUCKETS = 600;
const FORGET = 0.996;
const PRIOR_S = 0.002;
const PRIOR_PACKETS = 30;
const SWITCH_S = 0.002;

// Transit times by media time, with forgetting.
export class TransitHistogram {
  constructor(lateCostMs) {
    this.lateCostS = lateCostMs / 10;
    this.mass = new Float64Array(BUCKETS);
    this.sums = new Float64Array(BUCKETS);
    this.lowS = 0;
    this.count = 0;
  }

  add(transitS) {
    if (!this.count) this.begin(transitS);
    // As Python's // does it: from the remainder, which is exact.
    let bucket = floorDivide(transitS - this.lowS, BUCKET_S);
    if (!(bucket >= 0 && bucket < BUCKETS)) {
      this.move(bucket - BUCKETS / 2);
      bucket = BUCKETS / 2;
    }
    this.count += 1;
    const keep = Math.min(FORGET, 1 - 1 / (PRIOR_PACKETS + this.count));
    let sum = 0;
    for (let i = 0; i < BUCKETS; i++) {
      this.mass[i] *= keep;
      if (i === bucket) this.mass[i] += 1 - keep;
      sum += this.mass[i];
      this.sums[i] = sum;
    }
  }

  shift(seconds) {
    this.lowS += seconds;
  }

  quantile(share) {
    const wanted = share * this.sums[BUCKETS - 1];
    let bucket = 0;
    while (bucket < BUCKETS - 1 && this.sums[bucket] < wanted) bucket += 1;
    return this.lowS + (bucket + 1) * BUCKET_S;
  }

  best(choicesS, presentS) {
    let chosen = choicesS[0];
    let least = Infinity;
    for (const choice of choicesS) {
      const bucket = Math.floor((choice - this.lowS) / BUCKET_S);
      const onTime = bucket <= 0 ? 0 : this.sums[Math.min(bucket, BUCKETS) - 1];
      let cost = choice + this.lateCostS * (this.sums[BUCKETS - 1] - onTime);
      if (Math.abs(choice - presentS) < BUCKET_S) cost -= SWITCH_S;
      if (cost < least) [least, chosen] = [cost, choice];
    }
    return chosen;
  }

  begin(transitS) {
    this.lowS = transitS - (BUCKETS / 4) * BUCKET_S;
    let sum = 0;
    for (let i = BUCKETS / 4; i < BUCKETS; i++) {
      this.mass[i] = Math.exp((-(i - BUCKETS / 4) * BUCKET_S) / PRIOR_S);
      sum += this.mass[i];
    }
    for (let i = 0; i < BUCKETS; i++) this.mass[i] /= sum;
  }

  move(buckets) {
    const moved = new Float64Array(BUCKETS);
    let fallen = 0;
    for (let i = 0; i < BUCKETS; i++) {
      const to = i - buckets;
      if (to >= 0 && to < BUCKETS) moved[to] = this.mass[i];
      else fallen += this.mass[i];
    }
    moved[buckets > 0 ? 0 : BUCKETS - 1] += fallen;
    this.mass = moved;
    this.lowS += buckets * BUCKET_S;
  }
}

// Python's a // b for floats: from the remainder, so that a quotient that rounds up is not taken.
export function floorDivide(a, b) {
  let rest = a % b;
  let quotient = (a - rest) / b;
  if (rest && b < 0 !== rest < 0) {
    rest += b;
    quotient -= 1;
  }
  if (!quotient) return 0;
  let floored = Math.floor(quotient);
  if (quotient - floored > 0.5) floored += 1;
  return floored;
}
