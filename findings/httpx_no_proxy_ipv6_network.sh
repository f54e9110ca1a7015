#!/usr/bin/env bash
# httpx 0.28.1: where NO_PROXY holds an IPv6 network in CIDR notation, no client can be created at all: httpx.Client()
# raises InvalidURL, whatever address it is for, and also where no proxy is set.
#
# An IPv4 network and a single IPv6 address are accepted. requests accepts the same list, and goes on.
#
# Output seen:
#   httpx, 10.0.0.0/8: created
#   httpx, ::1: created
#   httpx, 2001:db8::/32: InvalidURL
#   requests, 2001:db8::/32: prepared
#
# What it means for us: the agent, whose requests go through httpx, ends its attempt with one line that names these
# variables (edge/http.py, tests/edge/test_http.py); a webhook's alerts wait.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "httpx==0.28.1" "requests==2.32.5"
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'P'
import os

import httpx
import requests

for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]
for excluded in ("10.0.0.0/8", "::1", "2001:db8::/32"):
    os.environ["NO_PROXY"] = excluded
    try:
        httpx.Client()
        print(f"httpx, {excluded}: created")
    except httpx.InvalidURL:
        print(f"httpx, {excluded}: InvalidURL")
with requests.Session() as session:
    session.merge_environment_settings("http://farm.example/", {}, None, None, None)
print(f"requests, {excluded}: prepared")
P
)
echo "$found"
expected="httpx, 10.0.0.0/8: created
httpx, ::1: created
httpx, 2001:db8::/32: InvalidURL
requests, 2001:db8::/32: prepared"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
