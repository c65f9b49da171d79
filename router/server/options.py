"""How a server runs: one frozen value, checked before anything is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from router.errors import SettingsError
from router.state import When


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """
    Raises:
        SettingsError: a value that can't be, or an address that others can reach without an API key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    """Asked for as `Authorization: Bearer …`; none is when empty."""
    queue: int = 64
    """Questions waiting or being answered; the next one gets 429."""
    at_once: int = 8
    """Questions being answered, but for those that train; of these there are at most `queue`."""
    when: When = "background"
    """Where a request does not say; the model `ttt` waits."""
    drain_s: float = 30.0
    """After SIGTERM: seconds until trainings are ended, and answers that wait for them fall back."""
    body_limit: int = 4 * 2**20
    """Bytes of a request's body."""
    ping_s: float = 5.0
    """Seconds without content after which a stream gets a comment."""
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.api_key and not is_loopback(self.host):
            raise SettingsError(
                f"{self.host} can be reached from other machines, and there is no API key: give --api-key or "
                "TTT_ROUTER_API_KEY, or listen on 127.0.0.1."
            )
        for name in ("queue", "at_once", "body_limit", "ping_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.drain_s < 0 or not 0 <= self.port < 2**16:
            raise SettingsError(
                f"drain_s is {self.drain_s:g} and port {self.port}; neither may be out of range."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
