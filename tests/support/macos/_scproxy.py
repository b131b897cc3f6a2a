"""The module with which urllib asks macOS for its proxies: there are none."""


def _get_proxy_settings() -> dict[str, object]:
    return {}


def _get_proxies() -> dict[str, str]:
    return {}
