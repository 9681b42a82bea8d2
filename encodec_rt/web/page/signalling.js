// How the other side is found: another page in this server's room, or the program that serves this
// page and takes calls (encodec_rt/link/whip.py).

const OPEN_MS = 15_000;
const ANSWER_MS = 10_000;

// Resolves when `promise` does, or fails with `words`.
function within(ms, promise, words) {
  let timer;
  const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Error(words)), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// The way to the other side, by whom the page calls.
export function wayTo(calls, token) {
  if (calls !== "pages") return new Listener("/call", token);
  return new Room(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/meet`, token);
}

const opening = (path) => within(OPEN_MS, path.open, "no connection could be made; a firewall may be in the way");

// The room for two at `url`, which both leave once the path is open.
class Room {
  constructor(url, token) {
    Object.assign(this, { url, token });
  }

  async connect(path) {
    const socket = new WebSocket(this.url);
    const say = (type, sdp) => socket.send(JSON.stringify({ description: { type, sdp } }));
    const gone = new Promise((_, fail) => {
      const met = async ({ role, description, refused }) => {
        if (refused) throw new Error(refused);
        if (role) opening(path).catch(fail);
        if (role === "offer") say("offer", await path.offer());
        else if (description?.type === "offer") say("answer", await path.answer(description.sdp));
        else if (description?.type === "answer") await path.accept(description.sdp);
      };
      socket.onopen = () => socket.send(JSON.stringify({ token: this.token }));
      socket.onmessage = ({ data }) => met(JSON.parse(data)).catch((error) => {
        // Otherwise the other side would wait until it gives up.
        socket.send(JSON.stringify({ refused: error.message }));
        fail(error);
      });
      socket.onclose = ({ reason }) => fail(new Error(reason || "the server is gone"));
    });
    gone.catch(() => {});
    try {
      await Promise.race([path.open, gone]);
    } finally {
      socket.close();
    }
  }

  hangUp() {}
}

// The listener behind this page. It takes another path for a call whose first one is dead.
class Listener {
  constructor(url, token) {
    this.url = url;
    this.headers = token ? { Authorization: `Bearer ${token}` } : {};
    this.location = null;
  }

  get canRenew() {
    return this.location !== null;
  }

  async connect(path) {
    const answer = await this.post(this.location ?? this.url, await path.offer());
    await path.accept(answer);
    await opening(path);
  }

  async post(url, offer) {
    const headers = { ...this.headers, "Content-Type": "application/sdp" };
    const asked = fetch(url, { method: "POST", headers, body: offer });
    const response = await within(ANSWER_MS, asked, "the other side did not answer");
    const text = await response.text();
    if (response.status !== 201) throw Object.assign(new Error(refusal(response.status, text)), { over: response.status === 404 });
    this.location = response.headers.get("Location") ?? this.location;
    return text;
  }

  hangUp() {
    if (this.location) fetch(this.location, { method: "DELETE", headers: this.headers, keepalive: true }).catch(() => {});
  }
}

function refusal(status, text) {
  const reasons = {
    401: "the token is missing or wrong; open the address that was printed",
    404: "the other side has ended the call",
    429: "too many calls; wait a few seconds",
  };
  return reasons[status] ?? (text || `the call was refused (${status})`);
}
