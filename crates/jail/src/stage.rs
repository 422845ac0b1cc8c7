//! The stages of set-up, for messages that say which layer refused.

use std::fmt;

use ringfence_sys::raw::Errno;

macro_rules! stages {
    ($($name:ident = $nr:literal, $text:literal;)*) => {
        /// Where set-up was when it failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Stage { $(#[doc = $text] $name = $nr,)* }

        impl Stage {
            pub fn from_u32(n: u32) -> Option<Self> {
                match n { $($nr => Some(Self::$name),)* _ => None }
            }
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    Clone = 1, "create namespaces";
    ParentDeath = 2, "tie the sandbox to its supervisor";
    IdMap = 3, "map user and group ids";
    Ids = 4, "take the sandbox's ids";
    Cgroup = 5, "enter the control group";
    Propagation = 6, "make mounts private";
    Root = 7, "mount the private root";
    Step = 8, "prepare the file view";
    Pivot = 9, "change the root";
    Detach = 10, "detach the host's root";
    Loopback = 11, "bring loopback up";
    Rlimit = 12, "set a resource limit";
    Capabilities = 13, "drop capabilities";
    NoNewPrivs = 14, "set no_new_privs";
    Landlock = 15, "apply landlock";
    Seccomp = 16, "install the system call filter";
    Fork = 17, "start the command's process";
    Session = 18, "set up session and terminal";
    Chdir = 19, "enter the working directory";
    Exec = 20, "execute the command";
    Descriptors = 21, "close inherited descriptors";
    Tree = 22, "open a source tree";
    Network = 24, "create a network namespace";
    Dumpable = 23, "hide the supervisor's memory";
    Egress = 25, "prepare the egress filter";
    Broker = 26, "prepare the check of names";
    Resident = 27, "prepare to start commands";
}

/// A failed set-up: nothing of the command has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub stage: Stage,
    /// Index of the step, rule, limit or tree within the stage.
    pub index: u32,
    pub errno: Errno,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage.text(), self.errno)
    }
}

impl std::error::Error for Failure {}
