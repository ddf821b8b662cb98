"""A worker that keeps kombu's own Redis transport: `python -m ops.lab.bench.stock_worker ARG…`.

The arguments are those of `celery`.
"""

from __future__ import annotations

import sys

from celery.__main__ import main

from worker.broker import kombu_transport

if __name__ == "__main__":
    kombu_transport.install = lambda: None
    sys.argv = ["celery", *sys.argv[1:]]
    main()
