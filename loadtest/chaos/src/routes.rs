//! The ways between the servers of the queue's cluster: a link from each to each other. Who is cut off hears nothing and is
//! heard by nobody, while clients reach it as before.

use std::{io, time::Duration};

use flux_runtime::Tasks;

use crate::{
    link::{Link, Ways, Weather},
    plan::Cut,
};

pub(crate) struct Routes {
    ways: Vec<Way>,
}

struct Way {
    from: usize,
    to: usize,
    link: Link,
}

impl Routes {
    /// Between servers that listen for each other on these ports.
    pub(crate) async fn between(ports: &[u16], tasks: &Tasks) -> io::Result<Self> {
        let mut ways = Vec::new();
        for from in 0..ports.len() {
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                ways.push(Way { from, to, link: Link::to(*port, tasks).await? });
            }
        }
        Ok(Self { ways })
    }

    /// By which ports this one reaches the others.
    pub(crate) fn of(&self, from: usize) -> Vec<u16> {
        self.ways.iter().filter(|way| way.from == from).map(|way| way.link.port).collect()
    }

    pub(crate) fn cut(&self, cut: Cut, slow: Duration) {
        for way in &self.ways {
            let weather = match (lost(cut, way.from, way.to), lost(cut, way.to, way.from)) {
                _ if cut == Cut::Slow(way.from) || cut == Cut::Slow(way.to) => Weather::Slow(slow),
                (true, true) => Weather::Stalled(Ways::Both),
                (true, false) => Weather::Stalled(Ways::There),
                (false, true) => Weather::Stalled(Ways::Back),
                (false, false) => Weather::Clear,
            };
            way.link.set(weather);
        }
    }

    pub(crate) fn heal(&self) {
        self.ways.iter().for_each(|way| way.link.set(Weather::Clear));
    }
}

/// Whether what one sends does not come to the other.
fn lost(cut: Cut, from: usize, to: usize) -> bool {
    match cut {
        Cut::Apart(one) => from == one || to == one,
        Cut::Between(one, other) => (from, to) == (one, other) || (from, to) == (other, one),
        Cut::Mute(one) => from == one,
        Cut::Deaf(one) => to == one,
        Cut::Slow(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use async_nats::Client;
    use flux_runtime::Shutdown;
    use flux_testkit::NatsServer;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    /// Until what one says on a subject comes to the other.
    async fn until_heard(from: &Client, to: &Client, subject: &'static str) {
        let mut heard = to.subscribe(subject).await.expect("a subscription");
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            to.flush().await.expect("the server answers");
            from.publish(subject, "".into()).await.expect("a publish");
            from.flush().await.expect("the server answers");
            if tokio::time::timeout(Duration::from_millis(200), heard.next()).await.is_ok() {
                return;
            }
            assert!(Instant::now() < until, "nothing is heard on {subject}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn servers_that_are_cut_apart_do_not_hear_each_other_and_their_clients_do() {
        let tasks = Tasks::new(Shutdown::new());
        let ports: Vec<u16> = (0..3).map(|_| flux_testkit::free_port()).collect();
        let routes = Routes::between(&ports, &tasks).await.expect("links");
        let ways: Vec<Vec<u16>> = (0..3).map(|n| routes.of(n)).collect();
        let servers = NatsServer::start_cluster_over(&ports, &ways).await;
        let (mut clients, slow) = (Vec::new(), Duration::from_millis(1));
        for server in &servers {
            clients.push(server.client().await);
        }
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            until_heard(&clients[from], &clients[to], "before").await;
        }
        for (cut, hears) in [(Cut::Apart(0), false), (Cut::Mute(1), false), (Cut::Deaf(0), false), (Cut::Mute(0), true)]
        {
            // From the second to the first.
            let mut heard = clients[0].subscribe("cut").await.expect("a subscription");
            until_heard(&clients[1], &clients[0], "subscribed").await;
            routes.cut(cut, slow);
            if hears {
                clients[1].publish("cut", "".into()).await.expect("a publish");
                let message = tokio::time::timeout(Duration::from_secs(60), heard.next()).await;
                assert!(message.is_ok(), "{cut:?} takes the other way");
            } else {
                clients[1].publish("cut", "".into()).await.expect("a publish");
                // By then it would be there.
                until_heard(&clients[1], &clients[1], "own").await;
                let other = clients[0].clone();
                until_heard(&other, &clients[0], "own").await;
                assert!(heard.next().now_or_never().is_none(), "{cut:?} lets something through");
            }
            routes.heal();
            until_heard(&clients[1], &clients[0], "healed").await;
            until_heard(&clients[0], &clients[1], "healed").await;
        }
        tasks.shutdown().start_drain();
    }

    #[test]
    fn a_cut_between_two_leaves_the_third() {
        let cut = Cut::Between(0, 2);
        assert!(lost(cut, 0, 2) && lost(cut, 2, 0));
        assert!([(0, 1), (1, 0), (1, 2), (2, 1)].into_iter().all(|(from, to)| !lost(cut, from, to)));
        assert!(lost(Cut::Mute(1), 1, 0) && !lost(Cut::Mute(1), 0, 1), "it hears");
        assert!(lost(Cut::Deaf(1), 0, 1) && !lost(Cut::Deaf(1), 1, 0), "it is heard");
    }
}
