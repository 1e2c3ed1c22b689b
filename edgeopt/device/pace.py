"""How much is sent at once, so that a slow link answers in time and a fast one is not held up."""

from __future__ import annotations

LEAST_BYTES = 8 << 10  # 4 s at 16 kbit/s
LONGEST_S = 8.0  # ssh's own signs of life wait behind what is sent, and it gives up after 15 s without


class Pace:
    """most_bytes: never more at once. reply_s: how long the board may be silent."""

    def __init__(self, most_bytes: int, reply_s: float) -> None:
        self.size_bytes = min(LEAST_BYTES, most_bytes)
        self._most_bytes = most_bytes
        self._longest_s = min(LONGEST_S, reply_s / 4)

    def took(self, sent_bytes: int, seconds: float) -> None:
        """What was sent last, and how long it took until its answer: the next is as much as its rate allows."""
        fits = int(sent_bytes / max(seconds, 1e-3) * self._longest_s)
        self.size_bytes = min(max(fits, LEAST_BYTES), self._most_bytes)
