//! Checks of the audit log while the host runs, whenever the log has a new end.

use super::Deploy;
use crate::audit_watch::{AuditWatch, Finding, Remembered};
use nova_model::audit::Verified;
use nova_model::audit_head::AuditHead;
use nova_support::metrics::METRICS;
use std::sync::Arc;
use std::time::Duration;

/// Interval of the checks while the log has no new end. A damaged log is checked again, because an
/// operator may have accepted it.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Pause after a check that the registry did not answer.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Result of this host's last check of the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// The entry up to which this host read the log without a finding.
    pub remembered: Option<Remembered>,
    pub finding: Option<Finding>,
    /// True if this host has a key to check and authenticate entries.
    pub has_keys: bool,
}

impl Deploy {
    /// Notes the end of the log, so that a new one is checked.
    pub(super) fn note_audit_head(&self, head: AuditHead) {
        self.audit_heads.send_if_modified(|known| {
            let is_new = *known != head;
            *known = head;
            is_new
        });
    }

    pub fn audit_report(&self) -> Arc<AuditReport> {
        self.audit_report.load_full()
    }

    /// Checks the whole audit log once, and then each new part of it, until the host ends. This is
    /// a task of its own, because a long log must not delay a rollback.
    pub async fn watch_audit(self: Arc<Self>, watch: AuditWatch) {
        let mut heads = self.audit_heads.subscribe();
        let mut is_whole = true;
        loop {
            heads.borrow_and_update();
            let registry = self.registry.as_ref();
            let checked = match is_whole {
                true => watch.check_whole(registry).await,
                false => watch.check(registry).await,
            };
            let pause = match checked {
                Ok(checked) => {
                    // What is wrong in an old part is not found from the newest entries alone.
                    is_whole = checked.is_err();
                    self.report(&watch, checked);
                    CHECK_INTERVAL
                }
                Err(error) => {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "could not check the audit log; trying again"
                    );
                    RETRY_WAIT
                }
            };
            tokio::select! {
                changed = heads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn report(&self, watch: &AuditWatch, checked: Result<Verified, Finding>) {
        let before = self.audit_report.load_full();
        let now = AuditReport {
            // A memory that cannot be read is the finding of the check.
            remembered: watch.remembered().unwrap_or_default(),
            finding: checked.as_ref().err().cloned(),
            has_keys: watch.has_keys(),
        };
        METRICS
            .audit_log_broken
            .set(i64::from(now.finding.is_some()));
        if let Some(finding) = &now.finding
            && before.finding != now.finding
        {
            tracing::error!(
                %finding,
                file = %watch.path().display(),
                "the audit log is not the one that this host read before; run `nova audit verify`, and compare the log with a backup. Delete the file to accept the log as it is"
            );
        }
        if let Ok(verified) = checked
            && let Some(head) = verified.head
            && before.remembered != now.remembered
        {
            METRICS.set_audit_head(verified.revision, head);
            tracing::info!(revision = verified.revision, %head, "the audit log has a new head");
        }
        self.audit_report.store(Arc::new(now));
    }
}
