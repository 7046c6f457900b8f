# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""One guest handed back and forth between two hosts under traffic, as the soak and the tests run it."""

import time

from failover import boot, complaints, go_on, protect, protection
from world import World


def switch(world, client, source, target):
    """Hands vm1 over; what the client saw of it, and how long the guest stood as its old host tells it."""
    before = client.ask(f"silence {time.monotonic()}")["sent_again"]
    begin = time.monotonic()
    told = source.ask("switchover", "vm1")
    end = time.monotonic()
    heard = go_on(client, end, replies=50)
    seen = client.ask(f"silence {begin}")
    return {"begin": begin, "end": end, "stood_ms": told["switchover_ms"], "udp_ms": seen["udp_ms"],
            "tcp_ms": seen["tcp_ms"],
            "sent_again": seen["sent_again"] - before, "heard": heard,
            "promote_ms": target.wait_state("protected")["promote_ms"]}


def back_and_forth(options, times, tell=lambda number, found: None):
    """A fresh pair, `times` switchovers. The new primary protects itself by the old one without an order, so
    that each begins as soon as the one before is made good."""
    with World(protection(options)) as world:
        client = boot(world, options)
        protect(world)
        rounds = []
        source, target = world.a, world.b
        for number in range(1, times + 1):
            rounds.append(switch(world, client, source, target))
            tell(number, rounds[-1])
            source, target = target, source
        found = client.ask(f"finish {rounds[-1]['begin']} {rounds[-1]['end']}")
        found["complaints"] = complaints(found)
        if not all(one["heard"] for one in rounds):
            found["complaints"].append("the session did not go on after a switchover")
        if found["abandoned"]:
            found["complaints"].append(f"{found['abandoned']} requests were never answered")
        if found["complaints"]:
            world.save_logs()
        return found, rounds
