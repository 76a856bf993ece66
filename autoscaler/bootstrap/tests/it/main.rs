//! Machines with Debian's sshd, set up to the first executed function, and what goes wrong with them.

mod cluster;
mod connection;
mod failures;
mod install;
mod node;

use async_trait::async_trait;
use flux_bootstrap::{AgentFiles, BootstrapError, Finished, Heartbeats, Machine, Recipe};
use flux_protocol::{AgentId, PoolName};
use node::Node;

/// An agent that is heard of at once.
struct AtOnce;

#[async_trait]
impl Heartbeats for AtOnce {
    async fn first_of(&self, _: &AgentId) {}
}

/// An agent that is never heard of.
struct Never;

#[async_trait]
impl Heartbeats for Never {
    async fn first_of(&self, _: &AgentId) {
        std::future::pending().await
    }
}

/// An identity of the node's own CA.
fn files(node: &Node, recipe: &Recipe) -> AgentFiles {
    let (agent, pool) = (AgentId::parse("far-1").expect("an id"), PoolName::parse("far").expect("a pool"));
    let config = serde_json::json!({ "queue": { "url": "nats://127.0.0.1:4222" } });
    AgentFiles::mint(&node.certs(), agent, &pool, recipe, config).expect("minted")
}

/// Sets the node up, with an agent that is a word in a file.
async fn bootstrap(node: &Node, machine: &Machine, recipe: &Recipe) -> Result<Finished, BootstrapError> {
    flux_bootstrap::bootstrap(recipe, machine, &files(node, recipe), &AtOnce).await
}

/// A recipe whose agent is on the image already, and does nothing.
fn recipe(node: &Node) -> Recipe {
    let mut recipe = node.recipe();
    recipe.start_command = Some("flux-agent --config /etc/flux/flux.yaml".to_owned());
    recipe
}

/// What [`Node::start_with`] puts an agent that does nothing on the image with.
const IDLE_AGENT: &str =
    "printf '#!/bin/sh\\necho started >>/run/started\\n' >usr/bin/flux-agent; chmod 755 usr/bin/flux-agent\n";
