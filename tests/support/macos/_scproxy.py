"""A stand-in for the module with which urllib queries the proxies of macOS; it returns
no proxies.
"""


def _get_proxy_settings():
    return {}


def _get_proxies():
    return {}
