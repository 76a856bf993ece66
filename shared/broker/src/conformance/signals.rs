//! Signals.

use std::time::Duration;

use futures::StreamExt as _;

use super::{PATIENCE, Subject, function, within};

/// A subject that no other clause uses.
fn subject() -> String {
    format!("flux.control.{}", function())
}

pub async fn a_signal_is_heard_once_listen_returned(on: &Subject) {
    for _ in 0..50 {
        let subject = subject();
        let mut heard = on.broker.listen(&subject).await.expect("listen");
        on.other.signal(subject.clone(), "x".into()).await.expect("signal");
        let signal = within("the signal", heard.next()).await.expect("it goes on");
        assert_eq!((signal.subject.as_str(), &*signal.body), (subject.as_str(), b"x".as_slice()));
        assert_eq!(signal.reply_to, None);
    }
}

pub async fn signals_are_in_order(on: &Subject) {
    const COUNT: usize = 500;
    let execution = function();
    let mut heard = on.broker.listen(&format!("flux.output.*.{execution}")).await.expect("listen");
    for n in 0..COUNT {
        let subject = format!("flux.output.agent-{}.{execution}", n % 2);
        on.other.signal(subject, n.to_string().into()).await.expect("signal");
    }
    for n in 0..COUNT {
        let signal = within("a signal", heard.next()).await.expect("it goes on");
        assert_eq!(&*signal.body, n.to_string().as_bytes());
        assert_eq!(signal.subject, format!("flux.output.agent-{}.{execution}", n % 2));
    }
}

pub async fn a_group_shares_signals(on: &Subject) {
    const COUNT: usize = 100;
    let subject = subject();
    let mut one = on.broker.listen_in_group(&subject, "g").await.expect("listen");
    let mut two = on.other.listen_in_group(&subject, "g").await.expect("listen");
    let mut all = on.broker.listen(&subject).await.expect("listen");
    for _ in 0..COUNT {
        on.other.signal(subject.clone(), "x".into()).await.expect("signal");
    }
    for _ in 0..COUNT {
        within("a signal outside of the group", all.next()).await.expect("it goes on");
        within("a signal within the group", async {
            tokio::select! { s = one.next() => s, s = two.next() => s }
        })
        .await
        .expect("it goes on");
    }
    let more = async {
        tokio::select! { s = one.next() => s, s = two.next() => s }
    };
    let more = tokio::time::timeout(Duration::from_millis(100), more).await;
    assert!(more.is_err(), "one of a group heard what another had: {more:?}");
}

pub async fn asking_nobody_is_none(on: &Subject) {
    let begun = tokio::time::Instant::now();
    let answer = on.broker.ask(subject(), "x".into(), PATIENCE).await.expect("ask");
    assert!(answer.is_none());
    assert!(begun.elapsed() < PATIENCE / 2, "nobody listened, and that was to be known at once");
    assert!(on.broker.ask_all(subject(), "x".into(), PATIENCE, 5).await.expect("ask all").is_empty());

    // One who listens and says nothing.
    let subject = subject();
    let _silent = on.other.listen(&subject).await.expect("listen");
    let answer = on.broker.ask(subject, "x".into(), Duration::from_millis(200)).await.expect("ask");
    assert!(answer.is_none());
}

pub async fn the_first_answer_is_the_answer(on: &Subject) {
    let subject = subject();
    let mut questions = on.other.listen(&subject).await.expect("listen");
    let answering = async {
        let question = within("the question", questions.next()).await.expect("it goes on");
        assert_eq!(&*question.body, b"who?");
        let reply_to = question.reply_to.expect("an answer is awaited");
        on.other.signal(reply_to, "me".into()).await.expect("answer");
    };
    let (answer, ()) = tokio::join!(on.broker.ask(subject.clone(), "who?".into(), PATIENCE), answering);
    assert_eq!(&*answer.expect("ask").expect("an answer").body, b"me");
}

pub async fn all_answers_are_gathered(on: &Subject) {
    let subject = subject();
    let mut listening = Vec::new();
    for _ in 0..3 {
        listening.push(on.other.listen(&subject).await.expect("listen"));
    }
    let answering = async {
        for (n, questions) in listening.iter_mut().enumerate() {
            let question = within("the question", questions.next()).await.expect("it goes on");
            let reply_to = question.reply_to.expect("an answer is awaited");
            on.other.signal(reply_to, n.to_string().into()).await.expect("answer");
        }
    };
    let asking = on.broker.ask_all(subject.clone(), "x".into(), PATIENCE, 3);
    let (answers, ()) = tokio::join!(asking, answering);
    let mut answers: Vec<_> = answers.expect("ask all").into_iter().map(|answer| answer.body).collect();
    answers.sort();
    assert_eq!(answers, ["0", "1", "2"].map(bytes::Bytes::from));
}
