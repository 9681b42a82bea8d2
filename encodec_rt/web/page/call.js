// A call: a path to the other side, the reports on it, and another path when it is dead.
import { PacketError } from "./packet.js";
import { Path, protocolOf } from "./path.js";
import { isReport, Reports } from "./reports.js";

const REPORT_S = 1;
const MAX_MESSAGES_PER_S = 400;
// A path on which nothing arrives for so long is given up: even silence is announced every 0.4 s.
const DEAD_AFTER_S = 3;
const RETRY_S = 1;
// How long calling again is tried, and how long a call without that waits.
const RECONNECT_S = 30;
const IDLE_S = 10;
const FAREWELL_MS = 1000;

const clock = () => performance.now() / 1000;

export class Call {
  // `way` finds the other side. `begin` is told {ssrc, limit} of each path that opens, `receive`
  // takes packets, `report` what the other side reports, `tell` what happens, `ended` why it ended.
  constructor(about, books, way, { begin, receive, report, tell, ended }) {
    Object.assign(this, { about, books, way, begin, receive, report, tell, ended });
    this.refused = 0;
    this.renewals = 0;
    this.allowance = MAX_MESSAGES_PER_S;
    this.path = this.newPath();
  }

  // Finds the other side and connects. Resolves when packets can be sent.
  async connect() {
    await this.way.connect(this.path);
    this.start();
  }

  newPath() {
    const path = new Path(protocolOf(this.about, this.books), (message) => this.take(path, message), (hungUp) => this.lose(path, hungUp));
    return path;
  }

  start() {
    const [ssrc] = crypto.getRandomValues(new Uint32Array(1));
    this.reports = new Reports(this.about.sampling_rate, ssrc);
    this.heardS = this.reportedS = this.seenS = clock();
    this.begin({ ssrc, limit: Math.min(this.path.limit, this.books) });
  }

  // To be called with every hop: the audio's clock runs on where timers are throttled.
  tick() {
    if (!this.reports || this.over) return;
    const nowS = clock();
    if (nowS - this.reportedS >= REPORT_S) {
      this.reportedS = nowS;
      this.path.send(this.reports.write(nowS));
    }
    const silentS = nowS - this.heardS;
    if (silentS > (this.way.canRenew ? RECONNECT_S : IDLE_S)) this.end(`Nothing came from the other side for ${silentS.toFixed(0)} s.`);
    else if (silentS > DEAD_AFTER_S && this.way.canRenew) this.renew();
  }

  async renew() {
    if (this.renewing || this.over) return;
    this.renewing = true;
    this.tell("No packets came for a while; calling again…");
    try {
      while (!this.over && !(await this.tryAgain())) await new Promise((done) => setTimeout(done, 1000 * RETRY_S));
    } finally {
      this.renewing = false;
    }
  }

  // Whether the call goes on over another path, or is over.
  async tryAgain() {
    const path = (this.next = this.newPath());
    try {
      await this.way.connect(path);
    } catch (error) {
      path.end(false);
      if (error.over) this.end("The other side has ended the call.");
      return Boolean(this.over);
    }
    if (this.over) {
      path.end(false);
      return true;
    }
    const before = this.path;
    this.path = path;
    setTimeout(() => before.end(false), FAREWELL_MS);
    this.renewals += 1;
    this.start();
    this.tell("Connected again.");
    return true;
  }

  // A message from the other side. Their number is limited; garbage is counted and ignored.
  take(path, message) {
    if (path !== this.path || !this.reports) return;
    const nowS = clock();
    this.allowance = Math.min(MAX_MESSAGES_PER_S, this.allowance + (nowS - this.seenS) * MAX_MESSAGES_PER_S);
    this.seenS = nowS;
    if (this.allowance < 1) {
      this.refused += 1;
      return;
    }
    this.allowance -= 1;
    try {
      if (isReport(message)) {
        this.reports.read(message, nowS);
        if (this.reports.latest) this.report({ ...this.reports.latest, roundTripS: this.reports.roundTripS });
        return;
      }
      this.reports.onPacket(message, nowS);
      this.heardS = nowS;
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      this.refused += 1;
      return;
    }
    this.receive(message);
  }

  send(packet) {
    if (this.path.send(packet)) this.reports.onSent(packet);
  }

  lose(path, hungUp) {
    if (path !== this.path || this.over) return;
    if (hungUp) this.end("The other side hung up.");
    else if (this.way.canRenew && this.reports) this.renew();
    else this.end("The path to the other side broke.");
  }

  end(why) {
    if (this.over) return;
    this.over = true;
    this.way.hangUp();
    this.path.end(false);
    this.next?.end(false);
    this.ended(why);
  }
}
