//! The words of Flux as they are on the wire, and their properties.

mod earlier;
mod golden;
mod output;
mod properties;
mod seeds;
mod yaml;
