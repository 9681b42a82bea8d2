"""Recordings of codes for 'live --save' and 'link --save', in the format of their suffix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from encodec_rt.cli.console import model_folder
from encodec_rt.errors import ConfigError, InputError

if TYPE_CHECKING:
    from encodec_rt.bitstream.coding import CodeCoder
    from encodec_rt.cli.link_options import LinkOptions
    from encodec_rt.cli.options import FileCodecOptions
    from encodec_rt.live.recording import ContainerRecording, EcdcRecording
    from encodec_rt.streaming.codec import Codec
    from encodec_rt.voice.recording import CallRecording


class CodesRecorder:
    """Opens recordings; their coder is loaded once, for the first one."""

    def __init__(self, codec: Codec, codebooks: int, options: FileCodecOptions) -> None:
        from encodec_rt.container_audio import header_for

        self._codec, self._codebooks, self._options = codec, codebooks, options
        self._header = header_for(codec, codebooks, start="primed")

    @cached_property
    def _coder(self) -> CodeCoder:
        from encodec_rt.container_audio import coder_of

        return coder_of(self._header, model_folder(self._options.model))

    def open(self, path: Path) -> ContainerRecording | EcdcRecording:
        """A recording for ``path``. Raises InputError if it cannot be created there."""
        from encodec_rt.live.recording import ContainerRecording, EcdcRecording

        codec, force = self._codec, self._options.force
        if path.suffix.lower() == ".ecdc":
            return EcdcRecording(path, codec.config, codec.name, self._codebooks, force=force)
        if path.suffix.lower() != ".encodec":
            raise InputError(f"{path}: the name of this recording must end in .encodec or .ecdc")
        fields = [("MODEL", codec.name)]
        coder = self._coder.fresh()
        return ContainerRecording(path, self._header, coder, fields=fields, force=force)


class CallRecorder:
    """Opens the recordings of each call that ``--save`` and ``--save-sent`` ask for."""

    def __init__(self, codec: Codec, options: FileCodecOptions, link: LinkOptions) -> None:
        """Raises InputError and ConfigError for impossible names."""
        from encodec_rt.voice.recording import StandIns

        if link.save is not None and link.save == link.save_sent:
            raise ConfigError(f"--save and --save-sent are both {link.save}; give two files")
        self._paths = link.save, link.save_sent
        books = codec.config.codebooks_for(options.bandwidth)
        self._recorder = CodesRecorder(codec, books, options)
        self._stand_ins = StandIns.of(codec, options.bandwidth)
        self._open(1)

    def paths(self, call: int) -> list[Path]:
        """Where the recordings of the call of that number are to be."""
        return [numbered(path, call) for path in self._paths if path is not None]

    def open(self, call: int, on_error: Callable[[str], None]) -> CallRecording:
        """The recordings of a call. Raises InputError if they cannot be created."""
        from encodec_rt.voice.recording import CallRecording

        heard, said = self._open(call)
        return CallRecording(self._stand_ins, heard=heard, said=said, on_error=on_error)

    def _open(self, call: int) -> list[ContainerRecording | EcdcRecording | None]:
        return [
            None if path is None else self._recorder.open(numbered(path, call))
            for path in self._paths
        ]


def recorder_for(codec: Codec, options: FileCodecOptions, link: LinkOptions) -> CallRecorder | None:
    """The recorder of the codes of calls, or None if not requested."""
    asked = link.save is not None or link.save_sent is not None
    return CallRecorder(codec, options, link) if asked else None


def numbered(path: Path, call: int) -> Path:
    """``path`` for the first call; a later one must not replace its recording."""
    return path if call == 1 else path.with_name(f"{path.stem}-{call}{path.suffix}")
