#!/usr/bin/env python3
"""{{name}}: greets whoever the payload names.

The payload arrives on standard input. What is printed to standard output is the result if it is JSON; what is
printed to standard error is shown beside it. An exit status other than 0 is a failure.
"""

import json
import os
import sys


def handle(payload):
    name = payload.get("name", "world") if isinstance(payload, dict) else payload or "world"
    return {"hello": name, "attempt": int(os.environ.get("FLUX_ATTEMPT", "1"))}


def read_payload():
    text = sys.stdin.read()
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return text


if __name__ == "__main__":
    json.dump(handle(read_payload()), sys.stdout)
