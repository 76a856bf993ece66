//! The `flux` command as its users have it: real processes, a real `nats-server`, nothing stubbed.

#![allow(clippy::print_stdout, reason = "measured times belong into the test's own output")]

mod backup;
mod bad_input;
mod big;
mod cancel;
mod cluster;
mod containers;
mod deploy;
mod direct;
mod durability;
mod follow;
mod full_disk;
mod gateways;
mod https;
mod init;
mod kill;
mod lambda;
mod overload;
mod packages;
mod pki;
mod rabbitmq;
mod readme;
mod secrets;
mod stop;
mod stores;
mod topology;
mod warm;
mod watch;
mod wipe;
