//! A warm Python worker, seen through the guest's agent.

use bytes::Bytes;
use flux_protocol::function::Runtime;
use flux_shim::{
    FromShim, Start, Stream, ToShim,
    guest::{CODE, USER},
};
use flux_worker::{Call, Decoder, FromWorker, Load, ToWorker, bootstrap, frame::SEED};

use crate::Line;

/// How a program of the code, or an interpreter, is started as functions are.
pub fn function(program: &str) -> Start {
    Start {
        program: program.to_owned(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        directory: CODE.to_owned(),
        user: Some((USER, USER)),
        ..Start::default()
    }
}

#[derive(Debug)]
pub struct Python {
    pub line: Line,
    decoder: Decoder,
    pub printed: String,
}

impl Python {
    /// Starts one that loads `main.handler`; its number in the guest.
    ///
    /// # Panics
    /// It does not become ready.
    pub fn start(mut line: Line) -> (Self, u32) {
        let python = bootstrap::of(Runtime::Python).expect("it has workers");
        let args = python.arguments.iter().map(|arg| (*arg).to_owned()).collect();
        let pid = line.start(Start { channel: true, args, ..function("/usr/bin/python3") });
        let mut worker = Self::of(line);
        worker.say(&ToWorker::Program(python.program), b"");
        let load = Load { files: vec!["main.py".to_owned()], function: Some("handler".to_owned()), fresh: false };
        worker.say(&ToWorker::Load(&load), b"");
        assert!(matches!(worker.hear(), Ok(FromWorker::Hello { .. })));
        assert_eq!(worker.hear(), Ok(FromWorker::Ready { cannot_fork: None }));
        (worker, pid)
    }

    /// One that an earlier connection started.
    ///
    /// # Panics
    /// There is none.
    pub fn again(mut line: Line) -> (Self, u32) {
        match line.hear() {
            FromShim::Started { pid, .. } => (Self::of(line), pid),
            other => panic!("{other:?}"),
        }
    }

    fn of(line: Line) -> Self {
        Self { line, decoder: Decoder::default(), printed: String::new() }
    }

    fn say(&mut self, said: &ToWorker<'_>, payload: &[u8]) {
        let mut bytes = Vec::new();
        said.encode_head(&mut bytes);
        bytes.extend_from_slice(payload);
        self.line.say(&ToShim::Channel(bytes));
    }

    pub fn reseed(&mut self, seed: &[u8; SEED]) {
        self.say(&ToWorker::Reseed(seed), b"");
    }

    fn hear(&mut self) -> Result<FromWorker, FromShim> {
        loop {
            if let Some(said) = self.decoder.next_frame().expect("a frame") {
                return Ok(said);
            }
            match self.line.hear() {
                FromShim::Channel { bytes, .. } => self.decoder.buffer().extend_from_slice(&bytes),
                FromShim::Output(Stream::Stdout, bytes) => self.printed.push_str(&String::from_utf8_lossy(&bytes)),
                other => return Err(other),
            }
        }
    }

    /// Calls the handler; its result.
    ///
    /// # Errors
    /// What the guest's agent said in its place, such as that the worker ended.
    ///
    /// # Panics
    /// The handler raised.
    pub fn call(&mut self, payload: &str) -> Result<String, FromShim> {
        let call = Call {
            execution_id: "exc-1".to_owned(),
            function: "f".to_owned(),
            version: 1,
            attempt: 1,
            deadline_ms: None,
            args: Vec::new(),
            traceparent: String::new(),
        };
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.say(&ToWorker::Invoke(&call, &payload), &payload);
        match self.hear()? {
            FromWorker::Result(_, json) => Ok(String::from_utf8_lossy(&json).into_owned()),
            other => panic!("{other:?}"),
        }
    }
}
