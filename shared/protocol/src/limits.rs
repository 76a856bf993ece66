//! Every limit has a name here, and passing it gives a clear error. Sizes are in bytes.

use std::time::Duration;

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// Longest function, pool or agent name: they become subject tokens and path components.
pub const NAME_LENGTH: usize = 64;
/// A payload up to this size travels in the message; above it, by reference to the blob seam.
pub const INLINE_PAYLOAD: usize = 512 * KIB;
/// Largest payload of an invocation.
pub const PAYLOAD: usize = 64 * MIB;
/// Output up to this size rides in the terminal status and in the record.
pub const INLINE_OUTPUT: usize = 256 * KIB;
/// Output that one agent keeps of all that runs; where it is used up, the middle of each is dropped earlier.
pub const OUTPUTS: usize = 512 * MIB;
/// What each execution's output may take of it at once.
pub const OUTPUTS_STEP: usize = MIB;
/// Output kept of one execution; beyond it the middle is dropped and the record says how much.
pub const OUTPUT: usize = 64 * MIB;
/// Largest message on the queue (`max_payload` of the broker).
pub const MESSAGE: usize = 8 * MIB;
/// A payload up to this size is also given in `FLUX_PAYLOAD` and `PAYLOAD`: the kernel takes 128 KiB per string.
pub const ENV_PAYLOAD: usize = 64 * KIB;
/// Arguments of one invocation: number, and bytes in all.
pub const ARGS: usize = 256;
pub const ARGS_BYTES: usize = 64 * KIB;
/// `env` of a function: entries, and bytes in all.
pub const ENV_ENTRIES: usize = 256;
pub const ENV_BYTES: usize = 128 * KIB;
/// A function's YAML. Small, because alias bombs are stopped only after they were read.
pub const FUNCTION_YAML: usize = 256 * KIB;
/// A deployed archive: compressed bytes, unpacked bytes, entries, and the ratio that a bomb passes.
pub const ARCHIVE: usize = 256 * MIB;
pub const ARCHIVE_UNPACKED: u64 = 1024 * MIB as u64;
pub const ARCHIVE_ENTRIES: usize = 20_000;
pub const ARCHIVE_RATIO: u64 = 200;
/// An archive that no version names is kept this long after it was last put, for the deployment that put it; how often
/// gateways look for such, and how many they remove before they look again at what is named.
pub const ARCHIVE_GRACE: Duration = Duration::from_secs(3600);
pub const ARCHIVES_COLLECTED_EVERY: Duration = Duration::from_secs(24 * 3600);
pub const ARCHIVES_COLLECTED_AT_ONCE: usize = 100;
/// Up to so many archives go unasked even where they are more than half.
pub const ARCHIVES_COLLECTED_UNASKED: usize = 10;
/// Archives in S3: what one request carries, requests of one archive at once, how long connecting and one request may take,
/// and how often and for how long a request is tried again.
pub const S3_PART: usize = 8 * MIB;
pub const S3_PARTS_IN_FLIGHT: usize = 4;
pub const S3_CONNECT: Duration = Duration::from_secs(5);
pub const S3_REQUEST: Duration = Duration::from_secs(60);
pub const S3_RETRIES: usize = 3;
pub const S3_RETRY: Duration = Duration::from_secs(60);
/// A function's list of packages, as far as it is read.
pub const PACKAGE_LIST: usize = MIB;
/// How long installing a function's packages may take.
pub const INSTALL: Duration = Duration::from_secs(1800);
/// Sets of installed packages that `flux deploy` keeps for the next time.
pub const PACKAGES_KEPT: usize = 32;
/// A request's JSON envelope around the payload.
pub const REQUEST_OVERHEAD: usize = MIB;
/// `Idempotency-Key`: length, and how long the first execution is remembered.
pub const IDEMPOTENCY_KEY_LENGTH: usize = 255;
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// Versions kept per function in the store and the key-value history (NATS keeps at most 64 a key).
pub const VERSION_HISTORY: u32 = 64;
/// `image` of a function, in bytes; `command`: words, and bytes in all.
pub const IMAGE_NAME: usize = 255;
pub const COMMAND_WORDS: usize = 256;
pub const COMMAND_BYTES: usize = 64 * KIB;
pub const FUNCTION_MEMORY_MB: u32 = 1024 * 1024;
pub const FUNCTION_CPU_MILLICORES: u32 = 1_024_000;
/// Longest `keep_warm` of a function, and what one that does not say gets.
pub const KEEP_WARM: Duration = Duration::from_secs(24 * 3600);
pub const KEEP_WARM_DEFAULT: Duration = Duration::from_secs(60);
/// A handler's return value as JSON: it always fits what is kept of the output.
pub const RESULT: usize = 16 * MIB;
/// A handler's error: its type, its message, its stack.
pub const ERROR_TYPE: usize = 256;
pub const ERROR_MESSAGE: usize = 8 * KIB;
pub const ERROR_STACK: usize = 32 * KIB;
/// Invocations after which a worker is replaced, whatever it looks like.
pub const WORKER_INVOCATIONS: u64 = 100_000;
/// How long what an invocation left may take to end, and a worker that forks to begin anew, before that is ended too. It takes about a
/// millisecond.
pub const WORKER_RETURNS_WITHIN: Duration = Duration::from_secs(5);
/// How long a call whose process is to be ended, and not the worker that forked it, may go on before that is ended with it. That takes
/// about a millisecond too.
pub const FORK_ENDS_WITHIN: Duration = Duration::from_secs(1);
/// Of its function's memory, in percent: a worker that holds more between invocations is replaced.
pub const WORKER_MEMORY_PERCENT: u64 = 75;
/// Snapshots of microVMs that an agent's machine keeps, each as large as its guest's memory.
pub const MICROVM_SNAPSHOTS: usize = 16;
/// How long Firecracker may take over one request (a snapshot writes all of the guest's memory), and a guest until it listens.
pub const MICROVM_API: Duration = Duration::from_secs(10);
pub const MICROVM_BOOT: Duration = Duration::from_secs(20);
/// Connections of a Lambda worker to its Runtime API that are served at once; more wait.
pub const LAMBDA_CONNECTIONS: usize = 8;
/// What a Lambda worker posts of an error; the texts that are kept of it are shorter.
pub const LAMBDA_ERROR: usize = 256 * KIB;
/// A Lambda worker that has answered and does not ask for its next invocation within this is not used again.
pub const LAMBDA_ASKS_AGAIN: Duration = Duration::from_secs(1);
/// Longest `timeout` of a function (a day), and what a sync call without one waits at most.
pub const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
pub const SYNC_WAIT: Duration = Duration::from_secs(900);
/// Longest `?wait=` of `GET /executions/{id}`.
pub const POLL_WAIT: Duration = Duration::from_secs(60);
/// Longest `stop_grace` of a function.
pub const STOP_GRACE: Duration = Duration::from_secs(300);
pub const RETRY_ATTEMPTS: u32 = 100;
pub const RETRY_BACKOFF: Duration = Duration::from_secs(3600);
/// An asynchronous invocation older than this is recorded `expired`.
pub const EVENT_AGE: Duration = Duration::from_secs(6 * 3600);
/// Attempts that may be lost with their agents before the execution fails with `agent_lost`.
pub const LOSSES: u32 = 5;

