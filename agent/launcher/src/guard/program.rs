//! Extended BPF for [`Rules`]: comparisons with constants and forward jumps; of the kernel's functions, the one that tells the user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rules::{DNS, Network, Rules, WORKERS};
use crate::sys::bpf::{Hook, Instruction};

/// Offsets in `struct bpf_sock_addr`; addresses and port lie there as on the wire.
const IP: i16 = 4;
const IPV6: [i16; 4] = [8, 12, 16, 20];
const PORT: i16 = 24;

/// Which register holds what.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const V4: u8 = 2;
/// Read after a call, which leaves this one alone.
const AT_PORT: u8 = 9;
const SCRATCH: u8 = 4;
const WORDS: [u8; 4] = [5, 6, 7, 8];

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND_32: u8 = 0x54;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL_32: u8 = 0x16;
const JUMP_UNLESS_EQUAL_32: u8 = 0x56;
const EXIT: u8 = 0x95;
const CALL: u8 = 0x85;
const ADD_32: u8 = 0x04;
/// Onto itself it clears the upper half.
const MOVE_32: u8 = 0xbc;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP_UNLESS_SAME_32: u8 = 0x5e;

/// `bpf_get_current_uid_gid`: the user in the lower half.
const WHO: u32 = 15;
/// A register that calls leave alone.
const SAVED: u8 = 6;

/// The last four bytes of such an address are an IPv4 one: `::ffff:0:0/96`, and the well-known prefix of NAT64.
const V4_INSIDE: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)];

/// `fe80::/64`.
const LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// Where a jump goes; filled in at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Deny,
    V4,
    Workers,
    LocalPorts,
    Here(usize),
}

#[derive(Debug, Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    places: Vec<(Label, usize)>,
    labels: usize,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, constant: u32) {
        self.code.push(Instruction { code, registers: to | from << 4, offset, constant });
    }

    fn load(&mut self, to: u8, offset: i16) {
        self.push(LOAD_WORD, to, CONTEXT, offset, 0);
    }

    fn jump(&mut self, code: u8, register: u8, constant: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(code, register, 0, 0, constant);
    }

    fn fresh(&mut self) -> Label {
        self.labels += 1;
        Label::Here(self.labels)
    }

    fn place(&mut self, label: Label) {
        self.places.push((label, self.code.len()));
    }

    /// What is jumped to, if anything jumps there: the kernel takes no program with a part that is never reached.
    fn part(&mut self, label: Label, body: impl FnOnce(&mut Self)) {
        if self.jumps.iter().any(|(_, to)| *to == label) {
            self.place(label);
            body(self);
        }
    }

    fn end(&mut self, allowed: bool) {
        self.push(SET, RESULT, 0, 0, u32::from(allowed));
        self.push(EXIT, 0, 0, 0, 0);
    }

    fn if_in(&mut self, net: Network, label: Label) {
        let mask = u32::MAX.checked_shl(32 - net.bits).unwrap_or(0);
        self.push(MOVE, SCRATCH, V4, 0, 0);
        self.push(AND_32, SCRATCH, 0, 0, as_loaded(mask.to_be_bytes()));
        self.jump(JUMP_IF_EQUAL_32, SCRATCH, of_v4(net.address), label);
    }

    /// `len` words of the address.
    fn if_words(&mut self, address: Ipv6Addr, len: usize, then: impl FnOnce(&mut Self)) {
        let other = self.fresh();
        for (register, word) in WORDS.into_iter().zip(words_of(address)).take(len) {
            self.jump(JUMP_UNLESS_EQUAL_32, register, word, other);
        }
        then(self);
        self.place(other);
    }

    fn if_port(&mut self, port: u16, label: Label) {
        self.jump(JUMP_IF_EQUAL_32, AT_PORT, of_port(port), label);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.places.iter().find(|(l, _)| *l == label).map_or(0, |(_, place)| *place);
            // Every label is placed behind the jumps to it, and no list is long enough to overflow.
            self.code[at].offset = i16::try_from(target.saturating_sub(at + 1)).unwrap_or(i16::MAX);
        }
        self.code
    }
}

fn as_loaded(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

fn of_v4(address: Ipv4Addr) -> u32 {
    as_loaded(address.octets())
}

fn of_port(port: u16) -> u32 {
    u16::from_ne_bytes(port.to_be_bytes()).into()
}

fn words_of(address: Ipv6Addr) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h] = address.segments().map(u16::to_be_bytes);
    [[a, b], [c, d], [e, f], [g, h]].map(|[x, y]| as_loaded([x[0], x[1], y[0], y[1]]))
}

