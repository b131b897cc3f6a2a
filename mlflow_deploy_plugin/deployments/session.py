"""Asking a server that was started here, over HTTP."""

import warnings
from typing import Any

import requests
from urllib3.exceptions import InsecureRequestWarning


class ServerSession(requests.Session):
    """For questions to servers of this machine: no proxy stands in between, nor anybody else, and a certificate names
    the public host."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = False

    def request(self, *arguments: Any, **named: Any) -> requests.Response:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            return super().request(*arguments, **named)
