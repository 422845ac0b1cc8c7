//! From rows to classic BPF.
//!
//! At install time the kernel runs the program once per call number to learn which calls are always
//! allowed (these never run the filter again), so the depth matters there as well as for the calls
//! that depend on an argument. The program is therefore a balanced tree over the *runs* of numbers
//! that are treated alike, with everything between runs allowed.
//!
//! Instructions are emitted from the last to the first: all BPF jumps go forward, so every target is
//! known when its jump is written.

use super::table::{self, Rule, Test};
use super::{Action, Arch, NEWEST, Options};

/// The longest program the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the test holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Constant operand.
    pub k: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `seccomp_data`.
pub(super) const LD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(super) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
pub(super) const JA: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const JEQ: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const JGT: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const JGE: u16 = 0x35;
/// `BPF_RET | BPF_K`.
pub(super) const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;
pub(super) const OFFSET_ARGS: u32 = 16;

/// The number a debugger leaves behind to skip a call. The kernel runs nothing for it, and an answer
/// of ours would overwrite the debugger's.
pub(super) const SKIPPED: u32 = u32::MAX;

/// The program for `arch` under `options`; at most [`MAX_INSTRUCTIONS`] long, in practice about 200.
///
/// Allocates: call it before the fork and hand the slice to [`super::install`].
pub fn compile(arch: Arch, options: &Options) -> Vec<SockFilter> {
    compile_rules(arch, *options, table::RULES)
}

pub(super) fn compile_rules(arch: Arch, options: Options, rules: &[Rule]) -> Vec<SockFilter> {
    let mut rows: Vec<(u32, &Rule)> = Vec::with_capacity(rules.len());
    rows.extend(
        rules
            .iter()
            .filter(|rule| rule.when.holds(&options))
            .filter_map(|rule| rule.number(arch).map(|number| (number, rule))),
    );
    rows.sort_by_key(|row| row.0); // stable: the order of rows of one call is their meaning

    let mut runs: Vec<Run> = Vec::with_capacity(rows.len() + 1);
    let mut rest = rows.as_slice();
    while let Some(&(number, first)) = rest.first() {
        let (group, tail) = rest.split_at(rest.partition_point(|row| row.0 == number));
        rest = tail;
        let leaf =
            if first.tests.is_empty() { Leaf::Fixed(first.action) } else { Leaf::Rows(group) };
        match runs.last_mut() {
            Some(last)
                if last.end + 1 == number
                    && matches!((&last.leaf, &leaf), (Leaf::Fixed(a), Leaf::Fixed(b)) if a == b) =>
            {
                last.end = number;
            }
            _ => runs.push(Run { start: number, end: number, leaf }),
        }
    }
    runs.push(Run {
        start: NEWEST + 1,
        end: SKIPPED - 1,
        leaf: Leaf::Fixed(Action::Errno(table::ENOSYS)),
    });

    let mut out = Emitter { reversed: Vec::with_capacity(256) };
    let tree = out.tree(&runs);
    let number = out.load(OFFSET_NR, tree);
    let kill = out.ret(Action::Kill);
    let arch_check = out.jump(JEQ, arch.audit(), number, kill);
    out.load(OFFSET_ARCH, arch_check);
    out.reversed.reverse();
    out.reversed
}

/// Call numbers `start..=end` and what happens to them.
struct Run<'a> {
    start: u32,
    end: u32,
    leaf: Leaf<'a>,
}

enum Leaf<'a> {
    Fixed(Action),
    /// Rows of one call, to be tested in order.
    Rows(&'a [(u32, &'a Rule)]),
}

/// An instruction already written, as its index from the end of the program.
type Label = usize;

struct Emitter {
    reversed: Vec<SockFilter>,
}

impl Emitter {
    /// How far back an equal return is looked for. Small enough that the jump to it stays short.
    const REUSE: usize = 160;

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(SockFilter { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// Instructions to skip for the next instruction to reach `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label - 1
    }

    fn ret(&mut self, action: Action) -> Label {
        let k = action.code();
        let from = self.reversed.len().saturating_sub(Self::REUSE);
        match self.reversed[from..].iter().rposition(|op| op.code == RET && op.k == k) {
            Some(found) => from + found,
            None => self.push(RET, 0, 0, k),
        }
    }

    /// Makes control reach `label` from the next place to be written.
    fn goto(&mut self, label: Label) -> Label {
        match self.distance(label) {
            0 => label,
            far => self.push(JA, 0, 0, far as u32),
        }
    }

    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.goto(next);
        self.push(LD, 0, 0, offset)
    }

    /// A conditional jump. Its offsets are eight bits wide; farther targets go through a `JA`.
    fn jump(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        // Two trampolines may still come between: keep their length in reserve.
        let far = |out: &Self, label| out.distance(label) + 2 > usize::from(u8::MAX);
        let yes = if far(self, yes) { self.goto(yes) } else { yes };
        let no = if far(self, no) { self.goto(no) } else { no };
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, jt, jf, k)
    }

    fn tree(&mut self, runs: &[Run]) -> Label {
        match runs {
            [] => self.ret(Action::Allow),
            [run] => {
                let allow = self.ret(Action::Allow);
                let leaf = self.leaf(&run.leaf);
                if run.start == run.end {
                    self.jump(JEQ, run.start, leaf, allow)
                } else {
                    let upper = self.jump(JGT, run.end, allow, leaf);
                    self.jump(JGE, run.start, upper, allow)
                }
            }
            _ => {
                let (left, right) = runs.split_at(runs.len() / 2);
                let pivot = right[0].start;
                let right = self.tree(right);
                let left = self.tree(left);
                self.jump(JGE, pivot, right, left)
            }
        }
    }

    fn leaf(&mut self, leaf: &Leaf) -> Label {
        match leaf {
            Leaf::Fixed(action) => self.ret(*action),
            Leaf::Rows(rows) => {
                let mut next = self.ret(Action::Allow);
                for (_, rule) in rows.iter().rev() {
                    next = self.rule(rule, next);
                }
                next
            }
        }
    }

    /// Code that returns the rule's action if all its tests hold, else goes on at `next`.
    fn rule(&mut self, rule: &Rule, next: Label) -> Label {
        let mut hit = self.ret(rule.action);
        for test in rule.tests.iter().rev() {
            hit = self.test(test, hit, next);
        }
        hit
    }

    fn test(&mut self, test: &Test, holds: Label, fails: Label) -> Label {
        let (member, stranger) = if test.member { (holds, fails) } else { (fails, holds) };
        let mut at = stranger;
        for &value in test.values.iter().rev() {
            at = self.jump(JEQ, value, member, at);
        }
        if test.mask != u32::MAX {
            self.goto(at);
            at = self.push(AND, 0, 0, test.mask);
        }
        // Little endian: the low half of the argument comes first. The kernel looks only at it for
        // every argument tested here, so the filter must not look at more.
        self.load(OFFSET_ARGS + 8 * u32::from(test.arg), at)
    }
}
