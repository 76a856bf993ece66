//! What EC2 refuses and moto does not: quota, capacity, credentials, too many requests; and an EC2 that does not answer.
//!
//! A small server that answers EC2's query protocol: it has no instances, and refuses to run any.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use flux_protocol::PoolName;
use flux_provider::{
    Advice, ClientToken, ClusterName, ErrorKind, LaunchRequest, NodeType, Provider as _, ProviderError,
};
use flux_provider_aws::AwsProvider;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// EC2's form of an error: status, code, message.
type Refusal = (u16, &'static str, &'static str);

struct Ec2 {
    url: String,
    runs: Arc<Mutex<Vec<String>>>,
    _serving: tokio::task::JoinSet<()>,
}

const NONE: &str = "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>\
                    <reservationSet/></DescribeInstancesResponse>";

async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 16 * 1024];
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_ascii_lowercase();
        let length =
            length.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(body.to_owned());
        }
    }
}

impl Ec2 {
    async fn that(refuses: Option<Refusal>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let runs: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = runs.clone();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            let number = AtomicUsize::new(0);
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                let Some(body) = Box::pin(request(&mut stream)).await else { continue };
                let (status, answer) = if body.contains("Action=DescribeInstances") {
                    (200, NONE.to_owned())
                } else {
                    seen.lock().push(body);
                    // No answer at all.
                    let Some((status, code, message)) = refuses else { continue };
                    let id = number.fetch_add(1, Ordering::Relaxed);
                    let text = format!(
                        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{message}\
                         </Message></Error></Errors><RequestID>00000000-0000-0000-0000-{id:012}</RequestID></Response>"
                    );
                    (status, text)
                };
                let head = format!(
                    "HTTP/1.1 {status} x\r\nContent-Type: text/xml;charset=UTF-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all(format!("{head}{answer}").as_bytes()).await;
            }
        });
        Self { url, runs, _serving: serving }
    }

    async fn launch(&self, token: &ClientToken) -> ProviderError {
        let cluster = ClusterName::parse("here").expect("a name");
        let provider = AwsProvider::connect(crate::settings(&self.url), cluster).await.expect("names");
        let small = NodeType::parse("t3.small").expect("a type");
        let asked = LaunchRequest::new(token.clone(), small, PoolName::default());
        provider.launch(&asked).await.expect_err("it refuses everything")
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (refusal, kind, advice) in [
        (
            (
                400,
                "VcpuLimitExceeded",
                "You have requested more vCPU capacity than your current vCPU limit of 32 allows",
            ),
            ErrorKind::Quota,
            Advice::NextTypeOrZone,
        ),
        (
            (
                500,
                "InsufficientInstanceCapacity",
                "We currently do not have sufficient t3.small capacity in eu-central-1a",
            ),
            ErrorKind::Capacity,
            Advice::NextTypeOrZone,
        ),
        ((503, "RequestLimitExceeded", "Request limit exceeded."), ErrorKind::Throttled, Advice::Again),
        ((403, "UnauthorizedOperation", "You are not authorized"), ErrorKind::Credentials, Advice::Change),
        (
            (401, "AuthFailure", "AWS was not able to validate the provided access credentials"),
            ErrorKind::Credentials,
            Advice::Change,
        ),
        ((500, "InternalError", "An internal error has occurred"), ErrorKind::Unavailable, Advice::Again),
        ((400, "InvalidAMIID.NotFound", "The image id does not exist"), ErrorKind::Invalid, Advice::Change),
    ] {
        let ec2 = Ec2::that(Some(refusal)).await;
        let token = ClientToken::parse("here-1").expect("a token");
        let error = ec2.launch(&token).await;
        assert_eq!((error.kind(), error.advice()), (kind, advice), "{refusal:?}: {error:?}");
        let why = std::error::Error::source(&error).expect("EC2's words").to_string();
        assert!(why.contains(refusal.1) && why.contains(refusal.2), "{why}");
        // Asked once, with the token, and with tags in the same request.
        let runs = ec2.runs.lock();
        let [run] = &runs[..] else { panic!("asked {} times", runs.len()) };
        for part in ["Action=RunInstances", "ClientToken=here-1", "flux-client-token", "HttpTokens=required"] {
            assert!(run.contains(part), "{part}: {run}");
        }
    }
}

#[tokio::test]
async fn no_answer_says_nothing_about_what_was_bought() {
    let ec2 = Ec2::that(None).await;
    let token = ClientToken::parse("here-2").expect("a token");
    let error = ec2.launch(&token).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(!error.kind().bought_nothing());
    // Nobody listens any more.
    let url = ec2.url.clone();
    drop(ec2);
    let gone = Ec2 { url, runs: Arc::default(), _serving: tokio::task::JoinSet::new() };
    assert_eq!(gone.launch(&token).await.kind(), ErrorKind::Unavailable);
}
