#!/usr/bin/env bash
# `limits.parse` of several limits gives the first one, and drops the others without a word.
#
# "100 per hour; 10/second" is the notation that flask-limiter and the pages of limits show.
# `parse_many` takes it whole; `parse` neither refuses it nor says that it took a part.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="parse: 100 per 1 hour
parse_many: 100 per 1 hour, 10 per 1 second"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check limits==5.8.0

cat >ask.py <<'PY'
from limits import parse, parse_many

TEXT = "100 per hour; 10/second"

print("parse:", parse(TEXT))
print("parse_many:", ", ".join(map(str, parse_many(TEXT))))
PY

seen=$(venv/bin/python -W ignore ask.py)
diff <(echo "$expected") <(echo "$seen")