/// The program of one hook.
pub(super) fn of(hook: Hook, rules: &Rules) -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.load(AT_PORT, PORT);
    match hook {
        // To listen where a server of Flux does would be to take its place when that starts again.
        Hook::Bind4 | Hook::Bind6 => {
            for &port in &rules.taken_ports {
                a.if_port(port, Label::Deny);
            }
            a.end(true);
        }
        Hook::Connect4 | Hook::Send4 => {
            a.load(V4, IP);
            v4(&mut a, rules);
        }
        Hook::Connect6 | Hook::Send6 => {
            for (register, offset) in WORDS.into_iter().zip(IPV6) {
                a.load(register, offset);
            }
            v6(&mut a, rules);
            a.part(Label::V4, |a| {
                a.push(MOVE, V4, WORDS[3], 0, 0);
                v4(a, rules);
            });
        }
    }
    if let Some(first_uid) = rules.first_uid {
        a.part(Label::Workers, |a| own_server(a, first_uid));
    }
    a.part(Label::LocalPorts, |a| {
        for &port in &rules.local_ports {
            a.if_port(port, Label::Deny);
        }
        a.end(true);
    });
    a.part(Label::Deny, |a| a.end(false));
    a.finish()
}

/// Only the address that is as far from the first as the user is from the first user. What else listens on all addresses is
/// there as well.
fn own_server(a: &mut Assembler, first_uid: u32) {
    a.push(MOVE, SAVED, V4, 0, 0);
    a.push(CALL, 0, 0, 0, WHO);
    a.push(MOVE_32, RESULT, RESULT, 0, 0);
    a.push(ADD_32, RESULT, 0, 0, WORKERS.address.to_bits().wrapping_sub(first_uid));
    a.push(TO_BIG_ENDIAN, RESULT, 0, 0, 32);
    a.jumps.push((a.code.len(), Label::Deny));
    a.push(JUMP_UNLESS_SAME_32, RESULT, SAVED, 0, 0);
    a.jump(JUMP, 0, 0, Label::LocalPorts);
}

fn v4(a: &mut Assembler, rules: &Rules) {
    let names = a.fresh();
    a.if_port(DNS, names);
    for &net in &rules.metadata {
        a.if_in(net, Label::Deny);
    }
    a.place(names);
    if rules.first_uid.is_some() {
        a.if_in(WORKERS, Label::Workers);
    }
    for &net in &rules.local {
        a.if_in(net, Label::LocalPorts);
    }
    for server in &rules.servers {
        if let IpAddr::V4(ip) = server.ip() {
            let other = a.fresh();
            a.jump(JUMP_UNLESS_EQUAL_32, V4, of_v4(ip), other);
            a.if_port(server.port(), Label::Deny);
            a.place(other);
        }
    }
    a.end(true);
}

