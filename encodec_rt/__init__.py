"""EnCodec as a live codec: the offline model, and exact frame-by-frame streaming of it."""

from encodec_rt import errors
from encodec_rt.config import EncodecConfig
from encodec_rt.features import AutoProcessor, EncodecFeatureExtractor
from encodec_rt.model.encodec import EncodecModel
from encodec_rt.streaming.codec import Codec
from encodec_rt.streaming.engine import Engine
from encodec_rt.streaming.session import StreamDecoder, StreamEncoder
from encodec_rt.version import __version__

__all__ = [
    "AutoProcessor",
    "Codec",
    "EncodecConfig",
    "EncodecFeatureExtractor",
    "EncodecModel",
    "Engine",
    "StreamDecoder",
    "StreamEncoder",
    "__version__",
    "errors",
]
