"""The model that page tests serve, and a script that reads what a page recorded."""

from __future__ import annotations

from functools import cache

from encodec_rt.export.blob import blob
from encodec_rt.model.encodec import EncodecModel

# Returns what was said and heard, as base64 of float32, and the number of hops.
RECORDED = """(() => {
  const join = (key) => {
    const hops = encodec.saved.map((hop) => hop[key]);
    const all = new Float32Array(hops.length * hops[0].length);
    hops.forEach((hop, i) => all.set(hop, i * hop.length));
    const bytes = new Uint8Array(all.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) {
      text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    }
    return btoa(text);
  };
  return [join("said"), join("heard"), encodec.last.hops];
})()"""


@cache
def model() -> bytes:
    return blob(EncodecModel.from_pretrained("default"))
