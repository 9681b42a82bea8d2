"""The Debian packages that hold the training audio.

Every package is pinned to a version and a SHA-256, so that everyone who fetches it trains on the
same audio. The licences are those in each package's own ``debian/copyright``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from encodec_rt.errors import ConfigError

Kind = Literal["speech", "music", "noise"]


@dataclass(frozen=True, slots=True)
class Source:
    """One source of audio: a pinned Debian package or part of one, or a folder of the user's own.

    ``package`` is the Debian package if its name is not ``name``: a package may contain sources of
    several kinds. ``files`` and ``speaker`` are regular expressions that are searched for in paths:
    the files to take match ``files``, and the first group of ``speaker`` is the voice's name. Never
    trained on are the voices ``held_out_speakers`` (as from ``speaker_of``) and the files whose
    paths end in one of ``held_out_files``.
    """

    name: str
    kind: Kind
    licence: str
    authors: str
    version: str = ""
    sha256: str = ""
    package: str = ""
    files: str = ""
    speaker: str = ""
    held_out_speakers: tuple[str, ...] = ()
    held_out_files: tuple[str, ...] = ()

    @property
    def archive(self) -> str:
        """The name of the Debian package and of the folder that it is unpacked to."""
        return self.package or self.name

    def speaker_of(self, path: str) -> str:
        """The voice that ``path`` belongs to: ``source`` or ``source/voice``."""
        match = re.search(self.speaker, path) if self.speaker else None
        return f"{self.name}/{match.group(1)}" if match and match.group(1) else self.name


PACKAGES: tuple[Source, ...] = (
    Source(
        "tuxpaint-stamps-default",
        "speech",
        "GPL-2.0-or-later",
        "the Tux Paint project and its voice contributors",
        version="2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        files=r"_desc(_\w+)?(\.ogg)?\.ogg$",
        speaker=r"_desc_(\w+?)(\.ogg)?\.ogg$",
        held_out_speakers=("tuxpaint-stamps-default/da",),
    ),
    Source(
        "fillets-ng-data-cs",
        "speech",
        "GPL-2.0-only",
        "ALTAR interactive",
        version="1.0.1-1.1",
        sha256="3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
        files=r"/cs/[^/]*\.ogg$",
        speaker=r"-(m|v)-[^/]*\.ogg$",
    ),
    Source(
        "fillets-ng-data-nl",
        "speech",
        "GPL-2.0-only",
        "ALTAR interactive and the Dutch voice contributors",
        version="1.0.1-1.1",
        sha256="afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
        files=r"/nl/[^/]*\.ogg$",
        speaker=r"-(m|v)-[^/]*\.ogg$",
    ),
    Source(
        "festvox-ru",
        "speech",
        "BSD-like",
        "Nickolay V. Shmyrev",
        version="0.5+dfsg-6",
        sha256="21ef3f0f2978ecf2e2eddb367cb0ff4a72572196d28dc69feb84f4177af5e6c4",
        files=r"/wav/[^/]*\.wav$",
    ),
    Source(
        "asterisk-core-sounds-en-g722",
        "speech",
        "CC-BY-SA-3.0",
        "Allison Smith",
        version="1.6.1-1",
        sha256="38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
        files=r"\.g722$",
        held_out_files=("en_US_f_Allison/vm-review.g722",),
    ),
    Source(
        "asterisk-core-sounds-es-g722",
        "speech",
        "CC-BY-SA-3.0",
        "Allison Smith",
        version="1.6.1-1",
        sha256="e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
        files=r"\.g722$",
    ),
    Source(
        "asterisk-core-sounds-fr-g722",
        "speech",
        "CC-BY-SA-3.0",
        "June Wallack",
        version="1.6.1-1",
        sha256="7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
        files=r"\.g722$",
    ),
    Source(
        "asterisk-core-sounds-ru-g722",
        "speech",
        "CC-BY-3.0",
        "Maxim Topal (provider)",
        version="1.6.1-1",
        sha256="673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
        files=r"\.g722$",
    ),
    Source(
        "asterisk-core-sounds-it-g722",
        "speech",
        "CC-BY-3.0",
        "Carlo Flora",
        version="1.6.1-1",
        sha256="46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
        files=r"\.g722$",
        held_out_speakers=("asterisk-core-sounds-it-g722",),
    ),
    Source(
        "klettres-data",
        "speech",
        "GPL-2.0-or-later",
        "the KLettres project and its voice contributors",
        version="4:22.12.3-1",
        sha256="1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
        files=r"\.(ogg|wav)$",
        speaker=r"/klettres/([^/]+)/",
    ),
    Source(
        "ktuberling-data",
        "speech",
        "GPL-2.0-or-later",
        "the KTuberling project and its voice contributors",
        version="4:22.12.3-1",
        sha256="fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed",
        files=r"\.(ogg|wav|opus)$",
        speaker=r"/sounds/([^/]+)/",
    ),
    Source(
        "warzone2100-music",
        "music",
        "GPL-2.0-or-later",
        "the Warzone 2100 Project",
        version="4.3.3-3",
        sha256="d3b2c9f90ea5438d45d4aff18339a03ec808e1affa9dac91f7dad61cb15ee64e",
        files=r"\.(opus|ogg)$",
    ),
    Source(
        "wesnoth-1.16-music",
        "music",
        "GPL-2.0-or-later",
        "the Battle for Wesnoth project's composers",
        version="1:1.16.9-1",
        sha256="f9bc3cde92b4ab30db5d7b85f89b4bcc3d788dd92602956d0347250850bf59bb",
        files=r"\.ogg$",
    ),
    Source(
        "singularity-music",
        "music",
        "CC-BY-SA-3.0",
        "Max McCracken",
        version="007-2",
        sha256="139ba1e408eeb0a72f1fff3760ca46558b9f81bed97dc8c0efa108c4007f4845",
        files=r"\.ogg$",
    ),
    Source(
        "fretsonfire-songs-sectoid",
        "music",
        "MIT",
        "Carlos Viola Iborra",
        version="1.dfsg-3.1",
        sha256="14c1ed3e43c1a6a80eae7698f0469a0825cd1184e441968d62df89ca418aa0b4",
        files=r"\.ogg$",
    ),
    Source(
        "qabcs-data",
        "speech",
        "GPL-3.0-or-later",
        "DanSoft and the qABCs project",
        version="1.0.2-6",
        sha256="3484da4cf258e6f3a39a1fc99bbfcaddfd679cff96a8fa792f261ab0a2bf9d86",
        files=r"/sounds/(alpha|words)/[^/]*\.(ogg|wav|mp3)$",
        speaker=r"/abcs/(\w+)/sounds/",
    ),
    Source(
        "qabcs-noises",
        "noise",
        "GPL-3.0-or-later",
        "DanSoft and the qABCs project",
        version="1.0.2-6",
        sha256="3484da4cf258e6f3a39a1fc99bbfcaddfd679cff96a8fa792f261ab0a2bf9d86",
        package="qabcs-data",
        files=r"/abcs/all/noises/[^/]*\.(ogg|wav|mp3)$",
    ),
    Source(
        "gcin-voice",
        "speech",
        "GPL-3.0 or LGPL-3.0, and CC-BY-3.0",
        "Edward Der-Hua Liu; ChionMeilin with the voice of Chu Lo",
        version="0~20170223-3",
        sha256="6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
        files=r"/[35]\.ogg$",
        speaker=r"/([35])\.ogg$",
    ),
    Source(
        "fretsonfire-songs-muldjord",
        "music",
        "CC-BY-SA-3.0",
        "El Senator of Muldjord",
        version="2.dfsg-2.1",
        sha256="b37adf8b08b46d4182c283e760e4f40622d83674e05803960ea1e11a92600c7b",
        files=r"\.ogg$",
    ),
    Source(
        "colobot-music",
        "music",
        "GPL-3.0-or-later",
        "EPSITEC SA and TerranovaTeam",
        version="0.2.0-2",
        sha256="819e799542eac69c95b072567b5584eb3e0b2bb900de13efa3684915747b1644",
        package="colobot-common-sounds",
        files=r"/music/[^/]*\.ogg$",
    ),
    Source(
        "colobot-sounds",
        "noise",
        "GPL-3.0-or-later",
        "EPSITEC SA and TerranovaTeam",
        version="0.2.0-2",
        sha256="819e799542eac69c95b072567b5584eb3e0b2bb900de13efa3684915747b1644",
        package="colobot-common-sounds",
        files=r"/sounds/[^/]*\.(ogg|wav)$",
    ),
    Source(
        "sonic-pi-samples",
        "noise",
        "MIT and CC0-1.0",
        "Samuel Aaron and the recordists named in its copyright file",
        version="3.2.2~repack-8",
        sha256="25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d",
        files=r"/(ambi_|vinyl_hiss|loop_3d_printer|perc_door|perc_till|misc_)[^/]*\.flac$",
    ),
)


def by_name(names: Iterable[str]) -> tuple[Source, ...]:
    """The sources with these names, in this order; raises ConfigError for an unknown one."""
    table = {source.name: source for source in PACKAGES}
    wanted = list(names)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        raise ConfigError(
            f"no training package is called {', '.join(unknown)}; known: {', '.join(table)}"
        )
    return tuple(table[name] for name in wanted)
