"""Counts that are not whole numbers are refused by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from encodec_rt.bitstream.ecdc import EcdcWriter
from encodec_rt.bitstream.packet import Packet, encode_packet
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import InputError


@pytest.mark.parametrize("bits", [None, "10", 10.0, 0, 17])
def test_bits_that_are_not_a_count_are_refused(bits: Any) -> None:
    with pytest.raises(InputError, match="bits per code; from 1 to 16"):
        encode_packet(Packet(np.zeros((1, 8), np.uint16)), bits=bits)


@pytest.mark.parametrize("count", [None, "8", 2.5, 0])
def test_codebooks_that_are_not_a_count_are_refused(count: Any) -> None:
    with pytest.raises(InputError, match="codebooks; the model has 1 to 32"):
        EcdcWriter(EncodecConfig(), "encodec_24khz", count)


@pytest.mark.parametrize("samples", [None, "320", 320.0])
def test_a_length_that_is_not_a_number_of_samples_is_refused(samples: Any) -> None:
    with EcdcWriter(EncodecConfig(), "encodec_24khz", 8) as writer:
        writer.write(np.zeros((1, 8), np.uint16))
        with pytest.raises(InputError, match=f"samples={samples!r}"):
            writer.finish(io.BytesIO(), samples)
