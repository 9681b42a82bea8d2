// A call with another page: they meet at the server, and then talk over a data channel that
// neither keeps order nor sends anything twice.

const OPEN_MS = 15_000;
// Beyond this the path is congested, and what waits would only come late.
const MAX_BUFFERED_BYTES = 2048;

export class Call {
  // `about` is the model's description; `receive` takes the other side's messages; `ended` is told
  // why when the call is over.
  constructor(about, books, receive, ended) {
    this.protocol = `encodec_rt/1 ${about.codes_sha256.slice(0, 16)} ${books}`;
    this.receive = receive;
    this.ended = ended;
    this.dropped = 0;
    this.sent = 0;
    this.peer = new RTCPeerConnection();
    this.peer.onconnectionstatechange = () => {
      if (["failed", "disconnected", "closed"].includes(this.peer.connectionState)) this.end("The other side is gone.");
    };
  }

  // Waits at `url` for another page and connects. Resolves when packets can be sent.
  async connect(url, token) {
    this.socket = new WebSocket(url);
    const open = new Promise((done, fail) => Object.assign(this, { opened: done, refused: fail }));
    this.socket.onopen = () => this.socket.send(JSON.stringify({ token }));
    this.socket.onclose = ({ reason }) => this.channel?.readyState === "open" || this.refused(new Error(reason || "the server is gone"));
    this.socket.onmessage = ({ data }) => this.signal(JSON.parse(data)).catch(this.refused);
    try {
      await open;
    } finally {
      clearTimeout(this.timer);
      this.socket.close();
    }
  }

  async signal({ role, description }) {
    if (role) this.timer = setTimeout(() => this.refused(new Error("no connection came about; a firewall may be in between")), OPEN_MS);
    if (role === "offer") {
      this.use(this.peer.createDataChannel("voice", { ordered: false, maxRetransmits: 0, protocol: this.protocol }));
      await this.describe(await this.peer.createOffer());
    } else if (role === "answer") {
      this.peer.ondatachannel = ({ channel }) => this.use(channel);
    } else if (description) {
      await this.peer.setRemoteDescription(description);
      if (description.type === "offer") await this.describe(await this.peer.createAnswer());
    }
  }

  async describe(description) {
    await this.peer.setLocalDescription(description);
    await new Promise((done) => {
      const look = () => this.peer.iceGatheringState === "complete" && done();
      this.peer.onicegatheringstatechange = look;
      look();
    });
    this.socket.send(JSON.stringify({ description: this.peer.localDescription.toJSON() }));
  }

  use(channel) {
    if (channel.protocol !== this.protocol) {
      channel.close();
      this.refused(new Error("the other side uses another model, bandwidth or version; choose the same on both"));
      return;
    }
    this.channel = channel;
    channel.binaryType = "arraybuffer";
    channel.onopen = () => this.opened();
    channel.onclose = () => this.end("The other side hung up.");
    channel.onmessage = ({ data }) => data instanceof ArrayBuffer && this.receive(new Uint8Array(data));
    if (channel.readyState === "open") this.opened();
  }

  send(packet) {
    if (this.channel?.readyState !== "open") return;
    if (this.channel.bufferedAmount > MAX_BUFFERED_BYTES) {
      this.dropped += 1;
      return;
    }
    this.channel.send(packet);
    this.sent += 1;
  }

  end(why) {
    if (this.over) return;
    this.over = true;
    this.peer.close();
    this.socket?.close();
    this.refused?.(new Error(why));
    this.ended(why);
  }
}
