"""The installed `edgeopt`, whose measurements last a moment: for tests that are about everything but figures.

    python quick.py ARGUMENTS…

The modes keep the numbers of queries that percentiles need; time, new processes and the cool-down are left out.
"""

from __future__ import annotations

import dataclasses
import sys

from edgeopt import measure, stats
from edgeopt.cli import main

measure.COOL_DOWN_S = 0.1
for name in ("rapid", "quick"):
    stats.MODES[name] = dataclasses.replace(stats.MODES[name], min_seconds=0.3, renew=0)
sys.argv[0] = "edgeopt"
main()
