"""Everything on machines: the command line, `clickdam up`, supervisors, servers."""

import signal
import sys

SERVERS = frozenset({"up", "edge", "edge-worker", "aggregator", "api", "demo-shop"})

# Loading the rest takes most of a second. A server told to end meanwhile has nothing to put in order yet.
if SERVERS.intersection(sys.argv[1:2]):
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, lambda *_: sys.exit(0))
