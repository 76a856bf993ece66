//! Fields of the predecessor's configuration: what to write instead.

/// Its field, from the top of the file, and what there is now.
const FIELDS: &[(&str, &str)] = &[
    ("disable_grpc_tls", "`disable_mtls: true`: there is no gRPC, and the queue is what is talked to"),
    ("agent_redis_url", "`queue: { url: \"nats://HOST:4222\" }`: agents talk to the queue alone"),
    ("redis_url", "`queue: { url: \"nats://HOST:4222\" }` for work, `store: { url: … }` for records"),
    (
        "agent_port",
        "`agent: { probe: \"0.0.0.0:PORT\" }`: an agent takes work from the queue, and needs no port for it",
    ),
    ("agent_host", "`agent: { probe: \"HOST:PORT\" }`: an agent takes work from the queue, and needs no port for it"),
    ("port", "`gateway: { listen: \"HOST:PORT\" }`"),
    ("host", "`gateway: { listen: \"HOST:PORT\" }`"),
    ("api_key", "`gateway: { api_key: … }`, or FLUX_GATEWAY__API_KEY"),
    ("tls", "`gateway: { tls: { cert: FILE, key: FILE } }`, which is off where it is not written"),
    ("tls.enabled", "`gateway: { tls: { cert: FILE, key: FILE } }`, which is off where it is not written"),
    ("gateway.tls.enabled", "nothing: `gateway.tls` is off where it is not written"),
    ("cors", "`gateway: { cors: [\"*\"] }`, or the origins whose pages may ask"),
    ("cors_origins", "`gateway: { cors: [\"*\"] }`, or the origins whose pages may ask"),
    ("allowed_origins", "`gateway: { cors: [\"*\"] }`, or the origins whose pages may ask"),
    ("log_level", "`log: { level: … }`"),
];

/// What to write instead of a field that is none.
pub(crate) fn instead_of(path: &str) -> Option<&'static str> {
    FIELDS.iter().find(|(field, _)| *field == path).map(|(_, instead)| *instead)
}
