//! Recorded rankings: their format (`record`), their recording by a host (`recorder`), and their
//! replay, bit for bit or under another policy (`run`, `policies`, `fuel`, `report`, `html`). The
//! file that they are stored in is `nova_stores::records`.
//!
//! A file of records contains everything a replay needs, including the modules, so it gives the
//! same results on another machine.

pub mod fuel;
pub mod html;
pub mod policies;
pub mod record;
pub mod recorder;
pub mod report;
pub mod run;
