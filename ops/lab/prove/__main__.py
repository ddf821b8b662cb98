"""`python ops/lab/prove`, from anywhere: see `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a folder, its own files would be importable by their bare names, and the checkout not at
# all.
sys.path[0] = str(Path(__file__).resolve().parents[3])

from ops.lab.prove.command import main  # noqa: E402 - the path comes first

if __name__ == "__main__":
    main()
