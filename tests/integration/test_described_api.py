"""The HTTP API as a process, called by schemathesis with whatever its OpenAPI document allows and
forbids.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import described_api
from tests.support.cli_runner import Records
from tests.support.serving import a_token, serving
from worker.store.store import Store

if TYPE_CHECKING:
    import redis

    from tests.support.installation import Installation

CONFIG = Path(__file__).parents[1] / "support" / "schemathesis.toml"


def test_schemathesis_finds_no_failure(
    installation: Installation, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    # The document's own example.
    Records(store=Store(sync_redis)).in_review("order-1001-1")
    installation.settings["REFUNDS_HTTP_RATE"] = "0"
    with serving(installation, "--parts", "api") as (server, url):
        ran = subprocess.run(
            [
                *("schemathesis", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"),
                *("-H", f"Authorization: Bearer {a_token(installation)}"),
                *("--max-examples", "10", "--request-timeout", "65", "--no-color"),
                # After ten wrong tokens the answer is 429, as tests/unit/http/test_api_auth.py
                # states.
                *("--exclude-checks", "ignored_auth"),
            ],
            cwd=tmp_path,
            env=installation.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
        found = re.search(r"Tested: (\d+)", ran.stdout)
        assert found is not None
        assert int(found[1]) >= len(described_api.operations()) - 1
        assert server.process.poll() is None
        assert "request_failed" not in server.said
