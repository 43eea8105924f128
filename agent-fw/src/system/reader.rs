//! Files that somebody else may have put somewhere are read by another process. A file system that does
//! not answer keeps whoever reads from it waiting, for ever and beyond SIGKILL; here it keeps nobody
//! waiting for longer than a deadline.

use super::file::{self, Trust};
use anyhow::{Context as _, anyhow};
use nix::unistd::close;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The subcommand that reads for another agent-fw.
pub const COMMAND: &str = "read-files";

/// So long a file is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// So long the others are, for a while after one that did not answer: they may be beside it.
const LITTLE_PATIENCE: Duration = Duration::from_millis(250);
const A_WHILE: Duration = Duration::from_mins(1);

/// Whether another process reads: in the command, not where this is used as a library.
static IS_USED: AtomicBool = AtomicBool::new(false);
static READER: Mutex<State> = Mutex::new(State { process: None, silence: None });

struct State {
    process: Option<Process>,
    /// When a file did not answer.
    silence: Option<Instant>,
}

/// What is asked about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// Its text, if there is such a file.
    Text,
    /// The bytes of a list.
    List,
    /// Whether others can change it.
    IsOthers,
    /// Whether it is there at the next boot.
    IsLasting,
}

impl Wish {
    const ALL: [Self; 4] = [Self::Text, Self::List, Self::IsOthers, Self::IsLasting];
}

/// What there is to say of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// There is no such file.
    Nothing,
    Bytes(Vec<u8>),
    Truth(bool),
}

/// Has files read by another process from now on.
pub fn use_another_process() {
    IS_USED.store(true, Ordering::Relaxed);
}

/// Lets go of that process until a file is to be read again.
pub fn dismiss() {
    let process = READER.lock().unwrap_or_else(PoisonError::into_inner).process.take();
    if let Some(Process { mut child, questions, .. }) = process {
        // It ends when it is asked nothing more.
        drop(questions);
        drop(child.wait());
    }
}

/// Asks that process; `None` where this one is to look itself.
pub(super) fn ask(wish: Wish, path: &Path, trust: Trust) -> Option<anyhow::Result<Answer>> {
    if !IS_USED.load(Ordering::Relaxed) {
        return None;
    }
    let mut state = READER.lock().unwrap_or_else(PoisonError::into_inner);
    Some(state.ask(wish, path, trust))
}

impl State {
    fn ask(&mut self, wish: Wish, path: &Path, trust: Trust) -> anyhow::Result<Answer> {
        let patience = match self.silence {
            Some(silence) if silence.elapsed() < A_WHILE => LITTLE_PATIENCE,
            _ => PATIENCE,
        };
        let mut process = match self.process.take() {
            Some(process) => process,
            None => Process::start().context("cannot start what reads files")?,
        };
        let asked = process.ask(wish, path, trust).context("cannot ask what reads files")?;
        match asked.recv_timeout(patience) {
            Ok(Ok(answer)) => {
                self.process = Some(process);
                answer.map_err(|causes| with_causes(&causes))
            }
            Err(RecvTimeoutError::Timeout) => {
                self.silence = Some(Instant::now());
                process.give_up();
                Err(NoAnswer { path: path.to_owned() }.into())
            }
            // It is the last that it says.
            Ok(Err(error)) => {
                process.give_up();
                let what = format!("cannot read {}: what should read it has ended", path.display());
                Err(error).context(what)
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(anyhow!("cannot read {}: what should read it has ended", path.display()))
            }
        }
    }
}

/// A file that was not read in time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "cannot read {}: the file system that it is on does not answer; mount that again, or name a copy \
     of the file on a local disk instead",
    path.display()
)]
struct NoAnswer {
    path: PathBuf,
}

/// What went wrong and why, in one text that has each cause apart.
fn causes_of(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\0")
}

/// The error that has these causes.
fn with_causes(causes: &str) -> anyhow::Error {
    let (causes, last) = causes.rsplit_once('\0').unwrap_or(("", causes));
    let causes = causes.rsplit('\0').filter(|cause| !cause.is_empty());
    causes.fold(anyhow!("{last}"), |error, cause| error.context(cause.to_owned()))
}

/// An answer, or why there is none.
type Said = Result<Answer, String>;

/// The process that reads.
struct Process {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<io::Result<Said>>,
}

