"""Audio files and pipes as blocks of float32 at a model's rate and channels, and back."""

from encodec_rt.audio.pcm import RAW_FORMATS, RAW_OUTPUT_FORMATS, RawFormat
from encodec_rt.audio.reader import AudioReader, mix
from encodec_rt.audio.recording import AudioRecording
from encodec_rt.audio.source import PIPE
from encodec_rt.audio.writer import KEPT_TAGS, OUTPUT_FORMATS, AudioWriter, check_target_format

__all__ = [
    "KEPT_TAGS",
    "OUTPUT_FORMATS",
    "PIPE",
    "RAW_FORMATS",
    "RAW_OUTPUT_FORMATS",
    "AudioReader",
    "AudioRecording",
    "AudioWriter",
    "RawFormat",
    "check_target_format",
    "mix",
]
