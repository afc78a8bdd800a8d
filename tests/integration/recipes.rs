//! Policies to publish, and the operator who publishes them.

use crate::harness::{Answer, Host, Setup, post_ids};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// Limits that no test machine reaches, so a policy that fails under them fails by itself.
pub const AMPLE: &str = "[limits]\ndeadline_ms = 1000\nmemory_mb = 16\n";

/// Returns a manifest of the bundled modules with a score that does not depend on the time, and
/// ample limits. It ranks the same at any time, so that orders can be compared exactly.
pub fn calm(name: &str, version: &str) -> String {
    let manifest = crate::harness::manifest(name, version, "none", "");
    with_params(&manifest, "score", "{ decay_per_hour = 0.0 }") + AMPLE
}

/// Adds parameter values for one stage to a manifest.
pub fn with_params(manifest: &str, stage: &str, params: &str) -> String {
    manifest.replace(
        &format!("[{stage}]\n"),
        &format!("[{stage}]\nparams = {params}\n"),
    )
}

/// A host setup with the small community, no rate limits, and an ample policy budget (10 s).
pub fn patient_setup() -> Setup {
    Host::setup()
        .community(crate::harness::Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .variable("NOVA_POLICY_BUDGET_MS", "10000")
}

/// An operator, who may take every step with policies.
pub struct Operator<'a> {
    host: &'a Host,
    pub token: String,
}

impl Host {
    pub fn operator(&self) -> Operator<'_> {
        Operator {
            host: self,
            token: self.admin_token("operator"),
        }
    }
}

impl Operator<'_> {
    /// Publishes a policy that must be accepted.
    pub async fn publish(&self, manifest: &str, modules: &[(&str, Vec<u8>)]) -> Value {
        let answer = self.host.upload(&self.token, manifest, modules).await;
        answer.ok(201)
    }

    /// Activates a policy, given as `name@version`.
    pub async fn activate(&self, policy: &str) -> Answer {
        let path = format!(
            "/admin/v1/policies/{}/activate",
            policy.replacen('@', "/", 1)
        );
        self.host
            .send(
                self.host
                    .request(Method::POST, &path)
                    .bearer_auth(&self.token),
            )
            .await
    }

    pub async fn publish_and_activate(&self, manifest: &str, modules: &[(&str, Vec<u8>)]) {
        let published = self.publish(manifest, modules).await;
        self.activate(&label(&published)).await.ok(200);
    }

    pub async fn rollback(&self) -> Answer {
        self.rollback_with(json!({ "reason": "a test" })).await
    }

    pub async fn rollback_with(&self, body: Value) -> Answer {
        self.host
            .post(&self.token, "/admin/v1/rollback", &body)
            .await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.host.get(&self.token, path).await.ok(200)
    }

    /// Returns `name@version` of the active policy.
    pub async fn active(&self) -> String {
        text(&self.get("/admin/v1/policies").await["active"])
    }

    /// Returns `name@version` of every published policy.
    pub async fn published(&self) -> Vec<String> {
        let list = self.get("/admin/v1/policies").await;
        list["policies"]
            .as_array()
            .unwrap()
            .iter()
            .map(label)
            .collect()
    }

    /// Returns the order in which a policy would show a viewer's first page now.
    pub async fn explained(&self, viewer: u64, policy: &str) -> Vec<u64> {
        let path = format!("/debug/user/{viewer}/feed/explain?policy={policy}");
        let mut order = post_ids(&self.get(&path).await);
        order.truncate(50);
        order
    }
}

/// Returns `name@version` of a value that has both fields.
pub fn label(policy: &Value) -> String {
    format!("{}@{}", text(&policy["name"]), text(&policy["version"]))
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A generous time limit; it only bounds how long a broken test runs.
pub const SOON: Duration = Duration::from_secs(20);
