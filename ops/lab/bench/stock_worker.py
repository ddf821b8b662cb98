"""A worker that keeps kombu's own Redis transport: `python -m ops.lab.bench.stock_worker ARG…`.

The arguments are those of `worker.process.celery_worker`.
"""

from __future__ import annotations

import sys

from worker.broker import kombu_transport
from worker.process.celery_worker import main

if __name__ == "__main__":
    kombu_transport.install = lambda: None
    sys.exit(main())
