"""What both directions of a stream share: one slot, snapshots, and all-or-nothing pushes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from encodec_rt.arrays import is_count
from encodec_rt.config import EncodecConfig
from encodec_rt.errors import ConfigError, StateError
from encodec_rt.model.numerics import no_autocast
from encodec_rt.streaming.ops import Step
from encodec_rt.streaming.runner import Runner
from encodec_rt.streaming.snapshot import Kind, Origin, Snapshot
from encodec_rt.streaming.weights import CodecWeights, Start, check_weights

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="OpenOrClosed")
S = TypeVar("S", bound="Stream")


def whole(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Make a method of an open stream take effect entirely or not at all, even if interrupted.

    It computes without gradients, and in float32 whatever autocast the program has set.
    """

    @wraps(method)
    def call(stream: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if stream.closed:
            raise StateError("this stream was flushed; open a new one")
        before = stream._save()
        try:
            with torch.inference_mode(), no_autocast(stream.device):
                return method(stream, *args, **kwargs)
        except BaseException:
            stream._load(before)
            raise

    return call


class OpenOrClosed:
    """What every stream is, and what ``whole`` needs of it."""

    closed: bool
    device: torch.device

    def __enter__(self: C) -> C:
        """Self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the stream; anything not flushed is dropped."""
        self.closed = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{self._about()}, {'closed' if self.closed else 'open'}>"

    def _about(self) -> str:
        raise AssertionError("each kind of stream has its own")

    def _save(self) -> Any:
        raise AssertionError("each kind of stream has its own")

    def _load(self, held: Any) -> None:
        raise AssertionError("each kind of stream has its own")


class Stream(OpenOrClosed):
    """What both directions share: a single slot."""

    kind: Kind
    _HELD: tuple[str, ...]
    """The attributes that change from push to push, besides the runner's state."""

    def __init__(
        self,
        weights: CodecWeights,
        codebooks: int,
        start: Start,
        block_frames: int,
        graph: bool | None,
    ) -> None:
        check_weights(weights, f"Codec.stream_{self.kind}")
        if not (is_count(codebooks) and codebooks <= weights.config.num_quantizers):
            raise ConfigError(
                f"codebooks={codebooks!r}; this model has 1 to {weights.config.num_quantizers}"
            )
        if not is_count(block_frames):
            raise ConfigError(f"block_frames={block_frames}; a block has at least one frame")
        self.codebooks = codebooks
        self.device = weights.device
        self.config: EncodecConfig = weights.config
        self.block_frames = block_frames
        self.closed = False
        self._weights, self._graph = weights, graph
        self._origin = Origin(self.kind, start, codebooks, weights.sha256)
        layers = weights.encoder if self.kind == "encoder" else weights.decoder
        self.runner = Runner(layers, 1, weights.device)
        self.runner.now.load_(0, weights.start_state(start, codebooks)[self.kind == "decoder"])
        self._backup = self.runner.now.row(0)
        self._step = self._capture()

    @property
    def eager_because(self) -> str | None:
        """None if a block of frames is one CUDA graph, else why it is not."""
        return self._step.eager_because

    def snapshot(self) -> Snapshot:
        """A copy of the stream's whole state."""
        held = {name: getattr(self, name) for name in ("closed", *self._HELD)}
        return Snapshot(self.runner.now.row(0), held, self._origin)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``, bit for bit.

        Raises StateError if it is of another model, direction, start policy or bandwidth.
        """
        if not isinstance(snapshot, Snapshot):
            raise StateError(
                f"a {type(snapshot).__name__} is not a stream's state; pass what snapshot() gave"
            )
        self._origin.check(snapshot.origin)
        with torch.inference_mode():
            self.runner.now.load_(0, snapshot.row)
        for name, value in snapshot.fields.items():
            setattr(self, name, value)

    def __deepcopy__(self: S, memo: dict[int, Any]) -> S:
        """An independent stream that continues, bit for bit, as this one does."""
        other = type(self)(
            self._weights,
            self.codebooks,
            start=self._origin.start,  # type: ignore[arg-type]
            block_frames=self.block_frames,
            graph=self._graph,
        )
        other.restore(self.snapshot())
        return other

    def __copy__(self: S) -> S:
        """As ``copy.deepcopy``: two streams never share a state."""
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        """Refused: a stream belongs to its codec; pickle its snapshot instead."""
        raise StateError(
            f"a {type(self).__name__} cannot be pickled; pickle its snapshot() and restore it "
            "into a stream of the same codec"
        )

    def _about(self) -> str:
        return f" of {self.codebooks} codebooks, start={self._origin.start!r}, {self._progress()}"

    def _progress(self) -> str:
        raise AssertionError("each direction has its own")

    def _capture(self) -> Step:
        raise AssertionError("each direction has its own")

    def _save(self) -> tuple[object, ...]:
        with torch.inference_mode():
            self._backup.copy_(self.runner.now.arena[0])
        return self.closed, *(getattr(self, name) for name in self._HELD)

    def _load(self, held: tuple[object, ...]) -> None:
        with torch.inference_mode():
            self.runner.now.load_(0, self._backup)
        for name, value in zip(("closed", *self._HELD), held, strict=True):
            setattr(self, name, value)
