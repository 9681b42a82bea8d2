"""The options that both sides of a call have, and what they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_rt.cli.options import BufferOption, InputOption, OutputOption, RealTimeOption
from encodec_rt.errors import ConfigError

if TYPE_CHECKING:
    from encodec_rt.link.call import CallOptions
    from encodec_rt.sound.processing import VoiceProcessor

TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token, if not the usual one.")
]
PlayOption = Annotated[
    Path | None, typer.Option("--play", help="A sound file in place of the microphone.")
]
RecordOption = Annotated[
    Path | None, typer.Option("--record", help="Record what is received, in place of the speaker.")
]
SaveOption = Annotated[
    Path | None,
    typer.Option("--save", help="Record the codes of what is heard.", metavar="OUT.encodec"),
]
SaveSentOption = Annotated[
    Path | None,
    typer.Option("--save-sent", help="Record the codes of what is said.", metavar="OUT.encodec"),
]
EchoOption = Annotated[
    bool,
    typer.Option("--echo-cancel/--no-echo-cancel", help="Remove the speaker from the microphone."),
]
NoiseOption = Annotated[
    bool,
    typer.Option("--noise-suppression/--no-noise-suppression", help="Reduce steady noise."),
]
GainOption = Annotated[
    bool, typer.Option("--gain-control/--no-gain-control", help="Keep the voice at a steady level.")
]
DtxOption = Annotated[bool, typer.Option("--dtx/--no-dtx", help="Send nothing during silence.")]
RedundancyOption = Annotated[
    bool, typer.Option("--redundancy/--no-redundancy", help="Send coarse copies of earlier frames.")
]
IceOption = Annotated[
    list[str] | None,
    typer.Option("--ice-server", help="HOST:PORT, or a stun: or turn: URL; none by default."),
]
ReconnectOption = Annotated[
    float,
    typer.Option(
        "--reconnect",
        help="How long to redial when the line is dead; 0: hang up.",
        metavar="SECONDS",
        min=0.0,
        max=3600.0,
    ),
]
StatsOption = Annotated[
    Path | None, typer.Option("--stats-json", help="Write statistics when the call ends.")
]


@dataclass(frozen=True)
class LinkOptions:
    """The options of either side of a call."""

    play: PlayOption = None
    record: RecordOption = None
    save: SaveOption = None
    save_sent: SaveSentOption = None
    source: InputOption = None
    sink: OutputOption = None
    buffer_ms: BufferOption = 40.0
    echo_cancel: EchoOption = False
    noise_suppression: NoiseOption = False
    gain_control: GainOption = False
    dtx: DtxOption = True
    redundancy: RedundancyOption = True
    real_time: RealTimeOption = False
    ice_server: IceOption = None
    reconnect: ReconnectOption = 30.0
    stats_json: StatsOption = None
    token_file: TokenOption = None

    def for_call(
        self, bandwidth_kbps: float, *, hang_up_s: float | None = None, channel: bool = False
    ) -> CallOptions:
        """The call's own options. Raises ConfigError for an invalid ICE server."""
        from encodec_rt.link.call import CallOptions
        from encodec_rt.link.ice import parse_ice_server

        servers = tuple(self.ice_server or ())
        for server in servers:
            parse_ice_server(server)
        return CallOptions(
            bandwidth_kbps,
            self.redundancy,
            self.dtx,
            hang_up_s,
            ice_servers=servers,
            reconnect_s=self.reconnect,
            channel=channel,
            real_time=self.real_time,
        )

    def voice(self, rate_hz: int) -> VoiceProcessor | None:
        """The processing of the microphone's sound, or None.

        Raises ConfigError if a file replaces a device that it needs.
        """
        if not (self.echo_cancel or self.noise_suppression or self.gain_control):
            return None
        from encodec_rt.sound.processing import VoiceProcessor

        if self.play is not None:
            raise ConfigError(
                "--play replaces the microphone, so there is no voice to process; leave out --play "
                "or the processing"
            )
        if self.record is not None and self.echo_cancel:
            raise ConfigError(
                "--record replaces the speaker, so there is no echo to cancel; leave out --record "
                "or --echo-cancel"
            )
        return VoiceProcessor(
            rate_hz,
            echo=self.echo_cancel,
            noise=self.noise_suppression,
            gain=self.gain_control,
        )

    def token(self, *, needed: bool) -> str | None:
        """The token, or None if it is not needed and no file was given."""
        from encodec_rt.link import credentials

        if self.token_file is None and not needed:
            return None
        return credentials.read_token(self.token_file or credentials.state_folder() / "link-token")
