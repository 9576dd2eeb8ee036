//! What programs show in a browser: HTTP with bounds, pages that need nothing from elsewhere, and the page of a swarm.
//!
//! [`SwarmPage`] asks a swarm what it serves as long as somebody looks, and shows it as a page, as JSON and as figures for Prometheus;
//! [`Shown`] is what a program adds of its own. The chat page of `petals-tune serve` shares the rest: [`serve`], [`document`], [`Key`] and
//! [`is_meant`].
//!
//! Whatever the page shows of others are words of strangers. They were cut to what a line may show when their records were read, are bounded here
//! again by how many there are, and get into the page as text alone.

mod document;
mod guard;
mod history;
mod http;
mod portions;
mod router;
mod shown;
mod state;
mod watch;

pub use document::document;
pub use guard::{Key, is_meant};
pub use http::{FEW, serve};
pub use petals_swarm::Origin;
pub use portions::{Portion, Portions};
pub use router::{Rules, router, state_answer, swarm_document};
pub use shown::{Counts, Shown, SwarmPage};
pub use state::{Failure, JoinLines, RouteHop, ShownRoute};
