//! Registering functions over HTTP, all with the same small archive.

use std::time::Duration;

use flux_testkit::{Api, File, archive};
use futures::StreamExt as _;
use tokio::time::Instant;

/// Registered at once.
const AT_ONCE: usize = 8;

pub(crate) fn name(n: usize) -> String {
    format!("scale-{n:05}")
}

/// Registers and deploys the functions of these numbers; how long it took.
pub(crate) async fn register(api: &Api, numbers: std::ops::Range<usize>) -> Duration {
    let code = archive(&[File::executable("run.sh", "#!/bin/sh\n:\n")]);
    let began = Instant::now();
    futures::stream::iter(numbers)
        .for_each_concurrent(AT_ONCE, |n| {
            let code = code.clone();
            async move {
                let name = name(n);
                let yaml =
                    format!("name: {name}\nhandler: run.sh\nresources: {{ cpu: 10, memory: 16 }}\ntimeout: 30\n");
                api.put("/functions", "application/yaml", yaml).await.expect(201);
                let deployed = api.put(&format!("/deploy/{name}"), "application/zip", code).await;
                assert!((200..300).contains(&deployed.status), "{}: {}", deployed.status, deployed.text());
            }
        })
        .await;
    began.elapsed()
}