/// How long a delivery may go without an in-progress mark before another agent gets it.
pub const ACK_WAIT: Duration = Duration::from_millis(1500);
/// An agent that holds what was delivered to another answers within this, while the queue is well. A lost agent's executions
/// begin later by as much.
pub const HOLDERS_ANSWER_WITHIN: Duration = Duration::from_millis(100);
/// The same where the queue is not: then three round trips, and at most this.
pub const HOLDERS_ANSWER_WITHIN_MOST: Duration = Duration::from_secs(5);
/// For this long after a connection was made others may still be connecting, and the queue may have forgotten that it
/// delivered something: agents come back within a tenth of a second ([`ACK_WAIT`] and this stay below 3 s).
pub const RECONNECTING: Duration = Duration::from_secs(1);
/// Redeliveries of one message that are left to whoever says that it holds it.
pub const HOLDERS_BELIEVED: u32 = 20;
/// Redeliveries in one question.
pub const HOLDERS_ASKED_AT_ONCE: usize = 1_000;
/// How often a running execution's delivery is marked in progress (a third of [`ACK_WAIT`]).
pub const IN_PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Deliveries of one function in flight over all agents (`max_ack_pending`).
pub const ACK_PENDING: i64 = 20_000;
/// Functions per stream that may have a consumer (`max_consumers`); NATS takes 1,000 unless told.
pub const CONSUMERS: i32 = 100_000;
/// Backstop only, since it also reaps consumers that have a backlog nobody pulls.
pub const CONSUMER_INACTIVE: Duration = Duration::from_secs(3600);
/// A hot function without work for this long is cooled.
pub const COOL_AFTER: Duration = Duration::from_secs(600);
/// Queued messages per function, and bytes per stream; full is 429, never the loss of the oldest.
pub const QUEUED_PER_FUNCTION: i64 = 1_000_000;
pub const INVOKE_STREAM_BYTES: i64 = 8 * 1024 * MIB as i64;
pub const CALL_STREAM_BYTES: i64 = 256 * MIB as i64;
pub const STATUS_STREAM_BYTES: i64 = 4 * 1024 * MIB as i64;
pub const DLQ_STREAM_BYTES: i64 = 2 * 1024 * MIB as i64;
/// Publishes with the same message id inside this window are one.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// What is published of one idempotency key within this is one message, though clocks differ. Who takes the key over later does
/// not know where its message lies.
pub const ONE_MESSAGE_WITHIN: Duration = Duration::from_secs(DUPLICATE_WINDOW.as_secs() / 2);
/// Publish acks outstanding of one process.
pub const PUBLISH_IN_FLIGHT: usize = 20_000;
/// A pull that finds nothing ends after this long and is renewed.
pub const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Pulls that wait at one queue; further agents are told so and leave it to those. The server looks at each of them
/// with each message, so that an invocation must not cost more the more agents there are.
pub const PULLS_WAITING: u32 = 8;
/// A pull on an idle queue. Longer ones need the server's heartbeats, which cost as much as renewing this, and for which
/// it is silent where [`PULLS_WAITING`] wait already.
pub const PULL_EXPIRES_IDLE: Duration = Duration::from_secs(6);
/// A pull on a queue that worked lately, in an agent that has much room. Less than [`ACK_WAIT`]: what an agent gave up as it
/// went must not come back on a pull that it left behind.
pub const PULL_EXPIRES_WARM: Duration = Duration::from_secs(1);
/// A pull for what somebody said is there: it comes at once, or another agent had it.
pub const PULL_EXPIRES_RUNG: Duration = Duration::from_millis(100);
/// Pulls while functions compete for slots end sooner, so that their credit can move.
pub const PULL_EXPIRES_CONTENDED: Duration = Duration::from_millis(250);

