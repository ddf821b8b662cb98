"""Celery: submit a refund from an application that has Celery and no refund-worker.

    pip install 'celery[redis]'
    export REFUNDS_REDIS_URL=redis://127.0.0.1:6379/0
    python ops/examples/celery_producer.py order-1001-1 pi_123 500

Prints the record as JSON. Exit codes: 0 succeeded, 3 rejected, 4 not succeeded, 5 not accepted: run
it again.
"""

import json
import os
import sys
import time

import redis
from celery import Celery
from kombu.exceptions import OperationalError

URL = os.environ.get("REFUNDS_REDIS_URL", "redis://127.0.0.1:6379/0")
SENDS = 3
SECONDS = 20

# With a REFUNDS_PREFIX of your own: broker_transport_options={"global_keyprefix": PREFIX}, and the
# prefix in the keys.
app = Celery(broker=URL)
records = redis.Redis.from_url(URL, decode_responses=True)


class RejectedError(Exception):
    """The message was refused; the text says why. Fix it before you send it again."""


def submit(fields: dict) -> dict:
    """Send the refund until its record exists; return the record.

    Only then is the refund accepted. Sending it again is safe, because `refund_id` is the
    idempotency key.
    """
    refund_id = fields["refund_id"]
    refused_before = records.hget("refunds:rejected-ids", refund_id)
    for _ in range(SENDS):
        app.send_task(
            "refunds.submit",
            kwargs=fields,
            queue="refunds",
            kwargsrepr=refund_id,
            ignore_result=True,
        )
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            refused = records.hget("refunds:rejected-ids", refund_id)
            if refused and refused != refused_before:
                raise RejectedError(json.loads(refused)["reason"])
            record = records.hgetall(f"refunds:refund:{refund_id}")
            if record:
                return same(record, fields)
            time.sleep(0.1)
    raise TimeoutError(
        f"refund {refund_id} is not known to be accepted: send it again with the same id"
    )


def same(record: dict, fields: dict) -> dict:
    """Return the record if it is of this refund, and not of another one under the same id."""
    for name in ("payment_intent", "amount"):
        if name in fields and record.get(name) != str(fields[name]):
            raise RejectedError(f"refund {record['refund_id']} exists with another {name}")
    return record


def wait(refund_id: str, seconds: float) -> dict:
    """Return the record once it is settled or needs a person, or as it is after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        record = records.hgetall(f"refunds:refund:{refund_id}")
        if record["stage"] in {"settled", "review"} or time.monotonic() > end:
            return record
        time.sleep(0.2)


def main() -> int:
    """Hand in one refund and wait for it."""
    refund_id, payment_intent, amount = sys.argv[1:]
    # Anything but minor units stays text, which is rejected.
    minor = int(amount) if amount.isdecimal() else amount
    fields = {"refund_id": refund_id, "payment_intent": payment_intent, "amount": minor}
    try:
        submit(fields)
    except RejectedError as error:
        print(error, file=sys.stderr)
        return 3
    except (TimeoutError, redis.RedisError, OperationalError) as error:
        print(error, file=sys.stderr)
        return 5
    record = wait(refund_id, seconds=30)
    print(json.dumps(record))
    return 0 if record["status"] == "succeeded" else 4


if __name__ == "__main__":
    sys.exit(main())
