//! The threads that start holders.
//!
//! Those that serve executions are under a filter that refuses mounts and namespaces, since their children inherit it. A
//! holder needs both, and is nobody's function: so it is started by threads of its own, which never end (the kernel would take
//! a thread's end for the launcher's) and have no filter. They are a few because making a slot is mostly waiting in the kernel.
//! They also make what has to be made inside a slot's network.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{HolderLink, RootView, SlotError, SlotKey, pool};
use crate::config::Runner;
use crate::sys::process;

/// More would make a burst of new functions ready no sooner.
const MOST: u32 = 8;
const STACK_BYTES: usize = 128 << 10;

#[derive(Debug)]
enum Order {
    /// A holder, please.
    Holder { key: SlotKey, user: Runner, answer: SyncSender<Result<HolderLink, SlotError>> },
    /// A socket that listens in the network of this one.
    Listener { of: Arc<HolderLink>, answer: SyncSender<io::Result<TcpListener>> },
}

#[derive(Debug)]
struct Workshop {
    view: RootView,
    tmp_options: CString,
    own_namespace: OwnedFd,
    own_network: OwnedFd,
}

/// Who makes holders, for any thread that asks.
#[derive(Debug)]
pub(crate) struct Makers {
    orders: Sender<Order>,
}

impl Makers {
    /// Starts as many threads as could be busy when `askers` threads ask.
    pub(crate) fn start(view: RootView, tmp_bytes: u64, askers: u32) -> io::Result<Self> {
        let own_namespace = pool::own_namespace()?;
        let own_network = std::fs::File::open("/proc/self/ns/net")?.into();
        let tmp_options = pool::tmp_options(tmp_bytes);
        let workshop = Arc::new(Workshop { view, tmp_options, own_namespace, own_network });
        let (orders, received) = channel();
        let received = Arc::new(Mutex::new(received));
        for _ in 0..askers.clamp(1, MOST) {
            let (workshop, received) = (Arc::clone(&workshop), Arc::clone(&received));
            let maker = std::thread::Builder::new().name("flux-maker".to_owned()).stack_size(STACK_BYTES);
            maker.spawn(move || workshop.work(&received))?;
        }
        Ok(Makers { orders })
    }

    /// Starts a holder and waits until its slot is ready.
    pub(crate) fn make(&self, key: &SlotKey, user: Runner) -> Result<HolderLink, SlotError> {
        let (answer, made) = sync_channel(1);
        let gone = || SlotError::Holder(io::Error::from_raw_os_error(libc::ESRCH));
        self.orders.send(Order::Holder { key: key.clone(), user, answer }).map_err(|_| gone())?;
        made.recv().map_err(|_| gone())?
    }

    /// A socket that listens on the loopback address of a slot's own network.
    pub(crate) fn listen(&self, of: Arc<HolderLink>) -> io::Result<TcpListener> {
        let (answer, made) = sync_channel(1);
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        self.orders.send(Order::Listener { of, answer }).map_err(|_| gone())?;
        made.recv().map_err(|_| gone())?
    }
}

impl Workshop {
    fn work(&self, received: &Mutex<Receiver<Order>>) {
        if let Err(error) = process::prepare_thread(true) {
            eprintln!("flux launcher: a thread could not give up its privileges: {error}");
            std::process::exit(1);
        }
        loop {
            let order = received.lock().unwrap_or_else(PoisonError::into_inner).recv();
            // Nobody waits any more only when the launcher ends: then the holder ends with its link.
            match order {
                Ok(Order::Holder { key, user, answer }) => {
                    let own = self.own_namespace.as_fd();
                    let _ = answer.send(HolderLink::start(&self.view, &key, user, &self.tmp_options, own));
                }
                Ok(Order::Listener { of, answer }) => drop(answer.send(self.listen(&of))),
                Err(_) => break,
            }
        }
        // Its holders would end with it: the process's end is the main thread's to choose.
        loop {
            std::thread::park();
        }
    }

    fn listen(&self, of: &HolderLink) -> io::Result<TcpListener> {
        process::enter_network(of.pidfd().as_fd())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        if let Err(error) = process::enter_network(self.own_network.as_fd()) {
            // It would make its next holder in a function's network.
            eprintln!("flux launcher: a thread cannot leave a slot's network: {error}");
            std::process::exit(1);
        }
        listener
    }
}
