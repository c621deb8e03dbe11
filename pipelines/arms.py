"""The arms of a rollout: whose answer a key gets, and the bins in which latencies and scores are counted.

Keys keep their arm: a weight that is raised only adds keys, as there is one salt for a whole rollout.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from hashlib import blake2b

WHOLE = 10_000
"""All keys: weights count these."""
LATENCY_MS = tuple(round(0.5 * 1.15**power, 3) for power in range(96))
"""The upper ends of the bins of latencies, in milliseconds: 15% apart, from half a millisecond to five minutes."""
SCORE_BINS = 20
"""Of a probability: equal steps of its logit from -5 to 5, the outer ones open."""
_LOGIT = 5.0


def challenged(salt: str, key: str, weight: int) -> bool:
    """Whether a key is among the ``weight`` of WHOLE that meet the challenger."""
    if weight <= 0:
        return False
    number = int.from_bytes(blake2b(f"{salt}{key}".encode(), digest_size=8).digest(), "big")
    return number % WHOLE < weight


def latency_bin(milliseconds: float) -> int:
    """The position of the bin in LATENCY_MS; what took longer than the last is counted there."""
    return min(bisect_left(LATENCY_MS, milliseconds), len(LATENCY_MS) - 1)


def score_bin(score: float, *, number: bool) -> int:
    """The bin of a probability (0 to SCORE_BINS - 1), or of a number: sign and power of two, 0 for less than 2**-20."""
    if number:
        if abs(score) < 2.0**-20:
            return 0
        power = min(max(math.floor(math.log2(abs(score))), -20), 60) + 21
        return power if score > 0 else -power
    if score <= 0.0 or score >= 1.0:
        return 0 if score <= 0.0 else SCORE_BINS - 1
    place = (math.log(score / (1 - score)) + _LOGIT) / (2 * _LOGIT) * SCORE_BINS
    return min(max(math.floor(place), 0), SCORE_BINS - 1)
