//! Whole agents against a real broker: with a launcher that can be made to fail, and with the real one.

mod fake;
mod world;

mod budget;
mod cancel;
mod container_network;
mod containers;
mod drain;
mod end_to_end;
mod faults;
mod fresh;
mod lambda;
mod microvms;
mod node_workers;
mod outcomes;
mod output;
mod payload;
mod process;
mod real;
mod sandboxes;
mod secrets;
mod versions;
mod workers;
