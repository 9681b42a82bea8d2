"""A Ray cluster to work on: an existing one, or a private one on this machine."""

from __future__ import annotations

import os
import secrets
from typing import Any

from encodec_rt.errors import BackendUnavailable
from encodec_rt.extras import needed_for

LOCAL = "local"
_OBJECT_STORE_BYTES = 100 * 2**20


def start_ray(address: str, feature: str, *, niceness: int = 15, loopback: bool = True) -> Any:
    """The ``ray`` module, connected to the cluster at ``address``.

    "local" starts one on this machine that requires a token, with workers of that ``niceness``; by
    Ray's default they yield to all other programs. It listens on the loopback interface; with
    ``loopback`` False the node has the machine's address, which others can reach, and so do Ray's
    own ports. Ray reads that while it is first imported. Raises BackendUnavailable without Ray, or
    without a cluster at the address.
    """
    # Ray reads these while it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == LOCAL:
        _make_token()
        if loopback:
            # Without it Ray uses the machine's address even if loopback is asked for; except on
            # Linux, this is its default.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_worker_niceness", str(niceness))
    with needed_for(feature):
        import ray
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        settings |= {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "num_cpus": len(os.sched_getaffinity(0)),
            "_node_ip_address": "127.0.0.1",
        }
    else:
        settings["address"] = address
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}; "
            f"give its address, or '{LOCAL}' for one on this machine"
        ) from error
    return ray


def _make_token() -> None:
    """A token for the new cluster that only this user can read, unless one is set up already."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
