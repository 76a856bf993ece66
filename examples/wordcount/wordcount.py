#!/usr/bin/env python3
"""Counts the words of {"text": "..."}, and shows the most frequent ones."""

import collections
import json
import re
import sys


def main() -> int:
    try:
        payload = json.load(sys.stdin)
        text = payload["text"]
    except (ValueError, KeyError, TypeError):
        print('expected a payload like {"text": "to be or not to be"}', file=sys.stderr)
        return 2
    words = re.findall(r"\w+", str(text).lower())
    frequent = collections.Counter(words).most_common(3)
    json.dump({"words": len(words), "frequent": dict(frequent)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
