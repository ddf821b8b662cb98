"""`python -m worker.process.celery_worker`: Celery's worker, without Celery's command line.

It is what `celery -A worker.app worker -P threads` runs. The command line would load a prompt, a
highlighter and Flower besides: 20 MB in each worker, and half a second at each start.
"""

from __future__ import annotations

import argparse
import sys

from celery.app.utils import find_app
from celery.utils.nodenames import default_nodename, host_format


def main() -> int:
    """Run a worker until a signal stops it; return its exit code."""
    parser = argparse.ArgumentParser(prog="celery_worker", description=__doc__)
    parser.add_argument("--queues", required=True, help="between commas")
    parser.add_argument("--loglevel", default="info")
    parser.add_argument("--hostname", help="name@host, where %%h is this machine's name")
    asked = parser.parse_args()

    # As `--app worker.app` does. It ends the process if the settings are wrong.
    worker = find_app("worker.app").Worker(
        hostname=host_format(default_nodename(asked.hostname)),
        queues=asked.queues,
        loglevel=asked.loglevel,
        quiet=True,
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
