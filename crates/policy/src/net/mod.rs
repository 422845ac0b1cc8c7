//! Who may be reached: host rules, the canonical form of names, and the one decision function that
//! every way out asks (redirected connections, DNS, both proxies, `policy explain`).
//!
//! Pure: no lookups, no clock. A name is brought into its canonical form once ([`Name::parse`]); that
//! form is matched and that form is dialled.

mod decide;
mod groups;
mod name;
mod rule;
mod special;
mod upstream;

pub use decide::{Hosts, Reason, Rules, Verdict};
pub use groups::{GROUPS, Group, group};
pub use name::{Host, Name, NameError};
pub use rule::{FILTER_PORTS, HostPattern, List, PortRange, RuleError, check_entry, patterns};
pub use special::{Opens, POOL_V4, POOL_V6, Special, special};
pub use upstream::Upstream;
