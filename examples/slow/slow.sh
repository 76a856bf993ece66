#!/bin/bash
for ((second = 1; second <= SECONDS_TO_RUN; second++)); do
    echo "second $second of $SECONDS_TO_RUN (attempt $FLUX_ATTEMPT)"
    sleep 1
done
