#!/bin/bash
# Greets the name in the payload: {"name": "Ada"} or just "Ada". The payload arrives on standard input, and in
# FLUX_PAYLOAD where it is small; what is printed as JSON becomes the result.
payload="$(cat)"

if [[ "$payload" =~ \"name\"[[:space:]]*:[[:space:]]*\"(([^\"\\]|\\.)*)\" ]]; then
    name="${BASH_REMATCH[1]}" # still escaped as JSON, so it can be printed as it is
elif [[ "$payload" =~ ^\"(([^\"\\]|\\.)*)\"$ ]]; then
    name="${BASH_REMATCH[1]}"
else
    name="world"
fi

printf '{"hello": "%s"}\n' "$name"
