#!/usr/bin/env bash
# A histogram of OpenTelemetry in seconds puts all requests into one bucket.
#
# The semantic conventions ask for `http.server.request.duration` in seconds. The SDK's default
# boundaries are those of milliseconds (0, 5, 10, 25, ...) whatever the unit says, so that every
# request below five seconds is counted in the first bucket, and no percentile can be told.
# `explicit_bucket_boundaries_advisory=` of `create_histogram` sets others.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="default: up to 5.0 s: 4
advised: up to 0.01 s: 1, up to 0.1 s: 1, up to 1 s: 1, up to 10 s: 1"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2

cat >ask.py <<'PY'
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
meter = MeterProvider([reader]).get_meter("finding")
histograms = [
    meter.create_histogram("default", unit="s"),
    meter.create_histogram(
        "advised", unit="s", explicit_bucket_boundaries_advisory=[0.01, 0.1, 1, 10]
    ),
]
for seconds in (0.002, 0.03, 0.4, 4.0):
    for histogram in histograms:
        histogram.record(seconds)

for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
    (point,) = metric.data.data_points
    bounds = [*point.explicit_bounds, "more"]
    full = [f"up to {bound} s: {n}" for bound, n in zip(bounds, point.bucket_counts) if n]
    print(f"{metric.name}:", ", ".join(full))
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
