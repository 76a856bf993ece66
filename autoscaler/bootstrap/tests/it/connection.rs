//! Who answers, who is let in, and connections that are cut.

use std::time::Duration;

use flux_bootstrap::{HostKeys, Reason, Step};
use flux_provider::Fingerprint;
use flux_testkit::{eventually, in_own_network};

use crate::{
    IDLE_AGENT, bootstrap,
    node::{Node, SOON},
    recipe,
};

/// Above the shell are `timeout` and `flock`, and above those the connection's own sshd.
const CUT: &str = "lock=$(cut -d' ' -f4 /proc/$PPID/stat); kill -9 $(cut -d' ' -f4 /proc/$lock/stat)";

/// What sshd says of every key that it is shown.
const SHOWN: &str = "publickey for root";
/// What it says when a client goes that it did not let in.
const SHOWN_AND_REFUSED: &str = "authenticating user root";

#[test]
fn another_host_key_is_told_nothing() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let another = Fingerprint::of_key(b"another");
        let machine = node.machine(HostKeys::Pinned([another.clone()].into()));
        let failed = bootstrap(&node, &machine, &recipe(&node)).await.expect_err("the wrong machine");
        let seen = node.fingerprint();
        assert_eq!((failed.step, failed.tries), (Step::Connect, 1), "{failed}");
        assert_eq!(failed.reason, Reason::WrongHostKey { seen, expected: vec![another] });
        assert!(!node.log().contains(SHOWN), "no key was shown: {}", node.log());
        bootstrap(&node, &node.pinned(), &recipe(&node)).await.expect("the right key");
        assert!(node.log().contains(SHOWN), "the log would have told: {}", node.log());
    });
}

#[test]
fn the_key_of_the_first_use_is_kept_and_another_is_refused() {
    in_own_network(async {
        let mut node = Node::start_with(IDLE_AGENT).await;
        let first_use =
            |node: &Node| node.machine(HostKeys::FirstUse { known: node.known_hosts(), node: node.id.clone() });
        let first = bootstrap(&node, &first_use(&node), &recipe(&node)).await.expect("the first use");
        assert_eq!(first.host_key, node.fingerprint());
        bootstrap(&node, &first_use(&node), &recipe(&node)).await.expect("the same machine");
        node.made_anew().await;
        let failed = bootstrap(&node, &first_use(&node), &recipe(&node)).await.expect_err("another machine");
        assert!(matches!(failed.reason, Reason::WrongHostKey { .. }), "{failed}");
        node.known_hosts().forget(&node.id).expect("forgotten");
        bootstrap(&node, &first_use(&node), &recipe(&node)).await.expect("a new first use");
    });
}

#[test]
fn the_key_on_the_console_is_the_key_of_the_machine() {
    use flux_provider::{
        ClientToken, ClusterName, LaunchRequest, MemoryProvider, NodeType, Provider as _, memory::MemoryOptions,
    };
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let cluster = ClusterName::parse("here").expect("a name");
        let provider = MemoryProvider::new(MemoryOptions::new(cluster.clone()));
        let small = NodeType::parse("small").expect("a type");
        let asked = LaunchRequest::new(ClientToken::fresh(&cluster), small, flux_protocol::PoolName::default());
        let launched = provider.launch(&asked).await.expect("a node");
        // This provider's nodes have host keys of their own: not that of the machine that answers.
        let console = |node_id| HostKeys::Console { provider: std::sync::Arc::new(provider.clone()), node: node_id };
        let machine = node.machine(console(launched.id));
        let failed = bootstrap(&node, &machine, &recipe(&node)).await.expect_err("not the machine of that console");
        assert!(matches!(failed.reason, Reason::WrongHostKey { .. }), "{failed}");
        // A node without a console has no host key, however long one waits.
        let mut impatient = recipe(&node);
        impatient.timing.host_key = Duration::from_millis(100);
        let nobody = node.machine(console(flux_provider::NodeId::parse("m-0").expect("an id")));
        let failed = bootstrap(&node, &nobody, &impatient).await.expect_err("no console");
        assert_eq!(
            (failed.step, &failed.reason),
            (Step::HostKey, &Reason::NoHostKey { within: impatient.timing.host_key })
        );
    });
}

#[test]
fn who_is_not_let_in_is_told_so() {
    in_own_network(async {
        let node = Node::start_with(&format!("{IDLE_AGENT}: >root/.ssh/authorized_keys\n")).await;
        let mut recipe = recipe(&node);
        recipe.timing.ssh = Duration::from_millis(300);
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("not let in");
        assert_eq!((failed.step, failed.reason.clone()), (Step::Connect, Reason::Refused { user: "root".to_owned() }));
    });
}

#[test]
fn a_machine_may_write_who_may_come_after_its_sshd_has_started() {
    in_own_network(async {
        let node = Node::start_with(&format!("{IDLE_AGENT}: >root/.ssh/authorized_keys\n")).await;
        let (machine, recipe) = (node.pinned(), recipe(&node));
        let later = async {
            eventually(SOON, "a refusal", || async { node.log().contains(SHOWN_AND_REFUSED) }).await;
            node.let_in();
        };
        let (finished, ()) = tokio::join!(bootstrap(&node, &machine, &recipe), later);
        let finished = finished.expect("let in later");
        assert!(finished.steps.iter().any(|report| report.step == Step::Connect && report.tries > 1), "{finished:?}");
    });
}

#[test]
fn a_machine_that_does_not_answer_is_waited_for_and_given_up() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut machine = node.pinned();
        machine.address.set_port(23);
        let mut recipe = recipe(&node);
        recipe.timing.ssh = Duration::from_millis(300);
        let failed = bootstrap(&node, &machine, &recipe).await.expect_err("nobody is there");
        assert!(matches!(failed.reason, Reason::Unreachable { .. }), "{failed}");
    });
}

#[test]
fn a_connection_that_is_cut_is_made_again() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        let cut = format!(
            "if [ ! -e /run/cut ]; then : >/run/cut; {CUT}; sleep 2; : >/run/ended; exit 1; fi; [ -e /run/ended ]; echo x >>/run/after"
        );
        recipe.setup_commands = vec!["echo x >>/run/before".to_owned(), cut];
        let finished = bootstrap(&node, &node.pinned(), &recipe).await.expect("the second connection");
        let tries = |step: Step| finished.steps.iter().find(|report| report.step == step).map(|report| report.tries);
        assert_eq!(tries(Step::Setup { number: 1, of: 2 }), Some(1));
        assert_eq!(tries(Step::Setup { number: 2, of: 2 }), Some(2));
        assert_eq!(
            (node.read("/run/before").as_deref(), node.read("/run/after").as_deref()),
            (Some("x\n"), Some("x\n"))
        );
    });
}

#[test]
fn a_connection_that_is_always_cut_is_given_up() {
    in_own_network(async {
        let node = Node::start_with(IDLE_AGENT).await;
        let mut recipe = recipe(&node);
        recipe.setup_commands = vec![format!("{CUT}; sleep 1; exit 1")];
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("always cut");
        assert!(matches!(failed.reason, Reason::Cut { .. }) && failed.tries == recipe.timing.tries, "{failed}");
    });
}
