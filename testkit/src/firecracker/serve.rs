//! The process: its command line, its API socket, its faults.

use std::{
    os::unix::net::UnixListener as StdUnixListener,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};

use super::{
    guest::Guest,
    vm::{self, Effect, Vm},
};

#[derive(Debug, Default)]
struct Arguments {
    id: String,
    api_socket: Option<PathBuf>,
    faults: Vec<String>,
    guest: Option<String>,
}

struct Server {
    vm: Mutex<Vm>,
    guest: Arc<Guest>,
    faults: Vec<String>,
}

/// Firecracker's own flags that are used here, and the stand-in's.
fn arguments() -> Result<Arguments, String> {
    let mut given = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--id" => given.id = value()?,
            "--api-sock" => given.api_socket = Some(value()?.into()),
            "--log-path" | "--level" => drop(value()?),
            "--fault" => given.faults.push(value()?),
            "--guest" => given.guest = Some(value()?),
            other => return Err(format!("Arguments parsing error: Found argument '{other}' which wasn't expected")),
        }
    }
    if given.id.is_empty() || !given.id.chars().all(|c| c == '-' || c.is_alphanumeric()) {
        return Err(format!("Invalid instance ID: `{}`", given.id));
    }
    Ok(given)
}

/// `main` of the stand-in.
///
/// # Errors
/// What it says on its standard error, as Firecracker does.
pub fn run() -> Result<(), String> {
    if std::env::args().any(|word| word == "--version") {
        use std::io::Write as _;
        let said = format!("Firecracker v{}\n\nSupported snapshot data format versions: v10.0.0\n", vm::VERSION);
        return std::io::stdout().write_all(said.as_bytes()).map_err(|error| error.to_string());
    }
    let given = arguments()?;
    if given.faults.iter().any(|fault| fault == "useless") {
        return Err("RunWithApi error: it was told to end".to_owned());
    }
    let socket = given.api_socket.ok_or("an API socket is needed here")?;
    let server =
        Arc::new(Server { vm: Mutex::new(Vm::new(&given.id)), guest: Guest::new(given.guest), faults: given.faults });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let listener = tokio::net::UnixListener::bind(&socket).map_err(|error| error.to_string())?;
        let router = Router::new().fallback(answer).with_state(server);
        axum::serve(listener, router).await.map_err(|error| error.to_string())
    })
}

async fn answer(State(server): State<Arc<Server>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let request = format!("{method} {}", uri.path());
    for fault in &server.faults {
        match fault.split_once('=') {
            Some(("hang", at)) if at == request => std::future::pending().await,
            Some(("crash", at)) if at == request => std::process::exit(1),
            Some(("refuse", at)) if at == request => return fault_answer("it was told to refuse this"),
            _ => {}
        }
    }
    let answered = server.vm.lock().unwrap_or_else(PoisonError::into_inner).answer(method.as_str(), uri.path(), &body);
    match answered {
        Ok((body, effect)) => match server.carry_out(effect) {
            Ok(()) => match body {
                Some(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
                None => StatusCode::NO_CONTENT.into_response(),
            },
            Err(error) => fault_answer(&error.to_string()),
        },
        Err((fault, effect)) => {
            if effect == Effect::Exit {
                // After the answer has gone out.
                std::thread::spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    std::process::exit(1);
                });
            }
            fault_answer(&fault)
        }
    }
}

fn fault_answer(fault: &str) -> Response {
    let body = serde_json::json!({ "fault_message": fault }).to_string();
    (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Server {
    fn has(&self, fault: &str) -> bool {
        self.faults.iter().any(|has| has == fault)
    }

    fn carry_out(&self, effect: Effect) -> std::io::Result<()> {
        match effect {
            Effect::Nothing | Effect::Exit => Ok(()),
            Effect::Listen(path) => {
                let text = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket";
                let listener =
                    StdUnixListener::bind(path).map_err(|error| std::io::Error::other(format!("{text}: {error}")))?;
                self.guest.serve(listener);
                Ok(())
            }
            Effect::Boot if self.has("dies") => std::process::exit(0),
            Effect::Boot if self.has("deaf") => Ok(()),
            Effect::Boot => self.guest.boot(),
            Effect::Pause => {
                self.guest.set_listening(false);
                Ok(())
            }
            Effect::Resume => {
                self.guest.set_listening(true);
                Ok(())
            }
            Effect::Save { state: _, memory } => self.guest.save(&memory),
            Effect::Load { memory, uds_path, resumed } => {
                self.guest.load(&memory, resumed)?;
                uds_path.map_or(Ok(()), |path| {
                    self.guest.serve(StdUnixListener::bind(path)?);
                    Ok(())
                })
            }
        }
    }
}
