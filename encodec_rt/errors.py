"""Every error that encodec_rt raises on purpose.

Each class also derives from the built-in class that a caller would expect, so that
``except ValueError`` keeps working for those who do not know this package.
"""


class CodecError(Exception):
    """The base of all errors that encodec_rt raises on purpose."""


class ConfigError(CodecError, ValueError):
    """A configuration or an argument is invalid."""


class WeightsError(CodecError, ValueError):
    """A checkpoint is missing, damaged, or does not fit its configuration."""


class InputError(CodecError, ValueError):
    """Audio or codes have the wrong shape, type, rate or values."""


class StateError(CodecError, RuntimeError):
    """A call that the stream's state does not allow, such as a push after a flush."""


class PacketError(CodecError, ValueError):
    """Bytes from a file or a network that are not a valid packet or stream."""


class BackendUnavailable(CodecError, RuntimeError):
    """The backend that was asked for cannot run here."""


class AudioDeviceError(CodecError, OSError):
    """A sound card is missing, lost, or refuses the wanted format."""


class LinkError(CodecError, ConnectionError):
    """A voice link could not be set up, or was refused or lost."""
