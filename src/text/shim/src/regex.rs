//! Stop regexes over a growing text: a Thompson NFA stepped byte by byte.
//!
//! Each thread of the simulation carries the byte at which its match began; of threads that meet in one state the
//! earliest lives on. So the work a byte is bounded by the size of the NFA, whatever the pattern, the longest match
//! that ends at a byte is known when the byte comes, and so is the earliest byte from which a match may still grow.
//! Assertions look at ASCII only: \b is (?-u:\b).

use crate::ffi::{boxed, guard, quietly, slice, text, unbox, TmBytes};
use regex_automata::nfa::thompson::{Compiler, Config, State, WhichCaptures, NFA};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::StateID;

const NFA_BYTES_MAX: usize = 2 << 20;
const NESTING_MAX: u32 = 100;

pub struct TmRegex {
    nfa: NFA,
    /// An assertion needs the byte after the position: the closure of a position is taken when that byte comes.
    looks_ahead: bool,
}

#[repr(C)]
pub struct TmRegexStep {
    matched: bool,
    begin: i64,
    end: i64,
    live_begin: i64,
}

#[derive(Clone, Copy)]
struct Thread {
    state: StateID,
    begin: u64,
}

pub struct TmRegexCursor {
    regex: *const TmRegex,
    /// Where threads stand before empty transitions, by rising begin; the last one begins here.
    arrived: Vec<Thread>,
    /// Threads that wait for a byte.
    waiting: Vec<Thread>,
    seen: Vec<u64>, // the generation in which a state was reached
    generation: u64,
    stack: Vec<StateID>,
    position: u64,
    previous: Option<u8>,
}

