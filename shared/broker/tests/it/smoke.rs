use std::{sync::Arc, time::Duration};

use flux_broker::{nats::*, *};
use flux_protocol::{FunctionName, PoolName, invocation::Lane, subject, subject::QueueName};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::NatsServer;
use futures::StreamExt as _;

async fn broker(server: &NatsServer) -> Arc<NatsBroker> {
    let b = NatsBroker::connect(NatsOptions::new(server.url(), "test"), Tasks::new(Shutdown::new())).await.unwrap();
    b.provision(&[PoolName::default()]).await.unwrap();
    b
}

#[tokio::test]
async fn smoke() {
    let server = NatsServer::start().await;
    let t = std::time::Instant::now();
    let b = broker(&server).await;
    println!("provision {:?}", t.elapsed());
    let t = std::time::Instant::now();
    b.provision(&[PoolName::default()]).await.unwrap();
    println!("again {:?}", t.elapsed());
    for lane in Lane::ALL {
        let q = QueueName::new(lane, PoolName::default(), FunctionName::parse("hello").unwrap());
        let mut rings = b.rings().await.unwrap();
        b.heat(&q).await.unwrap();
        let t = std::time::Instant::now();
        b.heat(&q).await.unwrap();
        println!("heat again {:?}", t.elapsed());
        let s = b
            .publish(
                &q,
                Message { headers: vec![("Flux-Args", "[1]".into())], body: "x".into(), id: Some("a.1".into()) },
            )
            .await
            .unwrap();
        println!("{s:?}");
        let s2 = b
            .publish(
                &q,
                Message { headers: vec![("Flux-Args", "[1]".into())], body: "x".into(), id: Some("a.1".into()) },
            )
            .await
            .unwrap();
        println!("{s2:?}");
        if lane == Lane::Invoke {
            println!("{:?}", rings.next().await);
        }
        let mut p = b.pull(&q, 2, Duration::from_millis(300)).await.unwrap();
        let d = p.next().await.unwrap().unwrap();
        println!("{d:?}");
        assert_eq!(b.cool(&q).await.unwrap(), false);
        d.ack.ack().await.unwrap();
        assert!(p.next().await.is_none());
        println!("depth {}", b.depth(&q).await.unwrap());
        println!("cool {}", b.cool(&q).await.unwrap());
        println!("{:?}", b.pull(&q, 2, Duration::from_millis(300)).await.unwrap().next().await);
        if lane == Lane::Invoke {
            let due = flux_protocol::time::now().plus(Duration::from_millis(700));
            let s = b
                .publish_at(
                    &q,
                    Message {
                        headers: vec![("Flux-Args", "[1]".into()), ("Flux-Attempt", "2".into())],
                        body: "x".into(),
                        id: Some("a.2".into()),
                    },
                    due,
                )
                .await
                .unwrap();
            println!("{s:?}");
            b.heat(&q).await.unwrap();
            let mut p = b.pull(&q, 1, Duration::from_millis(3000)).await.unwrap();
            let d = p.next().await;
            println!("late {:?} {d:?}", flux_protocol::time::now().since(due));
            println!("ring? {:?}", tokio::time::timeout(Duration::from_millis(100), rings.next()).await);
        }
    }
    let mut w = b.watch(Table::Functions, true).await.unwrap();
    println!("{:?}", w.next().await);
    b.put(Table::Functions, "f", "1".into()).await.unwrap();
    println!("{:?}", w.next().await);
    b.delete(Table::Functions, "f").await.unwrap();
    println!("{:?}", w.next().await);
    println!("{:?}", b.keys(Table::Hot).await);
    println!("{:?}", b.get(Table::Functions, "f").await);
    println!("{:?}", b.update(Table::Functions, "f", "2".into(), 0).await);
    println!("{:?}", b.update(Table::Functions, "f", "2".into(), 1).await);
    for size in [0, 5, 1 << 20, 64 << 20] {
        let t = std::time::Instant::now();
        let content: bytes::Bytes = vec![7u8; size].into();
        b.put_blob(subject::BLOB_BUCKET, "k", content.clone()).await.unwrap();
        let put = t.elapsed();
        let got = b.get_blob(subject::BLOB_BUCKET, "k", 64 << 20).await.unwrap().unwrap();
        assert_eq!(got, content);
        println!("{size} {put:?} {:?}", t.elapsed() - put);
    }
    b.delete_blob(subject::BLOB_BUCKET, "k").await.unwrap();
    assert!(b.get_blob(subject::BLOB_BUCKET, "k", 64 << 20).await.unwrap().is_none());
    b.close().await;
}
