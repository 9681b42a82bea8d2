"""A client of ``encodec-rt serve``."""

from encodec_rt.client.stream import Dropped, ServedFrame, StreamClient

__all__ = ["Dropped", "ServedFrame", "StreamClient"]
