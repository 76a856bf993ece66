#!/usr/bin/env bash
# Makes what is missing of the CA and of everybody's identity, and what the queue's servers are told of them. Again is the same.
# usage: identities.sh CERTS AGENTS AGENT…   where AGENTS/AGENT is what that agent gets to see: its own, and who signed it.
set -euo pipefail
certs="$1" agents="$2"
shift 2
flux pki init --certs-dir "$certs" --name nats --name nats-2 --name nats-3 --name gateway-1 --name gateway-2
for agent in "$@"; do
    [ -e "$certs/agents/$agent/agent.pem" ] || flux pki mint agent "$agent" --certs-dir "$certs"
    mkdir -p "$agents/$agent/ca" "$agents/$agent/agents/$agent"
    cp "$certs/ca/ca.pem" "$agents/$agent/ca/"
    # Once: an agent renews its own certificate.
    [ -e "$agents/$agent/agents/$agent/agent.pem" ] || cp -p "$certs/agents/$agent/"* "$agents/$agent/agents/$agent/"
    chown -R --reference="$certs" "$agents/$agent"
done
mkdir -p "$certs/nats"
flux pki export-nats-conf --certs-dir "$certs" > "$certs/nats/exported.conf"
chown -R --reference="$certs" "$certs/nats"
