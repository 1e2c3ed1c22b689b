import sys

from edgeopt_agent.main import main

main(sys.argv[1:])
