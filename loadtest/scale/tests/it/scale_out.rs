//! `make scale-out` in short: what is accepted while nodes come and go ends once, with success.

use flux_scale::scale_out::{ScaleOut, scale_out, tell};

#[tokio::test]
async fn nothing_is_lost_from_none_to_many_and_back() {
    let size = ScaleOut::short();
    let scaled = scale_out(size).await;
    println!("{}", tell(&scaled).expect("text"));
    assert_eq!(scaled.peak(), size.nodes, "as many as there may be");
    assert!(scaled.accepted > size.held, "{} were accepted", scaled.accepted);
    assert!(scaled.lost.is_empty(), "lost of {}: {:#?}", scaled.accepted, scaled.lost);
    assert!(scaled.changed.is_empty(), "what had ended, ended otherwise: {:#?}", scaled.changed);
    // Each once, and the call that found no node.
    assert_eq!((scaled.ended.successes, scaled.ended.others), (scaled.accepted + 1, 0));
    assert_eq!(scaled.woke.0, 200, "a call that waits wakes a node");
    let worked = scaled.nodes.iter().filter(|node| node.first_execution.is_some()).count();
    assert!(worked > 1 && scaled.nodes.len() > worked.min(10), "{worked} of {:#?}", scaled.nodes);
    assert!(scaled.let_in.is_empty(), "still let in: {:?}", scaled.let_in);
}
