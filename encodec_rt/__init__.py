"""EnCodec for live audio: the offline model, and exact frame-by-frame streaming with it."""

from importlib import import_module
from typing import TYPE_CHECKING

from encodec_rt import errors
from encodec_rt.version import __version__

if TYPE_CHECKING:
    from encodec_rt.config import EncodecConfig
    from encodec_rt.features import AutoProcessor, EncodecFeatureExtractor
    from encodec_rt.model.encodec import EncodecModel
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.streaming.engine import Engine, EngineInfo
    from encodec_rt.streaming.segments import Segment, SegmentDecoder, SegmentEncoder
    from encodec_rt.streaming.snapshot import Snapshot
    from encodec_rt.streaming.streams import StreamDecoder, StreamEncoder

__all__ = [
    "AutoProcessor",
    "Codec",
    "EncodecConfig",
    "EncodecFeatureExtractor",
    "EncodecModel",
    "Engine",
    "EngineInfo",
    "Segment",
    "SegmentDecoder",
    "SegmentEncoder",
    "Snapshot",
    "StreamDecoder",
    "StreamEncoder",
    "__version__",
    "errors",
]

_HOMES = {
    "AutoProcessor": "encodec_rt.features",
    "Codec": "encodec_rt.streaming.codec",
    "EncodecConfig": "encodec_rt.config",
    "EncodecFeatureExtractor": "encodec_rt.features",
    "EncodecModel": "encodec_rt.model.encodec",
    "Engine": "encodec_rt.streaming.engine",
    "EngineInfo": "encodec_rt.streaming.engine",
    "Segment": "encodec_rt.streaming.segments",
    "SegmentDecoder": "encodec_rt.streaming.segments",
    "SegmentEncoder": "encodec_rt.streaming.segments",
    "Snapshot": "encodec_rt.streaming.snapshot",
    "StreamDecoder": "encodec_rt.streaming.streams",
    "StreamEncoder": "encodec_rt.streaming.streams",
}


def __getattr__(name: str) -> object:
    """A public name, imported on first use.

    torch takes seconds to import, and neither the command line's help nor a reader of packets needs
    it.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
