#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a timeline of `quire replay` with Perfetto's own message classes and holds it against the
report of the same run.

usage: check_perfetto.py QUIRE FOLDER
"""

import collections
import json
import pathlib
import subprocess
import sys

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto


def main() -> int:
    quire, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "timeline.perfetto"
    command = [quire, "replay", "--preset", "azure-conv", "--requests", "200", "--no-attention"]
    command += ["--arrivals", "trace", "--pages", "600", "--weights", "70", "--json"]
    run = subprocess.run([*command, "--timeline", path], check=True, capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert report["preemptions"] > 0, "the run was meant to preempt"

    trace = perfetto.Trace()
    trace.ParseFromString(path.read_bytes())
    names, annotations, tracks = {}, {}, {}
    stacks = collections.defaultdict(list)
    slices, tokens, last = collections.Counter(), collections.Counter(), {}
    events = []
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        for entry in packet.interned_data.event_names:
            names[entry.iid] = entry.name
        for entry in packet.interned_data.debug_annotation_names:
            annotations[entry.iid] = entry.name
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        if packet.HasField("track_event"):
            events.append(packet)

    # As the trace processor does: by time, in the order of the file at the same time.
    for packet in sorted(events, key=lambda each: each.timestamp):
        event = packet.track_event
        track = tracks[event.track_uuid]
        if event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
            name = event.name or names[event.name_iid]
            found = {annotations[a.name_iid]: a.int_value for a in event.debug_annotations}
            stacks[track.uuid].append((name, packet.timestamp))
            slices[(track.name, name) if track.name == "steps" else name.split()[0]] += 1
            tokens[name] += found.get("tokens", 0)
        elif event.type == perfetto.TrackEvent.TYPE_SLICE_END:
            name, begin = stacks[track.uuid].pop()
            assert begin <= packet.timestamp, f"{name} ends before it begins"
        else:
            assert event.type == perfetto.TrackEvent.TYPE_COUNTER
            assert track.counter.unit_name, track.name
            last[track.name] = event.counter_value
    assert not any(stacks.values()), "slices that do not end"
    of_steps = sum(n for name, n in slices.items() if isinstance(name, tuple))
    assert of_steps == report["steps"], (of_steps, report["steps"])
    assert slices["request"] == report["requests_served"]
    assert slices["preempted"] == report["preemptions"]
    assert tokens["prefill"] == report["prefill_tokens"]
    assert tokens["decode"] == report["decode_tokens"]
    assert last["waiting"] == 0
    assert all(track.parent_uuid in tracks or track.HasField("process") for track in tracks.values())
    print(f"{len(trace.packet)} packets, {len(tracks)} tracks, as the report says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
