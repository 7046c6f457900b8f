#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Writes dashboards/remusd.json. The panels are data here, so that a change is one line in a review."""
import json
import pathlib

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VM = 'vm=~"$vm"'


def quantile(q, series, by="le, vm"):
    return f"histogram_quantile({q}, sum by ({by}) (rate({series}_bucket{{{VM}}}[$__rate_interval])))"


def quantiles(series):
    return [(quantile(q, series), f"{{{{vm}}}} p{int(q * 100)}") for q in (0.5, 0.99)]


def rate(series, labels=VM):
    return f"rate({series}{{{labels}}}[$__rate_interval])"


# Title, unit, kind, [(expression, legend)], description.
PANELS = [
    ("State", "short", "state-timeline",
     [(f"remusd_vm_state{{{VM}}} == 1", "{{vm}} on {{instance}}: {{state}}")],
     "Where each guest is in its life, on each node that knows it."),
    ("Protected", "short", "stat", [(f'sum(remusd_vm_state{{{VM}, state="protected"}})', "protected")],
     "Guests whose loss of host would be survived now."),
    ("Since the last commit", "s", "timeseries",
     [(f"time() - remusd_last_commit_timestamp_seconds{{{VM}}} and on (vm, instance) "
       f'remusd_vm_state{{state="protected"}} == 1', "{{vm}}")],
     "How much of the guest's outside life waits for an acknowledgement."),
    ("Failovers", "short", "timeseries",
     [(f"increase(remusd_failovers_total{{{VM}}}[1h])", "{{vm}} {{reason}}")],
     "Promotions in the last hour."),
    ("Pause", "s", "timeseries", quantiles("remusd_epoch_pause_seconds"), "How long the guest stands still."),
    ("Commit", "s", "timeseries", quantiles("remusd_epoch_commit_seconds"),
     "From the start of the pause to the acknowledgement: what output commit adds to latency."),
    ("Phases, p99", "s", "timeseries",
     [(quantile(0.99, "remusd_epoch_phase_seconds", "le, vm, phase"), "{{vm}} {{phase}}")],
     "Which part of an epoch takes long."),
    ("Epochs", "ops", "timeseries",
     [(rate("remusd_epochs_total"), "{{vm}} {{outcome}}"),
      (rate("remusd_epoch_starts_total", VM + ',reason!="interval"'), "{{vm}} {{reason}}")],
     "Epochs a second, and those that began sooner (output) or later (late, slowdown, staging)."),
    ("Dirty pages per epoch", "short", "timeseries", quantiles("remusd_dirty_pages"),
     "What the guest writes."),
    ("Checkpoint bytes", "Bps", "timeseries",
     [(rate("remusd_checkpoint_raw_bytes_total"), "{{vm}} raw"),
      (rate("remusd_checkpoint_sent_bytes_total"), "{{vm}} sent")], "Before and after encoding."),
    ("Dirty pages by how they went", "short", "timeseries",
     [(rate("remusd_checkpoint_pages_total"), "{{vm}} {{kind}}")],
     "Pages a second: whole, as a delta against what the backup has, or not at all (same)."),
    ("Packets held", "bytes", "timeseries",
     [(f"remusd_netbuf_held_bytes{{{VM}}}", "{{vm}}"),
      ('remusd_memory_limit_bytes{kind="packets"}', "bound on {{instance}}")],
     "Output that waits for its epoch, against its bound."),
    ("Hold time", "s", "timeseries", quantiles("remusd_netbuf_hold_seconds"), "How long a packet waits."),
    ("Packets released", "pps", "timeseries",
     [(rate("remusd_netbuf_released_packets_total"), "{{vm}}"),
      (rate("remusd_netbuf_dropped_packets_total"), "{{vm}} dropped {{direction}}"),
      (rate("remusd_netbuf_discarded_packets_total"), "{{vm}} discarded"),
      (rate("remusd_netbuf_stalls_total"), "{{vm}} stalls")],
     "Output that left; what was dropped at a bound; what was given up with the right to speak."),
    ("Heartbeat round trip", "s", "timeseries",
     [(f"remusd_heartbeat_rtt_seconds{{{VM}}}", "{{vm}}")],
     "Of the connection that carries the epochs."),
    ("Arbiter requests, p99", "s", "timeseries",
     [(quantile(0.99, "remusd_arbiter_request_seconds"), "{{vm}}")],
     "How long the right to run takes to settle."),
    ("Resync", "short", "timeseries",
     [(f"remusd_resync_pages{{{VM}}}", "{{vm}} {{kind}}")],
     "Pages of what the standby began with, and of these the right ones: what was not sent again."),
    ("Resync bytes", "bytes", "timeseries",
     [(f"remusd_resync_sent_bytes{{{VM}}}", "{{vm}}")], "What the first epoch took."),
    ("Disk changes that wait", "bytes", "timeseries",
     [(f"remusd_disk_held_bytes{{{VM}}}", "{{vm}} for the backup"),
      (f"remusd_replica_behind_bytes{{{VM}}}", "{{vm}} for the backup's disks"),
      (f"increase(remusd_disk_waits_total{{{VM}}}[5m])", "{{vm}} times the guest's disk waited")],
     "Changes of guests' disks that no acknowledged epoch has, and committed ones that the replica lacks."),
    ("Disk changes", "Bps", "timeseries",
     [(f"rate(remusd_disk_bytes_total{{{VM}}}[1m])", "{{vm}} {{kind}}"),
      (f"remusd_disk_sync_bytes{{{VM}}}", "{{vm}} first sync {{kind}}")],
     "Written by the guest while it is protected, committed, and applied to the replica."),
    ("Protection again", "short", "timeseries",
     [(f"remusd_reprotect_wanted{{{VM}}}", "{{vm}} wanted"),
      (f"increase(remusd_reprotect_attempts_total{{{VM}}}[1h])", "{{vm}} attempts"),
      (f"remusd_backup_slow{{{VM}}}", "{{vm}} backup is slow")],
     "Guests that wait for protection without an order, the last hour's attempts, and backups that lag."),
    ("Guest events", "short", "timeseries",
     [(f"increase(remusd_guest_events_total{{{VM}}}[1h])", "{{vm}} {{event}}")],
     "Reboots, power-offs, panics and ends of the hypervisor in the last hour."),
    ("Certificates", "s", "timeseries",
     [("remusd_certificate_expiry_timestamp_seconds - time()", "{{instance}}")],
     "How long each node's certificate is still good."),
    ("Memory of the daemon", "bytes", "timeseries",
     [("remusd_memory_bytes", "{{instance}} {{kind}}"),
      (f"remusd_vm_memory_bytes{{{VM}}}", "{{vm}} {{kind}}")],
     "Beyond the guest's own, it is bounded by the settings."),
]


def panel(index, title, unit, kind, targets, description):
    return {
        "id": index + 1, "title": title, "type": kind, "description": description, "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for i, (expression, legend) in enumerate(targets)],
    }


DASHBOARD = {
    "uid": "remusd", "title": "remusd", "tags": ["remusd"], "schemaVersion": 37, "version": 1,
    "editable": True, "refresh": "5s", "time": {"from": "now-15m", "to": "now"},
    "templating": {"list": [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {"name": "vm", "label": "Guest", "type": "query", "datasource": SOURCE, "includeAll": True,
         "multi": True, "query": {"query": "label_values(remusd_vm_state, vm)", "refId": "vm"},
         "refresh": 2, "allValue": ".*"},
    ]},
    "panels": [panel(i, *description) for i, description in enumerate(PANELS)],
}

if __name__ == "__main__":
    target = pathlib.Path(__file__).parent / "dashboards" / "remusd.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(DASHBOARD, indent=1) + "\n")
