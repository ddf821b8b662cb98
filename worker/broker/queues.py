"""Celery configuration, the queues and the nudge.

A message carries ids only; the record is the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit, urlunsplit

import redis.exceptions
from amqp.exceptions import AccessRefused, AMQPError
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError

from worker.broker import wire
from worker.broker.events import GatheringEvents
from worker.broker.names import (
    CALLBACK_QUEUE,
    CALLBACK_TASK,
    PROCESS_TASK,
    SUBMIT_TASK,
    prefix_of_queues,
)
from worker.errors import SettingsError
from worker.model.refund import Lane
from worker.settings import Settings
from worker.store.sentinels import SentinelAddress, is_sentinel

VISIBILITY_SECONDS: Final = 300
"""Redelivery timeout for an unacknowledged nudge.

It exceeds a task's lifetime; a redelivery is harmless.
"""
PUBLISH_ERRORS: Final = (KombuError, redis.exceptions.RedisError, AMQPError, OSError)
"""The errors of a broker that is unavailable."""
_IDS_SHOWN: Final = 5
_NO_QUEUE: Final = "refunds.no-queue"

CONFIGURATION: Final[dict[str, Any]] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": True,
    "task_default_queue": Lane.SINGLE.value,
    "task_create_missing_queues": False,
    "task_queues": [Queue(lane.value) for lane in Lane],
    "task_track_started": False,
    # If a publish fails, the sweep sends the nudge for the record later, so one retry is enough.
    "task_publish_retry_policy": {
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    "worker_prefetch_multiplier": 1,
    # After a reconnect a pool thread would wait for the broker while the main thread reads the same
    # socket.
    "worker_enable_prefetch_count_reduction": False,
    # Both would run inside a thread that a claim does not know of.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_send_task_events": True,
    "task_send_sent_event": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    "timezone": "UTC",
    "enable_utc": True,
}


def make_celery(settings: Settings) -> Celery:
    """Return a Celery app for the settings' broker; it connects at its first use.

    Raises `SettingsError` for an address that cannot be read.
    """
    url, options, tls = _broker(settings)
    app = Celery(
        "refunds", broker=url, amqp=wire.AMQP, events=GatheringEvents, set_as_current=False
    )
    app.conf.update(CONFIGURATION, broker_transport_options=options)
    if settings.callbacks_file is not None:
        app.conf.task_queues = [*CONFIGURATION["task_queues"], Queue(CALLBACK_QUEUE)]
    if tls is not None:
        app.conf.broker_use_ssl = tls
    return app


def prepare(app: Celery) -> None:
    """Import the modules that the first message needs.

    A fork during an import would leave the child a held lock.
    """
    app.finalize()
    with app.connection_for_write() as connection:
        connection.transport  # noqa: B018 - read for what it loads
    for needed in ("router", "producer_pool", "send_task_message", "_event_dispatcher"):
        getattr(app.amqp, needed)
    "host".encode("idna")


def _broker(settings: Settings) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Return the address as kombu reads it, the options of the transport, and those of TLS.

    The TLS options are those for the servers of Sentinels.
    """
    url = settings.broker
    tls: dict[str, Any] | None = None
    if url.startswith("amqp"):
        _require_options(url)
        return url, {"confirm_publish": True}, None
    options: dict[str, Any] = {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # Maximum time of a blocking read: a queue that is resumed is included only in the next one.
        "polling_interval": 0.1,
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
    if prefix := prefix_of_queues(settings.prefix):
        options["global_keyprefix"] = prefix
    if url.startswith(("redis://", "rediss://")):
        url = _plain(url)
    if url.startswith("unix://"):
        # kombu's name for it; the database is its virtual host.
        parts = urlsplit(url)
        database = parse_qs(parts.query).get("db", ["0"])[0]
        credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        url = f"redis+socket://{credentials}{parts.path}?virtual_host={database}"
    if is_sentinel(url):
        address = SentinelAddress.parse(url)
        user = f"{quote(address.username or '', safe='')}:{quote(address.password or '', safe='')}"
        credentials = f"{user}@" if address.password else ""
        url = ";".join(
            f"sentinel://{credentials}{host}:{port}/{address.database}"
            for host, port in address.hosts
        )
        options |= {
            "master_name": address.master,
            "sentinel_kwargs": {"socket_timeout": 5, **address.to_sentinels},
        }
        if address.tls:
            # Set explicitly, since kombu reads an empty mapping as no TLS.
            tls = {"ssl_cert_reqs": "required"} | {
                name: address.tls[name] for name in address.tls if name != "ssl"
            }
    return url, options, tls


def _require_options(url: str) -> None:
    """Raise `SettingsError` for an option of an AMQP address that its client cannot read."""
    try:
        wire.Connection(url)  # type: ignore[no-untyped-call]  # kombu carries no types
    except (LookupError, TypeError, ValueError):
        names = ", ".join(dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)))
        raise SettingsError(
            f"REFUNDS_BROKER_URL has an option that the client does not know, or with a value that"
            f" it cannot read: remove it from {names}"
        ) from None


