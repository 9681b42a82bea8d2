from __future__ import annotations

import re
from pathlib import Path

from aiortc.rtp import RtpPacket

from encodec_rt.bitstream.packet import parse_packet

PAGE = Path(__file__).parents[2] / "docs" / "link.md"


def test_the_packet_in_the_documentation_reads_as_it_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (80 f6(?: [0-9a-f]{2})+)$", text, re.MULTILINE)
    packet = RtpPacket.parse(bytes.fromhex(line))
    assert (packet.marker, packet.payload_type) == (1, 118)
    assert (packet.sequence_number, packet.timestamp) == (4711, 30 * 320)
    assert f"{packet.ssrc:x}" == "1d2c3b4a"
    content = parse_packet(packet.payload, bits=10)
    assert content.codes.tolist() == [[877, 12], [402, 930]]
    assert content.redundancy is not None
    assert content.redundancy.back == 2
    assert content.redundancy.codes.tolist() == [[55, 900], [101, 44]]
