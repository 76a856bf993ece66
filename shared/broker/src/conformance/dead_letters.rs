//! Dead letters.

use flux_protocol::{Invocation, Payload};

use super::{Subject, function, status};

fn invocation(body: &str) -> Invocation {
    Invocation {
        attempt: 3,
        args: vec!["a".to_owned()],
        payload: Payload::Inline(body.to_owned().into()),
        ..Invocation::default()
    }
}

pub async fn an_execution_is_buried_once(on: &Subject) {
    let mut status = status(&function());
    let invocation = invocation("{\"n\":1}");
    status.invocation = Some(Box::new(invocation.clone()));
    let first = on.broker.bury(&status, &invocation).await.expect("bury");
    let second = on.other.bury(&status, &invocation).await.expect("bury again");
    assert_eq!(first, second);
    let letters = on.other.letters(&status.function, 0, 10).await.expect("letters");
    assert_eq!(letters.len(), 1);
    let letter = on.broker.letter(&status.function, first).await.expect("letter").expect("it is there");
    assert_eq!(letter, letters[0]);
    assert_eq!((&letter.function, letter.sequence), (&status.function, first));
    assert_eq!(letter.invocation, invocation);
    assert_eq!(letter.status.outcome, status.outcome);
    assert_eq!(letter.status.execution_id, status.execution_id);
}

pub async fn letters_are_paged_removed_and_purged(on: &Subject) {
    let (mine, theirs) = (function(), function());
    let mut sequences = Vec::new();
    for n in 0..5 {
        sequences.push(on.broker.bury(&status(&mine), &invocation(&n.to_string())).await.expect("bury"));
        on.broker.bury(&status(&theirs), &invocation("other")).await.expect("bury");
    }
    let read = |letters: Vec<crate::DeadLetter>| letters.into_iter().map(|letter| letter.sequence).collect::<Vec<_>>();
    let first = read(on.other.letters(&mine, 0, 2).await.expect("letters"));
    assert_eq!(first, sequences[..2]);
    assert_eq!(read(on.other.letters(&mine, first[1], 10).await.expect("letters")), sequences[2..]);
    assert!(on.other.letters(&function(), 0, 10).await.expect("letters").is_empty());

    assert!(on.broker.letter(&theirs, sequences[0]).await.expect("letter").is_none(), "it is another function's");
    assert!(!on.broker.remove_letter(&theirs, sequences[0]).await.expect("remove"));
    assert!(on.broker.remove_letter(&mine, sequences[0]).await.expect("remove"));
    assert!(!on.broker.remove_letter(&mine, sequences[0]).await.expect("remove again"));
    let counts = on.other.letter_counts().await.expect("counts");
    let of = |function| counts.iter().find(|(counted, _)| counted == function).map_or(0, |(_, count)| *count);
    assert_eq!((of(&mine), of(&theirs)), (4, 5));
    assert_eq!(on.other.purge_letters(&mine).await.expect("purge"), 4);
    assert!(on.broker.letters(&mine, 0, 10).await.expect("letters").is_empty());
    assert_eq!(on.broker.letters(&theirs, 0, 10).await.expect("letters").len(), 5);
}
