//! Who may be reached: host rules, the canonical form of names, and the one decision function that
//! every way out asks (redirected connections, DNS, both proxies, `policy explain`).
//!
//! Pure: no lookups, no clock. A name is brought into its canonical form once ([`Name::parse`]); that
//! form is matched and that form is dialled.

mod decide;
mod name;
mod rule;

pub use decide::{Reason, Rules, Verdict};
pub use name::{Host, Name, NameError};
pub use rule::{HostPattern, PortRange, RuleError};
