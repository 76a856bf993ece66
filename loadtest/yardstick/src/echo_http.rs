//! The floor of everything over HTTP.

use axum::{Router, body::Bytes, routing::any};

use crate::listen::{ListenArgs, serve};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: ListenArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    serve(args.listen, Router::new().fallback(any(|body: Bytes| async { body }))).await
}
