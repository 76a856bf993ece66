use flux_testkit::eventually;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::flux::{Flux, SOON};

struct Events {
    bytes: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    read: String,
}

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Events {
    async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { bytes: response.bytes_stream().boxed(), read: String::new() }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
                };
                if !field("data:").is_empty() {
                    let data = serde_json::from_str(&field("data:")).expect("JSON");
                    return Some(Event { id: field("id:"), name: field("event:"), data });
                }
            }
            let more = tokio::time::timeout(SOON, self.bytes.next()).await.expect("in time");
            self.read.push_str(std::str::from_utf8(&more?.ok()?).expect("text"));
        }
    }
}

fn stream(flux: &Flux, id: &str) -> RequestBuilder {
    flux.api.request(Method::GET, &format!("/executions/{id}/stream"))
}

#[tokio::test]
async fn output_comes_as_it_is_written_and_goes_on_where_it_was_left() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("lines", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    let mut events = Events::open(stream(&flux, &id)).await;
    flux.scripted.let_go();
    let one = events.next().await.expect("an event");
    assert_eq!((one.id.as_str(), one.name.as_str()), ("1.1", "output"));
    assert_eq!(one.data, json!({"seq": 1, "stream": "stdout", "data": "one\n"}));
    drop(events);

    flux.scripted.let_go();
    eventually(SOON, "the second line", async || {
        flux.api.get(&format!("/executions/{id}")).await.json["output"] == "one\ntwo\n"
    })
    .await;
    let mut resumed = Events::open(stream(&flux, &id).header("Last-Event-ID", "1.1")).await;
    let two = resumed.next().await.expect("an event");
    assert_eq!((two.id.as_str(), &two.data["data"]), ("1.2", &json!("two\n")));
    let mut by_query =
        Events::open(flux.api.request(Method::GET, &format!("/executions/{id}/stream?last_event_id=1.2"))).await;
    flux.scripted.let_go();
    for events in [&mut resumed, &mut by_query] {
        let three = events.next().await.expect("an event");
        assert_eq!((three.id.as_str(), &three.data["data"]), ("1.3", &json!("three\n")));
        let end = events.next().await.expect("the end");
        assert_eq!(
            (end.name.as_str(), &end.data["status"], &end.data["execution_id"]),
            ("end", &json!("success"), &json!(id))
        );
        assert!(end.data.get("output").is_none(), "it was told already");
        assert!(events.next().await.is_none(), "nothing follows the end");
    }
    // Afterwards all of it is still there.
    let mut late = Events::open(stream(&flux, &id)).await;
    let mut told = String::new();
    while let Some(event) = late.next().await.filter(|event| event.name == "output") {
        told.push_str(event.data["data"].as_str().expect("text"));
    }
    assert_eq!(told, "one\ntwo\nthree\n");
}

#[tokio::test]
async fn a_stream_ends_when_the_gateway_goes() {
    let flux = Flux::start().await;
    let id = flux.api.execute_async("lines", &json!(null)).await;
    eventually(SOON, "it to run", async || flux.scripted.running() == 1).await;
    let mut events = Events::open(stream(&flux, &id)).await;
    flux.scripted.let_go();
    events.next().await.expect("an event");
    flux.shutdown.start_drain();
    assert!(events.next().await.is_none());
    tokio::time::timeout(SOON, flux.tasks.wait()).await.expect("it drains");
}

#[tokio::test]
async fn what_cannot_be_streamed_is_said() {
    let flux = Flux::start().await;
    flux.api.get("/executions/exc-01890000-0000-7000-8000-000000000000/stream").await.expect(404);
    let id = flux.api.execute_async("echo", &json!(1)).await;
    let refused = flux.api.get(&format!("/executions/{id}/stream?last_event_id=x")).await.expect(400);
    assert_eq!(refused.json["error"]["details"]["field"], "Last-Event-ID");
}
