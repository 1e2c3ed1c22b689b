import sys

if sys.version_info < (3, 8):  # in words that Python 2 and 3.6 can read, too
    sys.exit("edgeopt-agent needs Python 3.8 or later; %s is Python %d.%d" % ((sys.executable,) + sys.version_info[:2]))

from edgeopt_agent.main import main

main(sys.argv[1:])
