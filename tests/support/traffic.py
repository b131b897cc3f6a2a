"""A client that sends requests continuously while a test changes the served version."""

import threading
from collections import Counter

import requests


class Traffic(threading.Thread):
    """A thread that sends requests with x = 0 … 4 in turn, in `width` columns, until it
    is stopped. It pauses for `seconds` between two requests.
    """

    def __init__(self, url, width=1, seconds=0.01):
        super().__init__(daemon=True)
        self._url = f"{url}/invocations"
        self._width = width
        self._seconds = seconds
        self._ended = threading.Event()
        self.answers = Counter()
        self.last_version = ""

    def run(self):
        session = requests.Session()
        count = 0
        while not self._ended.wait(self._seconds):
            try:
                response = session.post(
                    self._url, json={"inputs": [[float(count % 5)] * self._width]}, timeout=30
                )
            except requests.RequestException:
                self.answers["", 0] += 1
                continue
            self.last_version = response.headers.get("X-Model-Version", "")
            self.answers[self.last_version, response.status_code] += 1
            count += 1

    def stop(self):
        self._ended.set()
        self.join()
