"""What runs on the board: the standard library, plus numpy and one runtime, imported only when a job asks for them.

wire (the contract) → main (entry points) → operations → jobs (detached) → bench, infer, releases → runtimes/*,
preprocess, facts
"""

import sys

if sys.version_info < (3, 8):  # in words that Python 2 and 3.6 can read, too
    sys.exit("edgeopt-agent needs Python 3.8 or later; %s is Python %d.%d" % ((sys.executable,) + sys.version_info[:2]))

__version__ = "0.1.0"
