//! Steps that fail, hang, or are done already.

use std::time::Duration;

use flux_bootstrap::{Reason, Step};
use flux_testkit::{eventually, in_own_network};

use crate::{
    IDLE_AGENT, Never, bootstrap, files,
    node::{Node, SOON},
    recipe,
};

#[test]
fn what_was_done_is_found_done() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.setup_commands = vec!["echo one >>/run/setup".to_owned(), "echo 'two'\"2\" >>/run/setup".to_owned()];
        let finished = bootstrap(&node, &node.pinned(), &recipe).await.expect("set up");
        assert_eq!(finished.steps.len(), 8, "{finished:?}");
        bootstrap(&node, &node.pinned(), &recipe).await.expect("set up again");
        assert_eq!(node.read("/run/setup").as_deref(), Some("one\ntwo2\n"), "each command ran once");
        assert_eq!(node.read("/run/started").as_deref(), Some("started\nstarted\n"), "an agent is started anew");
        assert!(!node.exists("/root/.flux-setup"), "nothing of ours is left");
    });
}

#[test]
fn an_identity_is_there_whole_and_nobody_elses() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        bootstrap(&node, &node.pinned(), &recipe(&node)).await.expect("set up");
        let flux = nix::unistd::User::from_name("flux").expect("users").expect("`scripts/setup.sh test`").uid.as_raw();
        let key = "/etc/flux/certs/agents/far-1/agent-key.pem";
        assert_eq!(node.mode(key), (0o600, flux));
        assert_eq!(node.mode("/etc/flux/certs"), (0o700, flux));
        assert_eq!(node.mode("/etc/flux/flux.yaml"), (0o640, 0), "root reads it: the agent may not change it");
        let [certificate, own_key, ca] = node.certs().agent_files(&"far-1".parse().expect("an id"));
        for (there, here) in
            [(key, own_key), ("/etc/flux/certs/agents/far-1/agent.pem", certificate), ("/etc/flux/certs/ca/ca.pem", ca)]
        {
            assert_eq!(node.read(there), std::fs::read_to_string(here).ok(), "{there}");
        }
        let config = node.read("/etc/flux/flux.yaml").expect("a configuration");
        assert!(config.contains("\"id\": \"far-1\"") && config.contains("\"pool\": \"far\""), "{config}");
    });
}

#[test]
fn a_step_that_fails_says_which_and_why_without_secrets() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.secrets = vec!["token-4711".to_owned()];
        recipe.setup_commands = vec![
            "true".to_owned(),
            "echo x >>/run/tries; echo with token-4711 >&2; echo no such thing; exit 3".to_owned(),
            "echo never >/run/never".to_owned(),
        ];
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("the second command");
        assert_eq!(failed.step, Step::Setup { number: 2, of: 3 });
        assert_eq!((failed.reason.clone(), failed.tries), (Reason::Exit { status: 3 }, 3));
        assert_eq!(failed.output, "with ***\nno such thing");
        assert_eq!(failed.to_string(), "setup command 2 of 3 failed at try 3: it ended with status 3");
        assert_eq!(failed.done.last().map(|report| report.step), Some(Step::Setup { number: 1, of: 3 }));
        assert_eq!(node.read("/run/tries").as_deref(), Some("x\nx\nx\n"));
        assert!(!node.exists("/run/never") && !node.exists("/etc/flux"), "nothing comes after it");
    });
}

#[test]
fn a_step_that_fails_once_is_done_at_its_next_try() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.setup_commands = vec!["[ -e /run/once ] || { : >/run/once; exit 1; }".to_owned()];
        let finished = bootstrap(&node, &node.pinned(), &recipe).await.expect("the second try");
        let setup = finished.steps.iter().find(|report| matches!(report.step, Step::Setup { .. })).expect("a report");
        assert_eq!(setup.tries, 2);
    });
}

#[test]
fn a_step_that_hangs_is_ended_on_the_machine_too() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.timing.step = Duration::from_secs(3);
        recipe.timing.tries = 2;
        recipe.setup_commands = vec!["echo before; trap '' TERM; sleep 4711; sleep 4711".to_owned()];
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("it hangs");
        assert_eq!((failed.reason.clone(), failed.tries), (Reason::TimedOut { after: recipe.timing.step }, 2));
        assert_eq!(failed.output, "before");
        let sleeps = || node.processes().iter().any(|process| process.command.contains("sleep 4711"));
        eventually(SOON, "what hung to be gone", || async { !sleeps() }).await;
    });
}

#[test]
fn an_agent_that_is_not_heard_of_shows_its_log() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.start_command = Some("echo 'the queue is out of reach' >/var/log/flux-agent.log".to_owned());
        recipe.timing.heartbeat = Duration::from_millis(200);
        let failed = flux_bootstrap::bootstrap(&recipe, &node.pinned(), &files(&node, &recipe), &Never).await;
        let failed = failed.expect_err("no heartbeat");
        assert_eq!((failed.step, failed.tries), (Step::Heartbeat, 1));
        assert_eq!(failed.reason, Reason::TimedOut { after: recipe.timing.heartbeat });
        assert_eq!(failed.output, "the queue is out of reach");
    });
}

#[test]
fn no_process_list_and_no_log_shows_what_is_sent() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        // The pattern is not the secret itself.
        recipe.setup_commands = vec![
            "token=hush-4711; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' ' >/run/seen; \
             if grep -q 'hus[h]-4711' /run/seen; then exit 9; fi; grep -q 'slee[p] 4712' /run/seen || { sleep 4712 & exit 1; }"
                .to_owned(),
        ];
        bootstrap(&node, &node.pinned(), &recipe).await.expect("nothing is seen, and a process's arguments would be");
        assert!(!node.log().contains("hush-4711"), "{}", node.log());
    });
}
