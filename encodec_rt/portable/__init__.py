"""The codec without torch: the WebAssembly codec in wasmtime, for small machines.

Needs numpy and wasmtime (``encodec-rt[portable]``) and a file that ``encodec-rt export web`` wrote.
"""

from encodec_rt.portable.snapshot import PortableSnapshot
from encodec_rt.portable.streams import PortableCodec, PortableDecoder, PortableEncoder

__all__ = ["PortableCodec", "PortableDecoder", "PortableEncoder", "PortableSnapshot"]
