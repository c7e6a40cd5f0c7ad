#!/usr/bin/env bash
# The live gauge of a killed worker stays in the sum of prometheus-client for ever.
#
# `multiprocess_mode="livesum"` is documented as the sum of the processes that are alive. What says
# that one is not is a call of `mark_process_dead(pid)` by somebody who outlives it; after SIGKILL, or
# an out-of-memory kill, under a supervisor that does not call it, "in flight" never goes down again.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="two workers: 5.0
one was killed: 5.0
after mark_process_dead: 2.0"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check prometheus-client==0.26.0

mkdir metrics

cat >ask.py <<'PY'
import os
import subprocess
import sys

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead


def worker(in_flight):
    gauge = Gauge("in_flight", "Requests in flight.", multiprocess_mode="livesum")
    gauge.inc(in_flight)
    print("ready", flush=True)
    sys.stdin.read()


def told():
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry.get_sample_value("in_flight")


if len(sys.argv) == 2:
    worker(int(sys.argv[1]))
    sys.exit()

workers = []
for in_flight in ("2", "3"):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers.append(subprocess.Popen([sys.executable, __file__, in_flight], **pipes))
    workers[-1].stdout.readline()
print("two workers:", told())
workers[1].kill()
workers[1].wait()
print("one was killed:", told())
mark_process_dead(workers[1].pid)
print("after mark_process_dead:", told())
workers[0].communicate()
PY

seen=$(PROMETHEUS_MULTIPROC_DIR="$folder/metrics" venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