impl Process {
    fn start() -> io::Result<Self> {
        let mut reader = Command::new("/proc/self/exe");
        let reader = reader.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = reader.stderr(Stdio::null()).spawn()?;
        let (questions, output) = (child.stdin.take(), child.stdout.take());
        let (Some(questions), Some(mut output)) = (questions, output) else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        let (said, answers) = mpsc::channel();
        // A thread that waits for a pipe ends with this process; one that waits for a file might not.
        std::thread::spawn(move || {
            loop {
                let answer = read_answer(&mut output);
                let is_over = answer.is_err();
                if said.send(answer).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Self { child, questions, answers })
    }

    fn ask(
        &mut self,
        wish: Wish,
        path: &Path,
        trust: Trust,
    ) -> io::Result<&Receiver<io::Result<Said>>> {
        let number = Wish::ALL.iter().position(|other| *other == wish).unwrap_or_default();
        let number = u8::try_from(number).map_err(io::Error::other)?;
        write_part(&mut self.questions, number, path.as_os_str().as_bytes())?;
        write_part(&mut self.questions, u8::from(trust == Trust::Anybody), &[])?;
        self.questions.flush()?;
        Ok(&self.answers)
    }

    /// It may never end: nobody waits for that but a thread.
    fn give_up(mut self) {
        drop(self.child.kill());
        std::thread::spawn(move || self.child.wait());
    }
}

/// Reads for another agent-fw, until that asks nothing more.
pub fn serve() -> anyhow::Result<()> {
    close_all_others()?;
    let (mut questions, mut answers) = (io::stdin().lock(), io::stdout().lock());
    while let Some((number, path)) = read_part(&mut questions)? {
        let wish = Wish::ALL.get(usize::from(number)).context("an unknown question")?;
        let (trust, _) = read_part(&mut questions)?.context("half a question")?;
        let trust = if trust == 0 { Trust::Owned } else { Trust::Anybody };
        let path = Path::new(OsStr::from_bytes(&path));
        let said = file::look(*wish, path, trust).map_err(|error| causes_of(&error));
        write_answer(&mut answers, &said)?;
        answers.flush()?;
    }
    Ok(())
}

/// Whoever never ends is not to hold what it was started beside: the lock above all.
fn close_all_others() -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?.flatten().map(|entry| entry.file_name());
    let numbers: Vec<RawFd> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // That of the directory has been closed already.
        close(number).unwrap_or_default();
    }
    Ok(())
}

const NOTHING: u8 = 0;
const BYTES: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const ERROR: u8 = 4;

fn write_answer(output: &mut impl Write, said: &Said) -> io::Result<()> {
    match said {
        Ok(Answer::Nothing) => write_part(output, NOTHING, &[]),
        Ok(Answer::Bytes(bytes)) => write_part(output, BYTES, bytes),
        Ok(Answer::Truth(truth)) => write_part(output, if *truth { TRUE } else { FALSE }, &[]),
        Err(error) => write_part(output, ERROR, error.as_bytes()),
    }
}

fn read_answer(input: &mut impl Read) -> io::Result<Said> {
    let (kind, bytes) = read_part(input)?.ok_or(ErrorKind::UnexpectedEof)?;
    Ok(match kind {
        NOTHING => Ok(Answer::Nothing),
        BYTES => Ok(Answer::Bytes(bytes)),
        FALSE | TRUE => Ok(Answer::Truth(kind == TRUE)),
        _ => Err(String::from_utf8_lossy(&bytes).into_owned()),
    })
}

/// A number and some bytes; `None` at the end.
fn read_part(input: &mut impl Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 9];
    match input.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let [number, length @ ..] = head;
    let length = u64::from_le_bytes(length);
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((number, bytes)))
}

fn write_part(output: &mut impl Write, number: u8, bytes: &[u8]) -> io::Result<()> {
    output.write_all(&[number])?;
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_with_its_causes() {
        let error = anyhow!("no such disk").context("it is not there").context("cannot read x");
        for error in [error, anyhow!("alone")] {
            let copy = with_causes(&causes_of(&error));
            let texts = |error: &anyhow::Error| -> Vec<String> {
                error.chain().map(ToString::to_string).collect()
            };
            assert_eq!(texts(&copy), texts(&error));
        }
    }

    #[test]
    fn every_answer_is_read_as_what_it_was_written_for() {
        let all: [Said; 5] = [
            Ok(Answer::Nothing),
            Ok(Answer::Bytes(b"192.0.2.1\n".to_vec())),
            Ok(Answer::Truth(false)),
            Ok(Answer::Truth(true)),
            Err("cannot read it".to_owned()),
        ];
        let mut written = Vec::new();
        for said in &all {
            write_answer(&mut written, said).expect("written");
        }
        let mut input = written.as_slice();
        for said in all {
            assert_eq!(read_answer(&mut input).expect("read"), said);
        }
        assert!(read_answer(&mut input).is_err(), "that was all");
        assert!(read_answer(&mut &written[9..20]).is_err(), "half an answer");
    }
}