fn v6(a: &mut Assembler, rules: &Rules) {
    for prefix in V4_INSIDE {
        a.if_words(prefix, 3, |a| a.jump(JUMP, 0, 0, Label::V4));
    }
    let names = a.fresh();
    a.if_port(DNS, names);
    for &address in &rules.metadata_v6 {
        a.if_words(address, 4, |a| a.jump(JUMP, 0, 0, Label::Deny));
    }
    a.place(names);
    if rules.link_is_local {
        a.if_words(LINK, 2, |a| a.jump(JUMP, 0, 0, Label::LocalPorts));
    }
    for &address in &rules.local_v6 {
        a.if_words(address, 4, |a| a.jump(JUMP, 0, 0, Label::LocalPorts));
    }
    for server in &rules.servers {
        if let IpAddr::V6(ip) = server.ip() {
            a.if_words(ip, 4, |a| a.if_port(server.port(), Label::Deny));
        }
    }
    a.end(true);
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// What the kernel's interpreter would return: of the instructions, those that the assembler writes.
    fn run(code: &[Instruction], to: SocketAddr) -> bool {
        run_as(code, to, FIRST_UID - 1)
    }

    const FIRST_UID: u32 = 1_879_048_192;

    fn run_as(code: &[Instruction], to: SocketAddr, uid: u32) -> bool {
        let mut context = [0u8; 32];
        match to.ip() {
            IpAddr::V4(ip) => context[4..8].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => context[8..24].copy_from_slice(&ip.octets()),
        }
        context[24..26].copy_from_slice(&to.port().to_be_bytes());
        let (mut registers, mut at) = ([0u64; 10], 0);
        loop {
            let step = code[at];
            at += 1;
            let (to, from) = (usize::from(step.registers & 0xF), usize::from(step.registers >> 4));
            let jump = usize::try_from(step.offset).unwrap();
            #[allow(clippy::cast_possible_truncation)] // as the 32-bit instructions do
            let low = registers[to] as u32;
            match step.code {
                LOAD_WORD => registers[to] = as_loaded(context[jump..jump + 4].try_into().unwrap()).into(),
                MOVE => registers[to] = registers[from],
                SET => registers[to] = step.constant.into(),
                AND_32 => registers[to] = (low & step.constant).into(),
                JUMP => at += jump,
                JUMP_IF_EQUAL_32 => at += if low == step.constant { jump } else { 0 },
                JUMP_UNLESS_EQUAL_32 => at += if low == step.constant { 0 } else { jump },
                CALL => {
                    registers[..=5].fill(0xDEAD_BEEF_DEAD_BEEF);
                    registers[0] = u64::from(uid) | 0xABCD << 32;
                }
                MOVE_32 => registers[to] = registers[from] & 0xFFFF_FFFF,
                ADD_32 => registers[to] = low.wrapping_add(step.constant).into(),
                TO_BIG_ENDIAN => registers[to] = low.to_be().into(),
                JUMP_UNLESS_SAME_32 => at += if u64::from(low) == registers[from] { 0 } else { jump },
                EXIT => return registers[0] == 1,
                code => panic!("{code:#x} is not written by the assembler"),
            }
        }
    }

    fn rules() -> Rules {
        let servers = ["127.0.0.1:4222", "192.0.2.7:6222", "198.51.100.9:4222", "[2001:db8::9]:4222", "[::1]:8222"];
        let own = ["127.0.0.1", "192.0.2.7", "2001:db8::7", "::1"];
        let listeners = ["0.0.0.0:7227", "127.0.0.1:7227", "127.0.0.1:0"].map(|s| s.parse().unwrap());
        Rules::new(&servers.map(|s| s.parse().unwrap()), &listeners, &own.map(|s| s.parse().unwrap()), Some(FIRST_UID))
    }

    #[test]
    fn a_user_reaches_the_server_of_its_own_worker_alone() {
        let connect = |rules: &Rules, to: &str, uid: u32| {
            let to: SocketAddr = to.parse().unwrap();
            let hook = if to.is_ipv4() { Hook::Connect4 } else { Hook::Connect6 };
            run_as(&of(hook, rules), to, uid)
        };
        let rules = rules();
        assert_eq!(super::super::worker_address(0x0102), Ipv4Addr::new(127, 128, 1, 2));
        for (uid, address) in [(0, "127.128.0.0"), (7, "127.128.0.7"), (0x0002_0103, "127.130.1.3")] {
            let uid = FIRST_UID + uid;
            assert!(connect(&rules, &format!("{address}:9001"), uid), "{address}");
            assert!(connect(&rules, &format!("[::ffff:{address}]:9001"), uid), "{address}");
            assert!(!connect(&rules, &format!("{address}:9001"), uid + 1), "{address}");
            assert!(!connect(&rules, &format!("[::ffff:{address}]:9001"), uid + 1), "{address}");
            assert!(!connect(&rules, &format!("{address}:4222"), uid), "Flux's own port, also there");
            assert!(connect(&rules, "127.0.0.1:9001", uid), "other addresses of the machine are as before");
        }
        let shared = Rules { first_uid: None, ..rules };
        assert!(connect(&shared, "127.128.0.7:9001", FIRST_UID));
    }

    fn allowed(to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        let hooks = if to.is_ipv4() { [Hook::Connect4, Hook::Send4] } else { [Hook::Connect6, Hook::Send6] };
        let [connect, send] = hooks.map(|hook| run(&of(hook, &rules()), to));
        assert_eq!(connect, send);
        connect
    }

    #[test]
    fn metadata_is_refused_and_its_names_are_not() {
        for to in [
            "169.254.169.254:80",
            "169.254.170.2:80",
            "168.63.129.16:80",
            "168.63.129.16:32526",
            "100.100.100.200:80",
            "[fd00:ec2::254]:80",
            "[fd20:ce::254]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
        ] {
            assert!(!allowed(to), "{to}");
        }
        for to in
            ["169.254.169.254:53", "[fd00:ec2::254]:53", "168.63.129.17:80", "169.253.0.1:80", "[fd00:ec2::255]:80"]
        {
            assert!(allowed(to), "{to}");
        }
    }

    #[test]
    fn own_servers_are_refused_at_every_address_of_this_machine() {
        for host in
            ["127.0.0.1", "127.3.2.1", "0.0.0.0", "192.0.2.7", "[::1]", "[::]", "[2001:db8::7]", "[::ffff:127.0.0.1]"]
        {
            for port in [4222, 6222, 8222] {
                assert!(!allowed(&format!("{host}:{port}")), "{host} {port}");
            }
            assert!(allowed(&format!("{host}:7227")), "{host}");
            // The DNS server of many machines.
            assert!(allowed(&format!("{host}:53")), "{host}");
        }
    }

    #[test]
    fn servers_elsewhere_are_refused_at_their_own_port() {
        for to in ["198.51.100.9:4222", "[::ffff:198.51.100.9]:4222", "[2001:db8::9]:4222"] {
            assert!(!allowed(to), "{to}");
        }
        for to in ["198.51.100.9:4223", "198.51.100.8:4222", "[2001:db8::9]:443", "[2001:db8::8]:4222"] {
            assert!(allowed(to), "{to}");
        }
    }

    #[test]
    fn who_is_apart_has_a_loopback_of_its_own_and_reaches_this_machine_by_its_other_addresses() {
        let servers = ["127.0.0.1:4222", "198.51.100.9:4222", "[2001:db8::9]:4222"].map(|s| s.parse().unwrap());
        let own = ["127.0.0.1", "172.17.0.1", "192.0.2.7", "2001:db8::7", "::1"].map(|s| s.parse().unwrap());
        let rules = Rules::from_apart(&servers, &own);
        for (to, allowed) in [
            ("127.0.0.1:4222", true),
            ("0.0.0.0:4222", true),
            ("[::1]:4222", true),
            ("172.17.0.1:4222", false),
            ("172.17.0.1:8080", true),
            ("172.17.0.2:4222", true),
            ("192.0.2.7:4222", false),
            ("[::ffff:172.17.0.1]:4222", false),
            ("[2001:db8::7]:4222", false),
            ("[fe80::42:aff:fe00:1]:4222", false),
            ("[fe80::42:aff:fe00:1]:8080", true),
            ("[fe81::1]:4222", true),
            ("198.51.100.9:4222", false),
            ("[2001:db8::9]:4222", false),
            ("169.254.169.254:80", false),
            ("169.254.169.254:53", true),
            ("[fd00:ec2::254]:80", false),
            ("[fe80::a9fe:a9fe]:80", false),
            ("192.0.2.1:443", true),
        ] {
            let to: SocketAddr = to.parse().unwrap();
            for hook in if to.is_ipv4() { [Hook::Connect4, Hook::Send4] } else { [Hook::Connect6, Hook::Send6] } {
                assert_eq!(run(&of(hook, &rules), to), allowed, "{to} {hook:?}");
            }
        }
        for hook in [Hook::Bind4, Hook::Bind6] {
            assert!(run(&of(hook, &rules), SocketAddr::from(([0, 0, 0, 0], 4222))), "it listens where it likes");
        }
    }

    #[test]
    fn nobody_listens_in_a_servers_place() {
        for hook in [Hook::Bind4, Hook::Bind6] {
            let bind = |port: u16| run(&of(hook, &rules()), SocketAddr::from(([0, 0, 0, 0], port)));
            assert!(!bind(4222) && !bind(8222) && !bind(7227) && bind(0) && bind(8080));
        }
    }

    #[test]
    fn every_instruction_is_reached_and_none_outside() {
        let one = ["127.0.0.1:4222".parse().unwrap()];
        let no_own_uids = Rules { first_uid: None, ..rules() };
        let few = [(&[] as &[_], &[] as &[_]), (&one, &[]), (&[], &one)]
            .map(|(servers, listeners)| [None, Some(FIRST_UID)].map(|uid| Rules::new(servers, listeners, &[], uid)));
        let apart = [Rules::from_apart(&one, &["192.0.2.7".parse().unwrap()]), Rules::from_apart(&[], &[])];
        for rules in [rules(), no_own_uids].into_iter().chain(apart).chain(few.into_iter().flatten()) {
            for hook in Hook::ALL {
                let code = of(hook, &rules);
                let (mut reached, mut ways) = (vec![false; code.len()], vec![0]);
                while let Some(at) = ways.pop() {
                    if std::mem::replace(&mut reached[at], true) {
                        continue;
                    }
                    let jump = at + 1 + usize::try_from(code[at].offset).unwrap();
                    match code[at].code {
                        EXIT => {}
                        JUMP => ways.push(jump),
                        JUMP_IF_EQUAL_32 | JUMP_UNLESS_EQUAL_32 | JUMP_UNLESS_SAME_32 => ways.extend([at + 1, jump]),
                        _ => ways.push(at + 1),
                    }
                }
                assert!(reached.iter().all(|&yes| yes), "{hook:?} {rules:?}");
            }
        }
    }
}
