//! Firecracker's API, as far as it is used here: HTTP over a Unix socket, each request with a deadline.
//!
//! Shapes and order are those of Firecracker's own description (`firecracker.yaml`, releases 1.7 to 1.16). Fields that
//! are not needed are not sent, so that an older or newer release takes the requests as well.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// Of an answer; Firecracker's are some hundred bytes.
const ANSWER_BYTES: usize = 64 * 1024;
/// Of a fault's text that is kept.
const FAULT_CHARS: usize = 500;

/// Why a request to Firecracker had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Firecracker's API socket cannot be reached")]
    Unreachable(#[source] std::io::Error),
    #[error("Firecracker did not answer `{request}` within {within:?}")]
    TimedOut { request: String, within: Duration },
    /// It said no.
    #[error("Firecracker refused `{request}` with {status}: {fault}")]
    Refused { request: String, status: u16, fault: String },
    #[error("Firecracker ended while it was asked `{request}`")]
    Broken {
        request: String,
        #[source]
        source: hyper::Error,
    },
    #[error("Firecracker answered `{request}` with what is no answer to it: {problem}")]
    Nonsense { request: String, problem: String },
}

impl ApiError {
    /// The same request to another Firecracker may succeed; what one refuses, others refuse.
    pub const fn is_retryable(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Nonsense { .. })
    }
}

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    pub id: String,
    /// `Not started`, `Running` or `Paused`.
    pub state: String,
    pub vmm_version: String,
}

/// `PUT /machine-config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    pub vcpu_count: u8,
    pub mem_size_mib: u32,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource<'a> {
    pub kernel_image_path: &'a str,
    pub initrd_path: &'a str,
    pub boot_args: &'a str,
}

/// `PUT /drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive<'a> {
    pub drive_id: &'a str,
    pub path_on_host: &'a str,
    pub is_root_device: bool,
    pub is_read_only: bool,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock<'a> {
    pub guest_cid: u32,
    pub uds_path: &'a str,
}

/// `PUT /entropy`: a virtio generator, fed from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Entropy {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    InstanceStart,
}

#[derive(Serialize)]
struct Actions {
    action_type: Action,
}

/// What `PATCH /vm` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum VmState {
    Paused,
    Resumed,
}

#[derive(Serialize)]
struct VmPatch {
    state: VmState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotType {
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate<'a> {
    pub snapshot_type: SnapshotType,
    pub snapshot_path: &'a str,
    pub mem_file_path: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum MemoryBackendType {
    File,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryBackend<'a> {
    pub backend_type: MemoryBackendType,
    pub backend_path: &'a str,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotLoad<'a> {
    pub snapshot_path: &'a str,
    pub mem_backend: MemoryBackend<'a>,
    pub resume_vm: bool,
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// One Firecracker's API.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    within: Duration,
}

impl Api {
    /// Each request may take `within`.
    pub fn new(socket: impl Into<PathBuf>, within: Duration) -> Self {
        Self { socket: socket.into(), within }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn describe(&self) -> Result<InstanceInfo, ApiError> {
        let body = self.send(Method::GET, "/", None).await?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::Nonsense { request: "GET /".to_owned(), problem: error.to_string() })
    }

    pub async fn machine_config(&self, config: MachineConfig) -> Result<(), ApiError> {
        self.put("/machine-config", &config).await
    }

    pub async fn boot_source(&self, source: &BootSource<'_>) -> Result<(), ApiError> {
        self.put("/boot-source", source).await
    }

    pub async fn drive(&self, drive: &Drive<'_>) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", drive.drive_id), drive).await
    }

    pub async fn vsock(&self, vsock: &Vsock<'_>) -> Result<(), ApiError> {
        self.put("/vsock", vsock).await
    }

    pub async fn entropy(&self) -> Result<(), ApiError> {
        self.put("/entropy", &Entropy {}).await
    }

    pub async fn action(&self, action: Action) -> Result<(), ApiError> {
        self.put("/actions", &Actions { action_type: action }).await
    }

    pub async fn set_state(&self, state: VmState) -> Result<(), ApiError> {
        self.change(Method::PATCH, "/vm", &VmPatch { state }).await
    }

    /// The guest is paused before.
    pub async fn create_snapshot(&self, create: &SnapshotCreate<'_>) -> Result<(), ApiError> {
        self.put("/snapshot/create", create).await
    }

    /// Nothing is configured before.
    pub async fn load_snapshot(&self, load: &SnapshotLoad<'_>) -> Result<(), ApiError> {
        self.put("/snapshot/load", load).await
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.change(Method::PUT, path, body).await
    }

    async fn change(&self, method: Method, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ApiError::Nonsense { request: format!("{method} {path}"), problem: error.to_string() })?;
        self.send(method, path, Some(body.into())).await.map(drop)
    }

    async fn send(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, ApiError> {
        let request = format!("{method} {path}");
        match tokio::time::timeout(self.within, self.exchange(&request, method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::TimedOut { request, within: self.within }),
        }
    }

    /// A connection for each request: a start takes seven, and a connection here costs some microseconds.
    async fn exchange(&self, name: &str, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, ApiError> {
        let broken = |source| ApiError::Broken { request: name.to_owned(), source };
        let nonsense = |problem: String| ApiError::Nonsense { request: name.to_owned(), problem };
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| nonsense(error.to_string()))?;
        let answered = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|error| nonsense(error.to_string()))?;
            Ok((head.status, body.to_bytes()))
        };
        let (status, body) = tokio::select! {
            answered = answered => answered?,
            ended = connection => match ended {
                Err(source) => return Err(broken(source)),
                Ok(()) => return Err(nonsense("it closed the connection".to_owned())),
            },
        };
        if status == StatusCode::OK || status == StatusCode::NO_CONTENT {
            return Ok(body);
        }
        let fault = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => fault.fault_message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        let fault = fault.chars().take(FAULT_CHARS).collect();
        Err(ApiError::Refused { request: name.to_owned(), status: status.as_u16(), fault })
    }
}
