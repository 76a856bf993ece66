//! The closed list of codes in `{"error": {"code": …}}`. Each has a page under `docs/errors/`.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// Why a request was refused. The wire form is the snake-case name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status that the code is answered with.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// No key, or one that is not known.
    Unauthorized = "unauthorized", 401;
    /// A key or token that is known, and does not have the scope.
    Forbidden = "forbidden", 403;
    /// A field, parameter or body that is not valid: `details.field` names it.
    InvalidRequest = "invalid_request", 400;
    /// A function's configuration is not valid.
    InvalidFunction = "invalid_function", 422;
    /// A field or value that a later release of Flux takes.
    Unsupported = "unsupported", 422;
    InvalidArchive = "invalid_archive", 422;
    PayloadTooLarge = "payload_too_large", 413;
    /// A request's headers, or its path, are larger than a gateway reads.
    HeadTooLarge = "head_too_large", 431;
    /// A request's head or body came too slowly.
    RequestTimeout = "request_timeout", 408;
    RouteNotFound = "route_not_found", 404;
    MethodNotAllowed = "method_not_allowed", 405;
    FunctionNotFound = "function_not_found", 404;
    VersionNotFound = "version_not_found", 404;
    /// The function is registered but has no code yet.
    FunctionNotDeployed = "function_not_deployed", 409;
    ExecutionNotFound = "execution_not_found", 404;
    /// No agent of that id was let in or is heard of.
    AgentNotFound = "agent_not_found", 404;
    /// The id is another agent's, or known at another address.
    AgentExists = "agent_exists", 409;
    /// Nobody at that address shows an agent's certificate.
    AgentUnreachable = "agent_unreachable", 502;
    /// A join token that is unknown, used or expired, or a request that it is not the proof for.
    JoinRefused = "join_refused", 403;
    /// This gateway gives no identities: it has no CA, or its queue asks for none.
    NoAuthority = "no_authority", 501;
    /// Nobody buys machines here.
    NoAutoscaler = "no_autoscaler", 503;
    MessageNotFound = "message_not_found", 404;
    KeyNotFound = "key_not_found", 404;
    SecretNotFound = "secret_not_found", 404;
    /// The keys that secrets are encrypted with cannot be used.
    SecretsUnavailable = "secrets_unavailable", 503;
    /// There are as many of a kind as are kept.
    LimitReached = "limit_reached", 409;
    /// The request would remove more than is likely meant.
    NeedsForce = "needs_force", 409;
    /// A backup is being made, which needs what would be removed.
    BackupRunning = "backup_running", 409;
    /// The execution has its outcome already.
    AlreadyTerminal = "already_terminal", 409;
    /// The same `Idempotency-Key` came with another body.
    IdempotencyMismatch = "idempotency_mismatch", 422;
    /// Every capable agent is at the function's `max_concurrency`.
    AtConcurrency = "at_concurrency", 503;
    /// No node has the resources that the function asks for.
    NoResources = "no_resources", 429;
    /// No agent is online that could run the function.
    NoAgents = "no_agents", 503;
    /// A queue is at its named limit.
    QueueFull = "queue_full", 429;
    TooManyRequests = "too_many_requests", 429;
    /// The gateway holds as many connections as it takes.
    TooManyConnections = "too_many_connections", 503;
    /// The deadline passed before the execution ended.
    DeadlineExceeded = "deadline_exceeded", 504;
    /// The function behind a function URL failed, or answered with what is no response: `details` says how.
    FunctionFailed = "function_failed", 500;
    QueueUnavailable = "queue_unavailable", 503;
    StoreUnavailable = "store_unavailable", 503;
    /// This gateway is going away; ask another.
    ShuttingDown = "shutting_down", 503;
    /// A defect of Flux: the log has the chain under the request id.
    Internal = "internal", 500;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
