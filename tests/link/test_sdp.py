"""What is read from, and added to, the SDP of the other side."""

from __future__ import annotations

from encodec_rt.link.sdp import with_seen_address

SHOWN = "a=candidate:1 1 udp 2113937151 10.0.0.7 49322 typ host generation 0\r\n"
HIDDEN = SHOWN.replace("10.0.0.7", "9ca078c3-a334-4aba-9948-04307180de50.local")


def test_a_hidden_address_gets_the_one_beside_it_that_the_offer_came_from() -> None:
    seen = with_seen_address(f"v=0\r\n{HIDDEN}{SHOWN}", "192.0.2.1")
    assert seen == f"v=0\r\n{HIDDEN}{SHOWN.replace('10.0.0.7', '192.0.2.1')}{SHOWN}"


def test_an_offer_that_hides_nothing_stays_as_it_is() -> None:
    for offer in (SHOWN, HIDDEN.replace(" udp ", " tcp "), HIDDEN.replace(" host ", " relay "), ""):
        assert with_seen_address(offer, "192.0.2.1") == offer
    assert with_seen_address(HIDDEN, "") == HIDDEN
