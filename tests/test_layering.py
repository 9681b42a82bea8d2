"""Imports point one way, and what a machine may lack is imported where it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"concealment", "errors", "native_output", "suffixes", "types", "version"},
    {"arrays", "atomic", "extras", "pcm"},
    {"pretrained", "config_base", "batch", "ray_cluster"},
    {"config"},
    {"features", "model", "weights"},
    {"streaming"},
    {"audio"},
    {"bitstream", "portable"},
    {"export", "lm"},
    {"quality", "transcode"},
    {"container_audio"},
    {"corpus", "sound", "voice", "training"},
    {"live", "netsim"},
    {"link"},
    {"web"},
    {"server"},
    {"client", "agents"},
    {"cli"},
    {"__main__"},
)
INSIDE: dict[str, tuple[set[str], ...]] = {
    "model": (
        {"identity", "numerics", "outputs", "tensor_files"},
        {"checkpoint", "conv", "lstm", "quantizer"},
        {"pretrained_model", "seanet"},
        {"encodec"},
    ),
    "streaming": (
        {"arrays", "backends.cpu.hugepages", "plan", "snapshot"},
        {"ops", "state", "slot_snapshot"},
        {"backends.torch", "backends.cpu.replay", "clip_bounds", "cuda_graph"},
        {"backends.cpu.weights"},
        {"backends.cpu.conv"},
        {"backends.cpu.ops", "backends.triton"},
        {"backends.select", "steps"},
        {"runner"},
        {"weights"},
        {"engine_work", "stream_base"},
        {"clip_batch", "engine_edges", "slot_steps", "streams"},
        {"slot_engine"},
        {"engine"},
        {"segments", "frames"},
        {"codec"},
    ),
    "voice": (
        {"activity", "bitrate", "delay", "statistics", "token_bucket"},
        {"conceal", "jitter", "packetizer", "recording"},
        {"receiver", "sender", "transport"},
        {"line"},
        {"call"},
    ),
    "sound": (
        {"chirp", "devices", "fifo", "meter", "realtime"},
        {"streams", "processing"},
        {"drift", "playback", "portaudio", "supervision"},
    ),
    "live": ({"mouth_to_ear", "recording"}, {"loop"}, {"duplex"}),
    "netsim": ({"impairment"}, {"netns", "simulate", "transport"}),
    "agents": ({"coder"}, {"pipecat", "livekit"}),
    "client": ({"flow", "opening", "sent"}, {"connector"}, {"stream"}, {"load"}),
    "server": (
        {"access", "capacity", "cross_origin", "limits", "logs", "metrics", "protocol"},
        {"queues", "ring"},
        {"host", "records", "slot_stream"},
        {"session_state", "stepper", "connection", "call_stream", "ring_link"},
        {"engine_loop", "store", "front_clients", "remote_host"},
        {"sessions", "websockets"},
        {"call", "http_service"},
        {"service", "front"},
        {"front_process"},
        {"fronts"},
        {"settings"},
        {"worker"},
        {"cluster", "placer"},
    ),
    "link": (
        {"admission", "bandwidth", "credentials", "datagrams", "endpoints", "ice", "sdp"},
        {"device_endpoints", "hardening", "listening", "peer_transport", "rtp_session", "whip"},
        {"rtp", "signalling"},
        {"channel_transport", "device_pair", "dialling", "rtp_transport"},
        {"transports"},
        {"call"},
        {"redial"},
    ),
}
"""The order inside a room; a module imports from the levels before its own."""
FILES = sorted((ROOT / "encodec_rt").rglob("*.py"))
GLUE = {ROOT / "encodec_rt/agents/pipecat.py", ROOT / "encodec_rt/agents/livekit.py"}
"""Imported by who has those frameworks, and by nothing else here."""
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


def imports(path: Path, *, at_top_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, those inside functions included unless told otherwise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = str(node.module)
            yield module
            if module == "encodec_rt" or (ROOT / module.replace(".", "/")).is_dir():
                yield from (f"{module}.{name.name}" for name in node.names)


def rank(layers: tuple[set[str], ...], name: str) -> int:
    (found,) = [index for index, layer in enumerate(layers) if name in layer] or [-1]
    assert found >= 0, f"{name} has no layer: add it where its imports point down"
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT / "encodec_rt").with_suffix("").parts
    if parts == ("__init__",):
        return
    for module in imports(path):
        package, *rest = module.split(".")
        if package != "encodec_rt" or not rest:
            continue
        own, other = rank(LAYERS, parts[0]), rank(LAYERS, rest[0])
        assert other <= own, f"{path.name} imports {module}, which lies above it"
        assert rest[0] == parts[0] or other < own, f"{path.name} imports {module} beside it"
        order = INSIDE.get(parts[0])
        if parts[0] == rest[0] and order and len(rest) > 1 and parts[-1] != "__init__":
            own, other = (rank(order, ".".join(names)) for names in (parts[1:], rest[1:]))
            assert other < own, f"{path.name} imports {module}, which lies above or beside it"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_know_nothing_of_the_codec(path: Path) -> None:
    for module in imports(path):
        assert module.split(".")[0] != "encodec_rt"


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("encodec_rt_kernels", "streaming/backends/triton.py"),
        ("sounddevice", "sound/devices.py"),
        ("livekit", "sound/processing.py"),
    ],
)
def test_optional_module_is_imported_in_one_file_inside_a_function(module: str, only: str) -> None:
    for path in FILES:
        if path in GLUE:
            continue
        if module in {name.split(".")[0] for name in imports(path)}:
            assert path == ROOT / "encodec_rt" / only
        assert module not in {name.split(".")[0] for name in imports(path, at_top_only=True)}


def test_array_types_have_their_names_in_one_file() -> None:
    def named(path: Path) -> set[str]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        values = [ast.unparse(node.value) for node in body if isinstance(node, ast.Assign)]
        return {value.removeprefix("npt.") for value in values if "NDArray[" in value}

    types = ROOT / "encodec_rt/types.py"
    assert len(named(types)) == 3
    twice = {str(path): named(path) & named(types) for path in FILES if path != types}
    assert {path: names for path, names in twice.items() if names} == {}


@pytest.mark.parametrize("name", ["codec", "frames", "runner", "steps", "stream_base", "streams"])
def test_streams_leave_the_kind_of_device_to_their_backend(name: str) -> None:
    text = (ROOT / f"encodec_rt/streaming/{name}.py").read_text(encoding="utf-8")
    assert [word for word in ("device.type", "is_cuda", "torch.cuda") if word in text] == []


def test_importing_the_package_loads_nothing_it_may_not_need() -> None:
    heavy = ["sounddevice", "aiortc", "aiohttp", "matplotlib", "transformers", "typer", "av"]
    heavy += ["encodec_rt_kernels", "soundfile", "samplerate", "huggingface_hub", "torch"]
    code = f"import encodec_rt, sys; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        "encodec_rt.cli, encodec_rt.bitstream.packet, encodec_rt.bitstream.ecdc",
        "encodec_rt.server.front",
        "encodec_rt.portable",
    ],
    ids=["help and files of codes", "a front", "the portable codec"],
)
def test_no_torch_is_needed_for(modules: str) -> None:
    code = (
        f"import {modules}, sys; "
        "print([name for name in ('torch', 'soundfile', 'matplotlib') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "[]"
