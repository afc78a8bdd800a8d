//! Recorded rankings: what one is (`record`), where they are kept (`store`), how a host records them (`recorder`), and
//! how they are run again, bit for bit or under another policy (`run`, `report`, `html`).
//!
//! A file of records has everything a replay needs, the modules included, so it means the same on another machine.

pub mod fuel;
pub mod html;
pub mod policies;
pub mod record;
pub mod recorder;
pub mod report;
pub mod run;
pub mod store;
