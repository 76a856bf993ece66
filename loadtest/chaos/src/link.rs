//! A connection that can be made bad: a relay on loopback between one process of Flux and one server of the queue, or between
//! two servers of its cluster.
//!
//! It stands for what `tc netem` does where a kernel has it (many do not): what passes is delayed, or held back while
//! the connection stays open, or the connection is reset.

use std::{net::Ipv4Addr, time::Duration};

use flux_runtime::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

const CHUNK: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Clear,
    /// Each chunk is this late.
    Slow(Duration),
    Stalled(Ways),
    /// What is open is reset; what comes after is well.
    Broken,
}

/// Which way nothing passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ways {
    Both,
    /// To the one who was connected to.
    There,
    Back,
}

impl Weather {
    fn is_stalled(self) -> bool {
        matches!(self, Self::Stalled(_))
    }

    fn stalls(self, way: Ways) -> bool {
        matches!(self, Self::Stalled(stalled) if stalled == way || stalled == Ways::Both)
    }
}

pub(crate) struct Link {
    pub(crate) port: u16,
    weather: watch::Sender<Weather>,
}

impl Link {
    /// To this port, from one of its own.
    pub(crate) async fn to(target: u16, tasks: &Tasks) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, flux_testkit::free_port())).await?;
        let port = listener.local_addr()?.port();
        let (weather, watched) = watch::channel(Weather::Clear);
        let shared = tasks.clone();
        tasks.spawn("link", async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        shared.spawn("relay", relay(client, target, watched.clone()));
                    }
                    () = shared.shutdown().draining() => return,
                }
            }
        });
        Ok(Self { port, weather })
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn relay(client: TcpStream, target: u16, mut weather: watch::Receiver<Weather>) {
    // A new connection takes a packet each way.
    if weather.wait_for(|weather| !weather.is_stalled()).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    // Closed with a reset, whichever side looks.
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_zero_linger();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut broken = weather.clone();
    tokio::select! {
        () = pump(from_client, to_server, Ways::There, weather.clone()) => {}
        () = pump(from_server, to_client, Ways::Back, weather) => {}
        _ = broken.wait_for(|weather| *weather == Weather::Broken) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Ways, mut weather: watch::Receiver<Weather>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(length) = from.read(&mut chunk).await else { return };
        if length == 0 {
            return;
        }
        if weather.wait_for(|weather| !weather.stalls(way)).await.is_err() {
            return;
        }
        let late = match *weather.borrow() {
            Weather::Slow(late) => late,
            _ => Duration::ZERO,
        };
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}
