//! Whose a connection is, as the kernel says: `sock_diag` finds the other end of it by its addresses (Linux, `inet_diag.h`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const HEADER: usize = 16;
/// A family, three small numbers and the states of `inet_diag_req_v2`, then its socket id.
const QUESTION: usize = HEADER + 8 + SOCKET_ID;
const SOCKET_ID: usize = 48;
/// After the header: four small numbers, a socket id, and three numbers of `inet_diag_msg`.
const UID_AT: usize = HEADER + 4 + SOCKET_ID + 12;
const ANY_STATE: u32 = u32::MAX;
const NO_COOKIE: [u8; 8] = [0xff; 8];
const TCP: u8 = 6;
const IPV4: u8 = 2;
/// `ENOENT`, negated as it comes.
const NO_SUCH: i32 = -2;

/// The user of the socket at `from` that is connected to `to`, both of this machine and IPv4; `None` where there is none.
pub(super) fn of_connection(from: SocketAddr, to: SocketAddr) -> io::Result<Option<u32>> {
    let asking = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkSockDiag,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(asking.as_raw_fd(), &question(from, to)?, &kernel, MsgFlags::empty())?;
    // The kernel has answered when the question was taken.
    let mut answer = [0; 1024];
    let len = recv(asking.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read(answer.get(..len).unwrap_or_default())
}

fn question(from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let (IpAddr::V4(from_ip), IpAddr::V4(to_ip)) = (from.ip(), to.ip()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an IPv4 connection"));
    };
    let mut bytes = Vec::with_capacity(QUESTION);
    bytes.extend(u32::try_from(QUESTION).unwrap_or_default().to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, and the asker's port
    bytes.extend([IPV4, TCP, 0, 0]);
    bytes.extend(ANY_STATE.to_ne_bytes());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    for ip in [from_ip, to_ip] {
        bytes.extend(ip.octets());
        bytes.extend([0; 12]);
    }
    bytes.extend([0; 4]); // any interface
    bytes.extend(NO_COOKIE);
    Ok(bytes)
}

fn read(answer: &[u8]) -> io::Result<Option<u32>> {
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "a short answer");
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).ok_or_else(short);
    let [kind, kind_high, ..] = word(4)?;
    match u16::from_ne_bytes([kind, kind_high]) {
        SOCK_DIAG_BY_FAMILY => Ok(Some(u32::from_ne_bytes(word(UID_AT)?))),
        ERROR => match i32::from_ne_bytes(word(HEADER)?) {
            NO_SUCH => Ok(None),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        other => Err(io::Error::other(format!("an answer of kind {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_its_makers() {
        let listener = TcpListener::bind("127.128.0.7:0").expect("an address");
        let to = listener.local_addr().expect("an address");
        let made = TcpStream::connect(to).expect("connected");
        let (_accepted, from) = listener.accept().expect("accepted");
        let own = nix::unistd::getuid().as_raw();
        assert_eq!(of_connection(from, to).expect("an answer"), Some(own));
        drop(made);
        let nobody = SocketAddr::new(from.ip(), 1);
        assert_eq!(of_connection(nobody, to).expect("an answer"), None);
    }
}