fn compile(pattern: &str) -> Result<TmRegex, String> {
    let hir = regex_syntax::ParserBuilder::new()
        .nest_limit(NESTING_MAX)
        .build()
        .parse(pattern)
        .map_err(|e| one_line(&e.to_string()))?;
    let properties = hir.properties();
    if properties.minimum_len() == Some(0) {
        return Err("it matches the empty text, so it would stop at once".to_string());
    }
    let looks = properties.look_set();
    if looks.contains(regex_syntax::hir::Look::End) {
        return Err("it uses $ or \\z, but a growing text has no end; use (?m:$) for the end of a line".to_string());
    }
    let config = Config::new().which_captures(WhichCaptures::None).nfa_size_limit(Some(NFA_BYTES_MAX));
    let nfa = Compiler::new().configure(config).build_from_hir(&hir).map_err(|e| one_line(&e.to_string()))?;
    let behind = [Look::Start, Look::StartLF, Look::WordStartHalfAscii, Look::WordStartHalfUnicode];
    let looks_ahead = nfa.look_set_any().iter().any(|look| !behind.contains(&look));
    Ok(TmRegex { nfa, looks_ahead })
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn holds(look: Look, previous: Option<u8>, next: Option<u8>) -> bool {
    let word = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let (before, after) = (word(previous), word(next));
    match look {
        Look::Start => previous.is_none(),
        Look::End => false,
        Look::StartLF => previous.is_none() || previous == Some(b'\n'),
        Look::EndLF => next == Some(b'\n'),
        Look::StartCRLF => match previous {
            None | Some(b'\n') => true,
            Some(b'\r') => next != Some(b'\n'),
            _ => false,
        },
        Look::EndCRLF => match next {
            Some(b'\r') => true,
            Some(b'\n') => previous != Some(b'\r'),
            _ => false,
        },
        Look::WordAscii | Look::WordUnicode => before != after,
        Look::WordAsciiNegate | Look::WordUnicodeNegate => before == after,
        Look::WordStartAscii | Look::WordStartUnicode => !before && after,
        Look::WordEndAscii | Look::WordEndUnicode => before && !after,
        Look::WordStartHalfAscii | Look::WordStartHalfUnicode => !before,
        Look::WordEndHalfAscii | Look::WordEndHalfUnicode => !after,
    }
}

impl TmRegexCursor {
    fn new(regex: &TmRegex) -> Self {
        let mut cursor = TmRegexCursor {
            regex,
            arrived: vec![Thread { state: regex.nfa.start_anchored(), begin: 0 }],
            waiting: Vec::new(),
            seen: vec![0; regex.nfa.states().len()],
            generation: 0,
            stack: Vec::new(),
            position: 0,
            previous: None,
        };
        if !regex.looks_ahead {
            cursor.close(regex, None);
        }
        cursor
    }

    /// Follows empty transitions from `arrived` into `waiting`; returns where the longest match that ends here began.
    fn close(&mut self, regex: &TmRegex, next: Option<u8>) -> Option<u64> {
        self.generation += 1;
        self.waiting.clear();
        let mut matched: Option<u64> = None;
        for i in 0..self.arrived.len() {
            let Thread { state, begin } = self.arrived[i];
            self.stack.push(state);
            while let Some(state) = self.stack.pop() {
                let seen = &mut self.seen[state.as_usize()];
                if *seen == self.generation {
                    continue; // an earlier thread is there already
                }
                *seen = self.generation;
                match regex.nfa.state(state) {
                    State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => {
                        self.waiting.push(Thread { state, begin })
                    }
                    State::Look { look, next: to } => {
                        if holds(*look, self.previous, next) {
                            self.stack.push(*to)
                        }
                    }
                    State::Union { alternates } => self.stack.extend(alternates.iter().copied()),
                    State::BinaryUnion { alt1, alt2 } => self.stack.extend([*alt1, *alt2]),
                    State::Capture { next: to, .. } => self.stack.push(*to),
                    State::Fail => {}
                    State::Match { .. } => matched = Some(matched.map_or(begin, |b| b.min(begin))),
                }
            }
        }
        matched
    }

    fn step(&mut self, regex: &TmRegex, byte: u8) {
        self.arrived.clear();
        for thread in &self.waiting {
            let to = match regex.nfa.state(thread.state) {
                State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
                State::Sparse(sparse) => sparse.matches_byte(byte),
                State::Dense(dense) => dense.matches_byte(byte),
                _ => None,
            };
            if let Some(state) = to {
                self.arrived.push(Thread { state, begin: thread.begin });
            }
        }
        self.position += 1;
        self.previous = Some(byte);
        self.arrived.push(Thread { state: regex.nfa.start_anchored(), begin: self.position });
    }

    fn feed(&mut self, bytes: &[u8]) -> TmRegexStep {
        // SAFETY: the regex outlives its cursors (header).
        let regex = unsafe { &*self.regex };
        let mut found: Option<(u64, u64)> = None;
        for &byte in bytes {
            if regex.looks_ahead {
                let end = self.position;
                found = found.or(self.close(regex, Some(byte)).map(|begin| (begin, end)));
                self.step(regex, byte);
            } else {
                self.step(regex, byte);
                found = found.or(self.close(regex, None).map(|begin| (begin, self.position)));
            }
        }
        let live = if regex.looks_ahead { &self.arrived } else { &self.waiting };
        let live_begin = live.first().map_or(self.position, |t| t.begin) as i64;
        let (begin, end) = found.unwrap_or((0, 0));
        TmRegexStep { matched: found.is_some(), begin: begin as i64, end: end as i64, live_begin }
    }
}

#[no_mangle]
pub unsafe extern "C" fn tm_regex_compile(pattern: *const u8, size: usize, error: *mut TmBytes) -> *mut TmRegex {
    boxed(guard(error, || compile(text(slice(pattern, size), "the pattern")?)))
}

#[no_mangle]
pub unsafe extern "C" fn tm_regex_free(regex: *mut TmRegex) {
    unbox(regex)
}

#[no_mangle]
pub unsafe extern "C" fn tm_regex_cursor_new(regex: *const TmRegex) -> *mut TmRegexCursor {
    boxed(quietly(|| TmRegexCursor::new(&*regex)).ok())
}

#[no_mangle]
pub unsafe extern "C" fn tm_regex_cursor_free(cursor: *mut TmRegexCursor) {
    unbox(cursor)
}

#[no_mangle]
pub unsafe extern "C" fn tm_regex_cursor_feed(
    cursor: *mut TmRegexCursor,
    bytes: *const u8,
    size: usize,
) -> TmRegexStep {
    // A panic here would be a defect of ours; then nothing matches and nothing is held.
    quietly(|| (*cursor).feed(slice(bytes, size))).unwrap_or_else(|_| TmRegexStep {
        matched: false,
        begin: 0,
        end: 0,
        live_begin: (*cursor).position as i64,
    })
}
