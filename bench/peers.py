# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""What people would use instead: loops of stock QEMU's own ways to save a running guest.

Each loop saves the guest again and again, dirty_8k running in it. pause: from QEMU's STOP event, by its own
timestamp, which it takes when the guest stands, until the RESUME event; where QEMU leaves the guest stopped,
`cont` is sent at once, and the pause lasts until it is answered, which is how remusd and its floor count
theirs (they begin earlier, before `stop` is sent). stop_to_resume_ms is by the events alone.
total: from sending the command until QEMU says that it is complete.
"""

import os
import shutil
import tempfile
import time

from figures import empty_peer, number, quantiles
from qmp import Drain, Machine, QmpError, pauses_ms, stamp_ms

DIRTY = "remusd.dirty=8000 remusd.pages=4096 remusd.spin=1"
MOST_BANDWIDTH = 1 << 40  # bytes a second: no limit
ONE_S = 20  # for one round of a loop; the slowest takes a few hundred milliseconds
SPACING_S = 0.025
COLO_S = 20


def migrated(event):
    return event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed")


def capabilities(monitor, *names):
    monitor.ask("migrate-set-capabilities",
                capabilities=[{"capability": name, "state": True} for name in ("events", *names)])


def loop(machine, seconds, most, once, note):
    """Runs once() until the time or the count is over. once() returns when it was complete, and when `cont`
    was answered (time.time(), as the events' timestamps are) or None."""
    monitor = machine.monitor
    pauses, between, totals = [], [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(totals) < most:
        monitor.drain()
        begun = time.monotonic()
        completed, running = once()
        totals.append((completed - begun) * 1e3)
        monitor.wait(lambda event: event["event"] == "RESUME", ONE_S)
        events = monitor.drain()
        between += pauses_ms(events)
        pauses += ([running * 1e3 - stamp_ms(event) for event in events if event["event"] == "STOP"]
                   if running else pauses_ms(events))
        time.sleep(SPACING_S)  # The guest runs on between two, as between two checkpoints.
    return {"pause_ms": quantiles(pauses), "stop_to_resume_ms": quantiles(between),
            "total_ms": quantiles(totals), "count": len(totals), "note": note}


def migrate_once(monitor, uri, cont):
    """One migrate to completion. With cont the source is told to run on, as soon as it can."""
    monitor.ask("migrate", uri=uri)
    event = monitor.wait(migrated, ONE_S)
    completed = time.monotonic()
    if event["data"]["status"] != "completed":
        raise QmpError(f"migrate: {monitor.ask('query-migrate').get('error-desc', 'failed')}")
    deadline = time.monotonic() + ONE_S
    if not cont:
        return completed, None
    while True:
        # Right after the event QEMU may still say "Migration is not finalized yet".
        try:
            monitor.ask("cont")
            return completed, time.time()
        except QmpError:
            if time.monotonic() > deadline:
                raise


def migrating(directory, image, seconds, shared, names, cont, note):
    with Machine(directory, image, shared=shared, append=DIRTY) as machine, \
            Drain(os.path.join(directory, "drain")) as drain:
        machine.wait_ready()
        capabilities(machine.monitor, *names)
        machine.monitor.ask("migrate-set-parameters", max_bandwidth=MOST_BANDWIDTH)
        found = loop(machine, seconds, 400,
                     lambda: migrate_once(machine.monitor, f"unix:{drain.path}", cont), note)
        found["bytes_each"] = drain.bytes / max(1, found["count"])
        return found


def migrate_ignore_shared(directory, image, seconds):
    return migrating(directory, image, seconds, True, ["x-ignore-shared"], True,
                     "device state and ROMs alone, RAM is not saved; into a drained unix socket, then cont; "
                     "pause is STOP until cont is answered")


def migrate_live(directory, image, seconds):
    return migrating(directory, image, seconds, False, [], True,
                     "all RAM each time, live, no bandwidth limit, default downtime limit; into a drained "
                     "unix socket, then cont; pause is STOP until cont is answered")


def background_snapshot(directory, image, seconds):
    return migrating(directory, image, seconds, False, ["background-snapshot"], False,
                     "all RAM each time, anonymous memory, into a drained unix socket; QEMU resumes the "
                     "guest by itself; pause is STOP to RESUME, write faults while it saves come on top")


def job_done(monitor, name, timeout=ONE_S):
    """Waits until the job is concluded, and dismisses it."""
    monitor.wait(lambda event: event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == name and
                 event["data"]["status"] == "concluded", timeout)
    concluded = time.monotonic()
    error = next((job.get("error") for job in monitor.ask("query-jobs") if job["id"] == name), None)
    monitor.ask("job-dismiss", id=name)
    if error:
        raise QmpError(f"job {name}: {error}")
    return concluded


def snapshot_save(directory, image, seconds):
    with Machine(directory, image, append=DIRTY) as machine:
        machine.wait_ready()
        monitor = machine.monitor
        path = os.path.join(directory, "disk.qcow2")
        # QEMU makes the image itself.
        for number, options in enumerate((
                {"driver": "file", "filename": path, "size": 0},
                {"driver": "qcow2", "file": "disk-file", "size": 64 << 20})):
            if number == 1:
                monitor.ask("blockdev-add", driver="file", node_name="disk-file", filename=path)
            monitor.ask("blockdev-create", job_id=f"create{number}", options=options)
            job_done(monitor, f"create{number}")
        monitor.ask("blockdev-add", driver="qcow2", node_name="disk", file="disk-file")

        def once():
            monitor.ask("snapshot-save", job_id="save", tag="one", vmstate="disk", devices=["disk"])
            completed = job_done(monitor, "save")
            monitor.ask("snapshot-delete", job_id="delete", tag="one", devices=["disk"])
            job_done(monitor, "delete")
            return completed, None

        return loop(machine, seconds, 100, once,
                    "all RAM into a qcow2 in memory (/dev/shm); deleting the old one is not counted; pause "
                    "is STOP to RESUME")


def colo_unix(directory, image, seconds):
    """Primary and secondary; counts checkpoints by the primary's STOP and RESUME once it is in COLO."""
    what = "COLO, periodic mode (x-checkpoint-delay 25 ms), no disks, no comparing of packets, unix socket"
    path = os.path.join(directory, "colo")
    with Machine(directory, image, name="primary", append=DIRTY) as primary, \
            Machine(directory, image, name="secondary", append=DIRTY,
                    extra=("-incoming", "defer")) as secondary:
        primary.wait_ready()
        for machine in (primary, secondary):
            capabilities(machine.monitor, "x-colo")
            machine.monitor.ask("migrate-set-parameters", max_bandwidth=MOST_BANDWIDTH)
        primary.monitor.ask("migrate-set-parameters", x_checkpoint_delay=25)
        secondary.monitor.ask("migrate-incoming", uri=f"unix:{path}")
        primary.monitor.drain()
        begun = time.monotonic()
        primary.monitor.ask("migrate", uri=f"unix:{path}")
        try:
            event = primary.monitor.wait(
                lambda event: event["event"] == "MIGRATION" and
                event["data"]["status"] in ("colo", "failed", "completed"), COLO_S)
            if event["data"]["status"] != "colo":
                return empty_peer(f"{what}: migration {event['data']['status']} before COLO")
            entered_s = time.monotonic() - begun
            first = primary.monitor.drain()
        except QmpError as error:
            return empty_peer(f"{what}: did not enter COLO within {COLO_S} s: {error}")
        events, trouble, begun = [], "", time.monotonic()
        end = time.monotonic() + max(seconds, 10)
        try:
            while time.monotonic() < end:
                events += primary.monitor.drain()
                time.sleep(0.05)
        except QmpError as error:
            trouble = f"; then {error}"
        span = time.monotonic() - begun
        # The first STOP belongs to the migration into COLO, whose RESUME starts the first checkpoint.
        pauses = pauses_ms(first + events)[1:]
        if not pauses:
            return empty_peer(f"{what}: entered COLO after {entered_s:.1f} s, but completed no checkpoint in "
                              f"{span:.0f} s{trouble}")
        return {"pause_ms": quantiles(pauses), "total_ms": {"p50": None}, "count": len(pauses),
                "note": f"{what}; {len(pauses)} checkpoints in {span:.0f} s{trouble}; pause is STOP to "
                        "RESUME, total is not told by QEMU"}


ALL = {"migrate_ignore_shared": migrate_ignore_shared, "migrate_live": migrate_live,
       "snapshot_save": snapshot_save, "background_snapshot": background_snapshot, "colo_unix": colo_unix}


def measure(names, image, options, tell):
    """The peers of these names: ({name: figures}, {name: error})."""
    found, errors = {}, {}
    for name in names:
        # In memory: the disk of this machine is not what is measured.
        directory = tempfile.mkdtemp(prefix="remusd-", dir="/dev/shm")
        try:
            found[name] = ALL[name](directory, image, options.seconds * 2)
            pause, total = found[name]["pause_ms"]["p50"], found[name]["total_ms"]["p50"]
            tell(f"  {name}: " + (f"pause p50 {pause:.2f} ms, total p50 {number(total)} ms, "
                                  f"{found[name]['count']} times" if pause is not None
                                  else found[name]["note"]))
        except (QmpError, OSError) as error:
            found[name] = empty_peer(f"not measured: {error}")
            errors[name] = str(error)
            tell(f"  {name}: {error}")
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return found, errors
