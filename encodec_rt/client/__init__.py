"""A client of ``encodec-rt serve``."""

from encodec_rt.client.opening import Dropped, ServedFrame
from encodec_rt.client.stream import StreamClient

__all__ = ["Dropped", "ServedFrame", "StreamClient"]
