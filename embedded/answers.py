"""How fast the gateway answers, by its own counts: for a stack that no Prometheus watches."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "perennial_gateway_"
QUANTILES = ("0.5", "0.95", "0.99")


class Answered(NamedTuple):
    """What became of a case's requests since the gateway's start, by the version that answered them.

    ``seconds`` are percentiles of whole requests by quantile, ``promised`` what the case's SLO says of them; ``failed``
    is the share of the case's requests, of all versions, that had no answer (5xx), and ``may_fail`` what may.
    """

    case: str
    version: str
    answers: int
    seconds: dict[str, float]
    promised: dict[str, float]
    failed: float
    may_fail: float

    @property
    def kept(self) -> bool:
        """Whether everything is as promised."""
        late = any(self.seconds[quantile] > most for quantile, most in self.promised.items())
        return not late and self.failed <= self.may_fail


def answered(text: str) -> list[Answered]:
    """What the gateway's ``/metrics`` tell of each case and version that has answered something."""
    buckets: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    promised: dict[str, dict[str, float]] = defaultdict(dict)
    may_fail: dict[str, float] = {}
    good: dict[str, float] = defaultdict(float)
    failed: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            if sample.name == f"{PREFIX}answer_seconds_bucket":
                buckets[labels["case"], labels["version"]].append((float(labels["le"]), value))
            elif sample.name == f"{PREFIX}slo_seconds":
                promised[labels["case"]][labels["quantile"]] = value
            elif sample.name == f"{PREFIX}slo_errors":
                may_fail[labels["case"]] = value
            elif sample.name == f"{PREFIX}requests_total" and labels["route"] in ("predict", "infer"):
                if labels["status"].startswith("2"):
                    good[labels["case"]] += value
                elif labels["status"].startswith("5"):
                    failed[labels["case"]] += value
    return [
        Answered(
            case,
            version,
            int(max(count for _, count in own)),
            {quantile: percentile(own, float(quantile)) for quantile in QUANTILES},
            promised[case],
            failed[case] / (good[case] + failed[case]),
            may_fail.get(case, 1.0),
        )
        for (case, version), own in sorted(buckets.items())
    ]


def percentile(buckets: list[tuple[float, float]], share: float) -> float:
    """The value below which this share of a histogram's observations lies, guessed as Prometheus does.

    ``buckets`` are (upper bound, observations up to it). A bucket's observations count as spread evenly over it; of the
    last one, which has no end, nothing is known but where it begins.
    """
    ordered = sorted(buckets)
    wanted = share * ordered[-1][1]
    low = before = 0.0
    for bound, count in ordered:
        if count >= wanted and count > before:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - before) / (count - before)
        low, before = (low if math.isinf(bound) else bound), count
    return math.nan
