"""How well an artifact answers labelled samples, beside its source: run by the board's own adapters, wherever it is."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from edgeopt_agent import preprocess as operations

from edgeopt import measure
from edgeopt.artifact import Artifact
from edgeopt.device import open_transport, parse_address
from edgeopt.device.session import Placement, Session
from edgeopt.task import Array, Samples, check_labels, check_outputs

from .source import Given


def here(artifact: Artifact, given: Given) -> dict[str, Any] | None:
    """{"metric", "n", "source", "artifact"}: mean scores on this machine of what the source and the artifact answer to
    the samples; None without labels or metric. Raises ConfigError for labels that the metric does not take.
    """
    if given.labels is None or given.metric is None:
        return None
    with tempfile.TemporaryDirectory(prefix="edgeopt-score-") as folder:
        transport = open_transport(parse_address("local", None, None))
        with Session(transport, Placement(folder, sys.executable)) as session:
            outputs = measure.outputs(session, artifact, measure.shards(Samples(given.arrays, None, None)))
    source = mean(given.reference, given.labels, given.metric)
    return {
        "metric": given.metric,
        "n": len(given),
        "source": source,
        "artifact": mean(outputs, given.labels, given.metric),
    }


def mean(outputs: Sequence[Array], labels: Array, metric: str) -> float:
    """The mean score of outputs, each (n, ...). Raises ConfigError for labels that the metric does not take."""
    check_labels(labels, metric, None)
    check_outputs(outputs, labels, metric, 0)
    return float(np.mean(operations.score(metric, outputs, labels)))