/// An agent heartbeats at this interval, and is offline when this many seconds passed without one.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
pub const AGENT_OFFLINE_AFTER: Duration = Duration::from_secs(3);
pub const AGENT_FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// A queue that is reached and acknowledged nothing for this long does not store what it is sent: its disk is or was full.
pub const STORES_NOTHING: Duration = Duration::from_secs(3);
/// `running` is published only for executions that last longer than this: most are over before.
pub const RUNNING_STATUS_AFTER: Duration = Duration::from_millis(50);
/// A sync call with behaviour `exit` that no agent picked up within this is taken back.
pub const PICKUP_GRACE: Duration = Duration::from_millis(500);
/// Live output is published within this time of being written.
pub const OUTPUT_PUBLISH_WITHIN: Duration = Duration::from_millis(20);
/// Largest chunk of live output.
pub const OUTPUT_CHUNK: usize = 64 * KIB;
/// A process that does not end at SIGKILL sleeps in the kernel; after this long its outcome is told without it.
pub const KILL_TAKES_AT_MOST: Duration = Duration::from_secs(10);
/// After a process ended, its pipes are read for this long, whoever still holds them.
pub const PIPE_DRAIN: Duration = Duration::from_millis(250);
/// Agents remember a cancel for this long, for a delivery that was under way.
pub const CANCEL_REMEMBERED: Duration = Duration::from_secs(60);
/// Retries whose backoff one gateway keeps, where the queue cannot. Further ones are published by the reconciler,
/// [`LOST_AFTER`] late.
pub const RETRIES_HELD: usize = 16_384;
/// An execution is lost when its message is gone and no status came for this long.
pub const LOST_AFTER: Duration = Duration::from_secs(10);
/// How often the reconciler reads the streams' per-subject counts.
pub const RECONCILE_EVERY: Duration = Duration::from_secs(2);
/// Running executions get this long when an agent or gateway is told to go (`drain_timeout`).
pub const DRAIN: Duration = Duration::from_secs(30);
/// Terminal executions are kept at least this long (`history`).
pub const HISTORY: Duration = Duration::from_secs(24 * 3600);
/// A gateway that starts waits so long for its queue and store, together.
pub const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Status messages recorded in one store transaction.
pub const STATUS_BATCH: usize = 256;
/// Rows of one page of a list.
pub const PAGE: usize = 1000;
pub const PAGE_DEFAULT: usize = 50;
/// Sync calls that one gateway holds, and waiters.
pub const GATEWAY_IN_FLIGHT: usize = 10_000;
/// Readers of event streams that one gateway holds: fewer than its connections, so that they never take all.
pub const GATEWAY_WATCHERS: usize = 12_000;
/// Asynchronous invocations that one gateway accepts at once, for each core: more would only wait for the disk.
pub const ACCEPTS_PER_CORE: usize = 32;
/// Who finds no room for an asynchronous invocation waits, unless there has been none for this long.
pub const BURST: Duration = Duration::from_millis(500);
/// Messages waiting in one bounded channel between tasks, unless a place names its own.
pub const CHANNEL: usize = 1024;

