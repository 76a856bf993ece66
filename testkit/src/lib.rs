//! Real clusters for tests: a `nats-server` of one's own, Flux's own binaries as processes that can be killed, an
//! HTTP client for the public API, and the words to wait for a condition instead of sleeping.
//!
//! Everything here panics with what to do when it cannot do its work: it is called by tests alone, and a test that
//! cannot run must fail, not pass. Nothing is shared between two tests: each server has its own directory and port,
//! and what a test started is gone when its handle is dropped, also when the test panics. The output of a process
//! is printed only then.

mod apart;
mod api;
mod archive;
mod bare_machine;
mod cloud;
mod disk;
mod dockerd;
pub mod firecracker;
mod locate;
mod log;
mod moto;
mod nats;
mod port;
mod postgres;
mod process;
mod process_tree;
mod rabbitmq;
mod redis;
mod seed;
mod up;
mod wait;

pub use apart::{passable_dir, start_gateway, start_gateway_on};
pub use api::{Api, Reply};
pub use archive::{File, archive};
pub use bare_machine::{BareMachine, in_own_network};
pub use cloud::Cloud;
pub use disk::Disk;
pub use dockerd::Dockerd;
pub use locate::{FluxBin, path_of_programs};
pub use moto::Moto;
pub use nats::NatsServer;
pub use port::free_port;
pub use postgres::PostgresServer;
pub use process::{FluxCommand, FluxProcess};
pub use process_tree::{Process, assert_no_processes_left, descendants, is_alive, processes_matching};
pub use rabbitmq::{RabbitServer, RabbitTls};
pub use redis::RedisServer;
pub use seed::Seed;
pub use up::FluxUp;
pub use wait::{eventually, eventually_some};
