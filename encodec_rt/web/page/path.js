// One way to the other side: a peer connection and its data channel, which neither keeps order nor
// sends anything twice. What both must agree on is the channel's protocol string; each side says it
// in its description as well (docs/link.md), so that a refusal comes before the connection.

const NAME = "encodec_rt/1";
const ATTRIBUTE = "a=encodec-rt:";
const MAX_FRAMES = 4;
// Beyond this the path is congested, and what waits would only come late.
const MAX_BUFFERED_BYTES = 2048;

// What this side takes: this model, with up to `books` codebooks.
export function protocolOf({ sampling_rate, codes_sha256, hop, codebook_bits }, books) {
  const parameters = { rate: sampling_rate, model: codes_sha256.slice(0, 16), hop, bits: codebook_bits, maxcodebooks: books, maxframes: MAX_FRAMES };
  return [NAME, ...Object.entries(parameters).map(([name, value]) => `${name}=${value}`)].join(";");
}

// How many codebooks the other side takes. Throws if its model is not that of `ours`.
export function agree(ours, theirs) {
  const read = (text) => Object.fromEntries(text.split(";").slice(1).map((each) => each.split(/=(.*)/s).slice(0, 2)));
  const [mine, given] = [read(ours), read(theirs)];
  const same = theirs.split(";")[0] === NAME && ["model", "rate", "hop", "bits"].every((name) => mine[name] === given[name]);
  const books = Number(given.maxcodebooks);
  if (!same || !(Number.isInteger(books) && books >= 1 && books <= 32)) {
    throw new Error("the other side uses another model or version; open the same one on both sides");
  }
  return books;
}

function agreeInDescription(ours, sdp) {
  const found = sdp.split(/\r?\n/).filter((line) => line.startsWith(ATTRIBUTE));
  if (found.length !== 1) throw new Error("the other side is another kind of program: its description does not name a codec");
  return agree(ours, found[0].slice(ATTRIBUTE.length));
}

export class Path {
  // `receive` takes messages, as bytes; `ended` is told once whether the other side hung up.
  constructor(protocol, receive, ended) {
    Object.assign(this, { protocol, receive, ended, dropped: 0, garbage: 0 });
    this.peer = new RTCPeerConnection();
    this.peer.onconnectionstatechange = () => {
      if (["failed", "closed"].includes(this.peer.connectionState)) this.end(false);
    };
    this.open = new Promise((done, fail) => Object.assign(this, { opened: done, refused: fail }));
    this.open.catch(() => {});
  }

  async offer() {
    const { protocol } = this;
    this.use(this.peer.createDataChannel("voice", { ordered: false, maxRetransmits: 0, protocol }));
    return this.describe(await this.peer.createOffer());
  }

  async answer(sdp) {
    this.limit = agreeInDescription(this.protocol, sdp);
    this.peer.ondatachannel = ({ channel }) => {
      try {
        if (this.channel) throw new Error("a second channel");
        agree(this.protocol, channel.protocol);
        this.use(channel);
      } catch (error) {
        channel.close();
        this.refused(error);
      }
    };
    await this.peer.setRemoteDescription({ type: "offer", sdp });
    return this.describe(await this.peer.createAnswer());
  }

  async accept(sdp) {
    this.limit = agreeInDescription(this.protocol, sdp);
    await this.peer.setRemoteDescription({ type: "answer", sdp });
  }

  // Our description, with all candidates.
  async describe(description) {
    await this.peer.setLocalDescription(description);
    await new Promise((done) => {
      const look = () => this.peer.iceGatheringState === "complete" && done();
      this.peer.onicegatheringstatechange = look;
      look();
    });
    return `${this.peer.localDescription.sdp}${ATTRIBUTE}${this.protocol}\r\n`;
  }

  use(channel) {
    this.channel = channel;
    channel.binaryType = "arraybuffer";
    channel.onopen = () => this.opened();
    channel.onclose = () => this.end(this.peer.connectionState !== "failed");
    channel.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) this.receive(new Uint8Array(data));
      else this.garbage += 1;
    };
    if (channel.readyState === "open") this.opened();
  }

  // Whether the message was sent.
  send(message) {
    if (this.channel?.readyState !== "open") return false;
    if (this.channel.bufferedAmount > MAX_BUFFERED_BYTES) {
      this.dropped += 1;
      return false;
    }
    this.channel.send(message);
    return true;
  }

  end(hungUp) {
    if (this.over) return;
    this.over = true;
    this.peer.close();
    this.refused(new Error("no connection could be made; a firewall may be in the way"));
    this.ended(hungUp);
  }
}
