//! A cloud: its metadata service, and servers on a machine of it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

const PROGRAM: &str = include_str!("cloud.py");
/// A web server, and names.
const OF_METADATA: [u16; 2] = [80, 53];

/// A network namespace, for this thread and all that it starts from now on, with a cloud in it: its metadata's addresses, and those of
/// one machine. Ended when dropped.
#[derive(Debug)]
pub struct Cloud(Child);

impl Cloud {
    /// The machine's addresses, beside loopback.
    pub const MACHINE: [&str; 2] = ["192.0.2.7", "2001:db8::7"];

    /// Something listens at `ports` of every address, and at those of metadata. Needs root's rights.
    pub fn start(ports: &[u16]) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
        let [machine, machine_v6] = Self::MACHINE;
        let ports: Vec<String> = OF_METADATA.iter().chain(ports).map(u16::to_string).collect();
        let mut serving = Command::new("/usr/bin/python3")
            .args(["-I", "-c", PROGRAM])
            .arg(format!("169.254.169.254,168.63.129.16,100.100.100.200,{machine}"))
            .arg(format!("fd00:ec2::254,{machine_v6}"))
            .arg(ports.join(","))
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let said = serving.stdout.take().expect("piped");
        // From here on it is ended, whatever it says.
        let cloud = Self(serving);
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n");
        cloud
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
