"""The channels of the alert configuration: read by Apprise, which knows how to reach each.

A channel's URL holds its secrets, so nothing of it is ever shown or kept. A channel is called by its service, its tags
and a digest, and Apprise's own log, which quotes URLs, is shut.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow_deploy_plugin.errors import InvalidConfig

_SECONDS = 20.0


@dataclass(frozen=True)
class ChannelMessage:
    """A message to a channel, as plain text."""

    title: str
    body: str
    kind: Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Channel:
    """One entry of the configuration.

    Attributes:
        id: the same for the same URL, and nothing of it can be told from it.
        name: for people: service, tags, and the beginning of the id.
    """

    id: str
    name: str
    tags: frozenset[str]
    _service: Any = field(repr=False, compare=False)

    def takes(self, tags: Sequence[str]) -> bool:
        """Return True if the channel gets alerts with these tags; without tags every channel does."""
        return not tags or bool(self.tags & {*tags}) or "always" in self.tags

    def send(self, message: ChannelMessage) -> bool:
        """Return True if the service took the message within seconds. Raise nothing."""
        import apprise  # here: a third of a second, where somebody is to be told

        _shut_log()
        one = apprise.Apprise(asset=_asset())
        one.add(self._service)
        try:
            sent = one.notify(
                body=message.body,
                title=message.title,
                notify_type=message.kind,
                body_format="text",  # so that names and values are no markup where a channel takes HTML
                timeout=_SECONDS,
            )
        except Exception:  # noqa: BLE001 - a plugin's failure quotes its URL, so nothing of it is passed on
            return False
        return bool(sent)


def read_channels(path: Path) -> list[Channel]:
    """Return the channels of a file in one of Apprise's formats, YAML or text.

    Raises:
        InvalidConfig: it cannot be read, or holds no channel; the message quotes nothing of it.
    """
    import apprise

    _shut_log()
    if not os.path.isfile(path):  # it says no, too, if the folder cannot be read
        raise InvalidConfig(f"ONNXSERVE_ALERT_CONFIG: there is no file {path}")
    try:
        config, found = apprise.AppriseConfig(asset=_asset()), apprise.Apprise(asset=_asset())
        is_read = config.add(str(path))
        found.add(config)
        services = list(found.find())
    except Exception as error:  # noqa: BLE001 - as above
        raise InvalidConfig(f"ONNXSERVE_ALERT_CONFIG: {path} cannot be read: {type(error).__name__}") from None
    if not is_read or not services:
        raise InvalidConfig(f"ONNXSERVE_ALERT_CONFIG: {path} names no channel that Apprise knows")
    channels = [_channel(service) for service in services]
    return list({channel.id: channel for channel in channels}.values())


def _channel(service: Any) -> Channel:
    identity = hashlib.sha256(service.url(privacy=False).encode()).hexdigest()[:16]
    tags = frozenset(str(tag) for tag in service.tags)
    shown = f" ({', '.join(sorted(tags))})" if tags else ""
    return Channel(identity, f"{service.service_name or 'channel'}{shown} #{identity[:6]}", tags, service)


def _asset() -> Any:
    import apprise

    return apprise.AppriseAsset(app_id="onnxserve", app_desc="onnxserve", app_url="", async_mode=False)


def _shut_log() -> None:
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    connections = logging.getLogger("urllib3.connectionpool")  # quotes the path of each request, if asked for all
    if connections.isEnabledFor(logging.DEBUG):
        connections.setLevel(logging.INFO)