/// Connections that a gateway holds; each further one is told so and closed.
pub const HTTP_CONNECTIONS: usize = 16_384;
/// Connections that the kernel holds until they are taken; it drops the beginnings of more, which come again after a second.
pub const HTTP_BACKLOG: u32 = 4096;
/// Connections being told that there are too many, and how long each may take to listen; more are closed without a word.
pub const HTTP_TURNED_AWAY: usize = 256;
pub const HTTP_TURNED_AWAY_FOR: Duration = Duration::from_millis(500);
/// Headers of one request: number, and bytes of the head in all.
pub const HTTP_HEADERS: usize = 100;
pub const HTTP_HEAD_BYTES: usize = 64 * KIB;
/// How long a connection may take over a request's head, the time before it included.
pub const HTTP_HEAD_READ: Duration = Duration::from_secs(30);
/// A request body that does not come on, or a response that is not read on, for this long ends its connection.
pub const HTTP_BODY_STALL: Duration = Duration::from_secs(30);
pub const HTTP_WRITE_STALL: Duration = Duration::from_secs(60);
/// A body that comes more slowly than this, for longer than [`HTTP_BODY_STALL`], ends its request.
pub const HTTP_BODY_LEAST_PER_S: usize = 8 * KIB;
/// Request bodies that a gateway holds in memory at once; those up to [`HTTP_BODY_FREE`] are not counted.
pub const HTTP_BODIES: usize = 1024 * MIB;
pub const HTTP_BODY_FREE: usize = 64 * KIB;
/// Streams of one HTTP/2 connection.
pub const HTTP2_STREAMS: u32 = 256;
/// `X-Request-Id` of a caller.
pub const REQUEST_ID_LENGTH: usize = 128;
/// A gateway that goes away still answers what comes on open connections for this long.
pub const HTTP_DRAIN_GRACE: Duration = Duration::from_millis(250);
/// An event of a stream as a client reads it: a record without its output, or a chunk.
pub const EVENT: usize = 32 * MIB;
/// An idle event stream gets a comment this often.
pub const EVENT_STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Certificates of gateways, agents, producers and the queue: how long they live, and how long before their end they are renewed.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
pub const CERTIFICATE_RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// An agent is answered one question for a new certificate in this time.
pub const RENEWAL_EVERY: Duration = Duration::from_secs(60);
/// The CA's own.
pub const CA_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// A join token: how long it can be used, and at most.
pub const JOIN_TOKEN_LIFE: Duration = Duration::from_secs(3600);
pub const JOIN_TOKEN_LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Join tokens that are open at once.
pub const JOIN_TOKENS: usize = 1000;
/// A file of the PKI that is read; a certificate signing request.
pub const PKI_FILE: usize = 64 * KIB;

/// API keys that a Flux has, scopes of one, and the length of its name.
pub const KEYS: usize = 10_000;
pub const KEY_SCOPES: usize = 32;
pub const KEY_NAME_LENGTH: usize = 128;
/// How long the key before a rotation goes on working, unless it is said, and at most.
pub const KEY_OVERLAP: Duration = Duration::from_secs(24 * 3600);
pub const KEY_OVERLAP_MOST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest header value that is looked at as a key or token.
pub const CREDENTIAL_BYTES: usize = 8 * KIB;
/// Each gateway reads the keys again this often, should the signal that one changed be lost.
pub const KEYS_READ_EVERY: Duration = Duration::from_secs(10);
/// Uses of keys are written together this often.
pub const KEYS_USED_EVERY: Duration = Duration::from_secs(5);
/// The most requests a second that a key may be given.
pub const REQUESTS_PER_SECOND: u32 = 1_000_000;
/// Subjects of tokens whose rate a gateway remembers.
pub const RATED_SUBJECTS: usize = 10_000;
/// A ticket to watch one execution.
pub const TICKET: Duration = Duration::from_secs(60);
/// Entries of the audit log are kept this long.
pub const AUDIT_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clocks of a token's issuer and of a gateway may differ by this.
pub const JWT_LEEWAY: Duration = Duration::from_secs(30);
/// A key set is read again after this long, or for an unknown `kid`, but then not more often than the second.
pub const JWKS_KEPT: Duration = Duration::from_secs(600);
pub const JWKS_AGAIN: Duration = Duration::from_secs(30);
pub const JWKS_WITHIN: Duration = Duration::from_secs(5);
/// Between an agent's questions whether the secrets of its warm workers are still those, and how many functions one is about.
pub const STAMPS_EVERY: Duration = Duration::from_secs(2);
pub const STAMPS_ASKED: usize = 100;
/// A pull of an image, however large it is and however slow its registry; those who ask for it meanwhile wait for the same.
pub const IMAGE_PULL: Duration = Duration::from_secs(1800);
pub const JWKS_BYTES: usize = 256 * KIB;
pub const JWKS_KEYS: usize = 64;
/// Decisions of the autoscaler that are kept: the last ones that did something.
pub const AUTOSCALER_DECISIONS: usize = 50;
/// Who acts, of several autoscalers, has said so within this.
pub const AUTOSCALER_LEASE: Duration = Duration::from_secs(15);
/// Machines that one autoscaler may have at most, of all providers.
pub const AUTOSCALER_NODES: u32 = 1000;
/// Of decisions that are kept, how many have what a machine printed, and how much of it: all of them fit into one message.
pub const AUTOSCALER_OUTPUTS: usize = 16;
pub const AUTOSCALER_OUTPUT: usize = 4 * KIB;
/// A secret's value, and how many of them there are: of a Flux, and of one function.
pub const SECRET: usize = 64 * KIB;
pub const SECRETS: usize = 10_000;
pub const FUNCTION_SECRETS: usize = 64;

