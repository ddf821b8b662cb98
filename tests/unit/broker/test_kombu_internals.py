"""The private parts of kombu that the worker's transport overrides or calls.

They may change in any release of kombu. If one differs, read its change beside
`worker/broker/kombu_transport.py`, run the tests of messages, and write down the new digest.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from typing import Any

import pytest
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

TESTED = "5.7.0"


def digest(part: Any) -> str:
    """Return what identifies the source of a function or property."""
    function: Any = part.fget if isinstance(part, property) else part
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


PARTS = {
    "QoS.append": kombu_redis.QoS.append,
    "QoS.ack": kombu_redis.QoS.ack,
    "QoS.pipe_or_acquire": kombu_redis.QoS.pipe_or_acquire,
    "QoS.restore_by_tag": kombu_redis.QoS.restore_by_tag,
    "QoS._remove_from_indices": kombu_redis.QoS._remove_from_indices,
    "virtual.QoS.append": virtual.QoS.append,
    "virtual.QoS.ack": virtual.QoS.ack,
    "virtual.QoS.can_consume_max_estimate": virtual.QoS.can_consume_max_estimate,
    "virtual.QoS.restore_unacked_once": virtual.QoS.restore_unacked_once,
    "Channel._create_client": kombu_redis.Channel._create_client,
    "Channel._brpop_start": kombu_redis.Channel._brpop_start,
    "Channel._brpop_read": kombu_redis.Channel._brpop_read,
    "Channel._flush_brpop_reauth": kombu_redis.Channel._flush_brpop_reauth,
    "Channel._do_restore_message": kombu_redis.Channel._do_restore_message,
    "Channel._receive_one": kombu_redis.Channel._receive_one,
    "Channel._q_for_pri": kombu_redis.Channel._q_for_pri,
    "Channel._get_message_priority": virtual.Channel._get_message_priority,
    "Channel._lookup": virtual.Channel._lookup,
    "Transport._deliver": virtual.Transport._deliver,
    "Transport.register_with_event_loop": kombu_redis.Transport.register_with_event_loop,
    "MultiChannelPoller.on_poll_start": kombu_redis.MultiChannelPoller.on_poll_start,
    "MultiChannelPoller.fds": kombu_redis.MultiChannelPoller.fds,
}
DIGESTS = {
    "QoS.append": "35c655f6ecc62fe6",
    "QoS.ack": "1bc15a4ddf541af6",
    "QoS.pipe_or_acquire": "ad7f549d96c81107",
    "QoS.restore_by_tag": "58e161d81b6fe18d",
    "QoS._remove_from_indices": "980a109d54ad9136",
    "virtual.QoS.append": "b388f0cd6485c28a",
    "virtual.QoS.ack": "0714292b916fecb2",
    "virtual.QoS.can_consume_max_estimate": "936d3958266c68d3",
    "virtual.QoS.restore_unacked_once": "c81f3d0fb29b9599",
    "Channel._create_client": "dae92bc4075dafb9",
    "Channel._brpop_start": "06723d707ddf2240",
    "Channel._brpop_read": "c42518699709f2df",
    "Channel._flush_brpop_reauth": "bb4930b4fd3cf8f3",
    "Channel._do_restore_message": "8b430df94e45b5b0",
    "Channel._receive_one": "d59b8751d89757dc",
    "Channel._q_for_pri": "f3997660680dd00f",
    "Channel._get_message_priority": "07faea72a3d7025f",
    "Channel._lookup": "82b0e60149b5e172",
    "Transport._deliver": "799e242f3ec53863",
    "Transport.register_with_event_loop": "4b835642e4a99425",
    "MultiChannelPoller.on_poll_start": "414f76caaa675bc0",
    "MultiChannelPoller.fds": "7d210b6d3bfca007",
}


@pytest.mark.parametrize("name", PARTS)
def test_private_part_of_kombu_is_the_one_that_the_transport_was_written_for(name: str) -> None:
    assert digest(PARTS[name]) == DIGESTS[name], (
        f"kombu {version('kombu')} changed {name}, which kombu_transport.py overrides or calls;"
        f" it was written for kombu {TESTED}"
    )
