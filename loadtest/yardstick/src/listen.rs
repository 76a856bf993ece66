//! Serving until told to stop.

use std::net::SocketAddr;

use axum::Router;
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener, signal::unix};

#[derive(clap::Args)]
pub(crate) struct ListenArgs {
    /// Where to listen; port 0 takes a free one, and the printed line says which.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// End when standard input is closed: a server that cannot outlive who started it.
    #[arg(long)]
    until_eof: bool,
}

/// Prints `{"listening": "127.0.0.1:4711"}` and serves until SIGINT, SIGTERM or, where asked for, end of input.
pub(crate) async fn serve(args: ListenArgs, router: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    crate::print_line(&json!({ "listening": listener.local_addr()?.to_string() }));
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| { let _ = stream.set_nodelay(true); }), router) => served?,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        () = end_of_input(), if args.until_eof => {}
    }
    Ok(())
}

pub(crate) async fn end_of_input() {
    let mut byte = [0];
    while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
}