def _plain(url: str) -> str:
    """Return a Redis URL that kombu can read; it supports only TLS options, and fails on others.

    Without a host it would take the URL for the name of a RabbitMQ server.
    """
    parts = urlsplit(url)
    parts = parts._replace(netloc=parts.netloc or "127.0.0.1")
    options = parse_qsl(parts.query)
    database = dict(options).get("db", parts.path.strip("/"))
    of_tls = urlencode([(name, value) for name, value in options if name.startswith("ssl_")])
    return urlunsplit(parts._replace(path=f"/{database}" if database else parts.path, query=of_tls))


def nudge(app: Celery, refund_ids: Sequence[str], lane: Lane, *, producer: Any = None) -> None:
    """Send one message that requests handling of these refunds.

    Raises kombu's errors if the broker is unavailable.
    """
    app.send_task(
        PROCESS_TASK,
        args=[list(refund_ids)],
        queue=lane.value,
        argsrepr=f"({_shown(refund_ids)})",
        kwargsrepr="{}",
        ignore_result=True,
        producer=producer,
    )


def call_back(app: Celery, endpoint: str, members: Sequence[str]) -> None:
    """Send one message that requests callbacks about these refunds and batches to an endpoint.

    Raises kombu's errors if the broker is unavailable.
    """
    app.send_task(
        CALLBACK_TASK,
        args=[endpoint, list(members)],
        queue=CALLBACK_QUEUE,
        argsrepr=f"({endpoint}, {_shown(members)})",
        kwargsrepr="{}",
        ignore_result=True,
    )


def _shown(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_IDS_SHOWN])
    return shown + (f", and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else "")


def offer(app: Celery) -> None:
    """Offer RabbitMQ a message to no queue, which it drops; Redis is not asked.

    Raises kombu's errors if the broker is unavailable, or takes no messages.
    """
    with app.connection_for_write() as connection:
        if connection.transport.driver_type == "amqp":
            connection.Producer().publish(
                b"",
                routing_key=_NO_QUEUE,
                content_type="application/octet-stream",
                content_encoding="binary",
                retry=True,
                retry_policy=CONFIGURATION["task_publish_retry_policy"],
            )


def trouble(error: BaseException) -> tuple[str, str]:
    """Return what is wrong with the broker that raised one of `PUBLISH_ERRORS`, and what to do."""
    if wire.BLOCKED in str(error):
        return wire.BLOCKED, "free some there"
    if _is_refusal(error):
        where = "REFUNDS_BROKER_URL, or in REFUNDS_REDIS_URL if that is not set"
        return "refuses the credentials", f"set the user and the password in {where}"
    return f"cannot be reached ({type(error).__name__})", "start it or set REFUNDS_BROKER_URL"


def _is_refusal(error: BaseException | None) -> bool:
    """Return whether a server refused the user or the password: kombu's error is caused by it."""
    refused = (redis.exceptions.AuthenticationError, AccessRefused)
    return error is not None and (isinstance(error, refused) or _is_refusal(error.__cause__))


def submit_again(app: Celery, refund_id: str, fields: Mapping[str, Any], lane: Lane) -> None:
    """Send a request's message to the end of its queue.

    Raises kombu's errors if the broker is unavailable.
    """
    app.send_task(
        SUBMIT_TASK,
        kwargs=dict(fields),
        queue=lane.value,
        argsrepr="()",
        kwargsrepr=refund_id,
        ignore_result=True,
    )


def queue_depth(app: Celery, lane: Lane) -> int:
    """Return how many messages wait in a lane's queue; 0 if the queue was never used."""
    with app.connection_for_read() as connection:
        # The caller can wait for the next check; kombu would retry for six seconds.
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_step=0, interval_max=0
        )
        channel = connection.default_channel
        try:
            return int(channel.queue_declare(queue=lane.value, passive=True).message_count)
        except channel.connection.client.channel_errors:
            return 0