/// A call to a store that is a server ends within this, whatever the server does: retries and waiting for a connection included.
pub const STORE_CALL: Duration = Duration::from_secs(5);
/// How long making a connection to it may take.
pub const STORE_CONNECT: Duration = Duration::from_secs(2);
/// A step of bringing a store's schema up to date, waiting for another gateway that does so included.
pub const STORE_MIGRATION: Duration = Duration::from_secs(600);
/// Connections of one gateway to PostgreSQL, unless the URL says `pool`, and at most.
pub const STORE_CONNECTIONS: usize = 10;
pub const STORE_CONNECTIONS_MOST: usize = 200;
/// Accepted executions that go to a server in one statement: number, and bytes.
pub const STORE_BATCH: usize = 256;
pub const STORE_BATCH_BYTES: usize = 8 * MIB;

/// Rows of a backup that are written together, about, and what a reader unpacks of them at most.
pub const BACKUP_ROWS: usize = MIB;
pub const BACKUP_ROWS_UNPACKED: usize = 64 * MIB;
/// A file of keys in a backup, and all of them together.
pub const BACKUP_KEY_FILE: usize = MIB;
pub const BACKUP_KEY_FILES: usize = 64 * MIB;
/// The end of a backup, which lists archives that are missing.
pub const BACKUP_END: usize = 8 * MIB;
/// Who makes a backup, or restores one, is believed dead when it did not say for so long that it lives.
pub const BACKUP_ALIVE: Duration = Duration::from_secs(60);

/// Setting up a machine: what is kept of a step's output, and how long a machine may take until SSH lets the autoscaler in.
pub const BOOTSTRAP_OUTPUT: usize = 16 * KIB;
/// How long a gateway may be away when a machine's identity is asked for.
pub const BOOTSTRAP_IDENTITY: Duration = Duration::from_secs(60);
/// Machines that are set up at once.
pub const BOOTSTRAPS_AT_ONCE: usize = 16;
/// A provider whose machine could not be set up is asked for none for so long; twice as long after each further one, up to the second.
pub const SET_UP_FAILED: Duration = Duration::from_secs(30);
pub const SET_UP_FAILED_MOST: Duration = Duration::from_secs(1800);
pub const BOOTSTRAP_SSH: Duration = Duration::from_secs(300);
/// How long a cloud may take until a machine's console shows its host keys.
pub const BOOTSTRAP_HOST_KEY: Duration = Duration::from_secs(300);
/// One try of a step, unless its setting says otherwise; how many tries it gets, and the pauses between them.
pub const BOOTSTRAP_STEP: Duration = Duration::from_secs(600);
pub const BOOTSTRAP_TRIES: u32 = 3;
pub const BOOTSTRAP_PAUSE: Duration = Duration::from_secs(1);
pub const BOOTSTRAP_PAUSE_MOST: Duration = Duration::from_secs(15);
/// From an agent's start to its first heartbeat.
pub const BOOTSTRAP_HEARTBEAT: Duration = Duration::from_secs(120);
/// Commands before the agent is installed: number, and bytes of each.
pub const SETUP_COMMANDS: usize = 64;
pub const SETUP_COMMAND_BYTES: usize = 64 * KIB;
