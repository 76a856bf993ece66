//! Golden bytes: a changed one is a decision, since two builds would no longer understand each other.

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn request() -> SpawnRequest {
    SpawnRequest {
        id: 258,
        slot_key: "f@1".to_owned(),
        program: "./x".to_owned(),
        args: vec!["a".to_owned(), String::new()],
        env: vec![("K".to_owned(), "v".to_owned())],
        code_dir: "/c".into(),
        limits: Limits {
            memory_bytes: 1,
            cpu_millicores: 2,
            pids_max: 3,
            open_files: 4,
            file_size_bytes: 5,
            spares_others: true,
        },
        network: Network::None,
        channel: true,
        listens: false,
    }
}

#[test]
fn a_request_is_these_bytes() {
    let golden = concat!(
        "0101",                         // version, kind
        "0201000000000000",             // id
        "03000000664031",               // slot key
        "030000002e2f78",               // program
        "02000000010000006100000000",   // arguments
        "01000000010000004b0100000076", // environment
        "020000002f63",                 // code directory
        "0100000000000000",             // memory
        "0200000003000000",             // millicores, pids
        "0400000000000000",             // open files
        "0500000000000000",             // file size
        "01",                           // spares others
        "01",                           // network
        "01",                           // channel
        "00",                           // listens
    );
    let encoded = request().encode().unwrap();
    assert_eq!(hex(&encoded), golden);
    assert_eq!(SpawnRequest::decode(&encoded), Ok(request()));
    assert_eq!(SpawnRequest::peek_id(&encoded), Some(258));
    assert_eq!(memfd_size(&encoded), Ok(None));
    assert_eq!(memfd_size(&memfd_stub(70_000)), Ok(Some(70_000)));
    assert_eq!(memfd_size(&memfd_stub(MAX_REQUEST + 1)), Err(WireError::TooLarge { size: MAX_REQUEST + 1 }));
}

#[test]
fn replies_are_these_bytes() {
    let ended = EndedReport {
        id: 1,
        status: ExitStatus::Signaled(9),
        oom_killed: true,
        cpu_us: 2,
        memory_peak_bytes: 3,
        ended_at_us: 4,
    };
    let refused = RefusedReport { id: 1, step: "exec".to_owned(), errno: 2, message: "no".to_owned() };
    let cases = [
        (Reply::Started { id: 1, pid: 2, started_at_us: 3 }, "010a0100000000000000020000000300000000000000"),
        (Reply::Ended(ended), "010b0100000000000000010900000001020000000000000003000000000000000400000000000000"),
        (
            Reply::Ran { pid: 2, started_at_us: 3, ended },
            "010d02000000030000000000000001000000000000000109000000010200000000000000030000000000000004000000000000\
00",
        ),
        (
            Reply::Refused(refused),
            "010c010000000000000004000000657865630200000002000000\
6e6f",
        ),
    ];
    for (reply, golden) in cases {
        assert_eq!(hex(&reply.encode()), golden);
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

#[test]
fn control_packets_are_these_bytes() {
    let kill = Control::Kill { id: 1, signal: 15 };
    assert_eq!(hex(&kill.encode()), "011401000000000000000f000000");
    assert_eq!(Control::decode(&kill.encode()), Ok(kill));
    let ping = Control::Ping { nonce: 7 };
    assert_eq!(hex(&ping.encode()), "01150700000000000000");
    assert_eq!(Control::decode(&ping.encode()), Ok(ping));
    let question = Control::IsAlone { id: 1, nonce: 7 };
    assert_eq!(hex(&question.encode()), "011601000000000000000700000000000000");
    assert_eq!(Control::decode(&question.encode()), Ok(question));
    let answer = ControlReply::Alone { nonce: 7, alone: true };
    assert_eq!(hex(&answer.encode()), "0120070000000000000001");
    assert_eq!(ControlReply::decode(&answer.encode()), Ok(answer));
    let clear = Control::Clear { id: 1, nonce: 7 };
    assert_eq!(hex(&clear.encode()), "011701000000000000000700000000000000");
    assert_eq!(Control::decode(&clear.encode()), Ok(clear));
    let cleared = ControlReply::Cleared { nonce: 7, clean: true };
    assert_eq!(hex(&cleared.encode()), "0121070000000000000001");
    assert_eq!(ControlReply::decode(&cleared.encode()), Ok(cleared));
    let pong = ControlReply::Pong { nonce: 7 };
    assert_eq!(hex(&pong.encode()), "011f0700000000000000");
    assert_eq!(ControlReply::decode(&pong.encode()), Ok(pong));
    let mut capabilities = Capabilities { root: true, ..Capabilities::default() };
    capabilities.lacks("user", "why");
    let hello = ControlReply::Hello(Box::new(capabilities));
    assert_eq!(ControlReply::decode(&hello.encode()), Ok(hello));
}

#[test]
fn the_trees_link_speaks_this_json() {
    let wish = LauncherWish { tasks: Some(3), max_slots: None, driver: None };
    assert_eq!(serde_json::to_string(&wish).unwrap(), r#"{"tasks":3}"#);
    assert!(serde_json::from_str::<LauncherWish>(r#"{"runner":{"uid":0,"gid":0}}"#).is_err());
    let answer = LauncherAnswer::Started { pid: 4 };
    assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"started":{"pid":4}}"#);
}

#[test]
fn no_prefix_and_no_flipped_byte_is_more_than_an_error() {
    let encoded = request().encode().unwrap();
    for end in 0..encoded.len() {
        assert!(SpawnRequest::decode(&encoded[..end]).is_err());
    }
    for at in 0..encoded.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = encoded.clone();
            bytes[at] = value;
            let _ = SpawnRequest::decode(&bytes);
            let _ = Reply::decode(&bytes);
            let _ = Control::decode(&bytes);
            let _ = ControlReply::decode(&bytes);
        }
    }
    let mut longer = encoded.clone();
    longer.push(0);
    assert_eq!(SpawnRequest::decode(&longer), Err(WireError::TrailingBytes(1)));
    let mut other = encoded;
    other[0] = 2;
    assert_eq!(SpawnRequest::decode(&other), Err(WireError::Unknown { version: 2, kind: 1 }));
}
