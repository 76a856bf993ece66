//! Classic BPF for seccomp: just enough of an assembler.

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    Errno(i32),
    /// The whole process ends by `SIGSYS`.
    Kill,
}

impl Answer {
    fn action(self) -> u32 {
        match self {
            Answer::Allow => libc::SECCOMP_RET_ALLOW,
            Answer::Errno(errno) => libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & libc::SECCOMP_RET_DATA),
            Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// What an instruction can look at: offsets in `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    Number,
    Architecture,
    /// The lower half of an argument: all that the kernel itself reads of an `int`.
    Argument(u8),
}

impl Word {
    fn offset(self) -> u32 {
        match self {
            Word::Number => 0,
            Word::Architecture => 4,
            // Little-endian: the lower half comes first.
            Word::Argument(index) => 16 + 8 * u32::from(index),
        }
    }
}

/// How a loaded word is compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Test {
    Equal(u32),
    AtLeast(u32),
    AnyBit(u32),
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// A program as it is written, top to bottom.
#[derive(Debug, Default)]
pub(super) struct Program(Vec<libc::sock_filter>);

impl Program {
    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> &mut Self {
        #[allow(clippy::cast_possible_truncation)] // every opcode is below 256
        self.0.push(libc::sock_filter { code: code as u16, jt, jf, k });
        self
    }

    pub(super) fn load(&mut self, word: Word) -> &mut Self {
        self.push(LOAD, word.offset(), 0, 0)
    }

    /// Keeps only these bits of the loaded word.
    pub(super) fn mask(&mut self, bits: u32) -> &mut Self {
        self.push(AND, bits, 0, 0)
    }

    pub(super) fn answer(&mut self, answer: Answer) -> &mut Self {
        self.push(RETURN, answer.action(), 0, 0)
    }

    /// Answers at once if the loaded word passes the test.
    pub(super) fn answer_if(&mut self, test: Test, answer: Answer) -> &mut Self {
        self.jump(test, 0, 1).answer(answer)
    }

    /// Answers at once unless the loaded word passes the test.
    pub(super) fn answer_unless(&mut self, test: Test, answer: Answer) -> &mut Self {
        self.jump(test, 1, 0).answer(answer)
    }

    /// Runs `then`, which must end with an answer, if the loaded word passes the test. What follows has the same word.
    pub(super) fn when(&mut self, test: Test, then: impl FnOnce(&mut Program)) -> &mut Self {
        let mut block = Program::default();
        then(&mut block);
        let over = u8::try_from(block.0.len()).unwrap_or(u8::MAX);
        debug_assert_eq!(usize::from(over), block.0.len());
        self.jump(test, 0, over).0.append(&mut block.0);
        self
    }

    fn jump(&mut self, test: Test, yes: u8, no: u8) -> &mut Self {
        let (kind, k) = match test {
            Test::Equal(k) => (libc::BPF_JEQ, k),
            Test::AtLeast(k) => (libc::BPF_JGE, k),
            Test::AnyBit(k) => (libc::BPF_JSET, k),
        };
        self.push(libc::BPF_JMP | kind | libc::BPF_K, k, yes, no)
    }

    pub(super) fn finish(self) -> Vec<libc::sock_filter> {
        self.0
    }
}
