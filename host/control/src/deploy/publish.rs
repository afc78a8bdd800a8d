//! Publication of policies: the bundled ones, uploads and a watched directory.

use super::{Author, Deploy, DeployError, PolicyState, Published, Serving};
use crate::loader::Tried;
use nova_model::artifact::{PolicyRef, PolicySpec};
use nova_model::registry::{Change, HOST, PublishedPolicy};
use nova_policy::admission::{Admitted, PolicyFiles, Refusal, admit_while};
use nova_policy::builtin;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::worker::NOT_CHECKED;
use nova_support::clock::unix_ms;
use std::sync::Arc;

impl Deploy {
    pub(super) async fn publish_bundled(&self) -> Result<(), DeployError> {
        for files in builtin::recipes() {
            let admitted = self
                .loader
                .admit_bundled(files.clone())
                .await
                .map_err(|error| Refusal::one(format!("{error:#}")))?;
            let policy = admitted.loaded.spec.policy.clone();
            let published = self
                .serving()
                .state
                .policy(&policy)
                .map(|published| published.digest);
            match published {
                None => drop(self.publish(files, "host").await?),
                Some(digest) if digest == admitted.loaded.digest => {}
                Some(_) => {
                    tracing::info!(%policy, "this binary bundles other bytes for a policy that is published already; keeping the published bytes")
                }
            }
        }
        Ok(())
    }

    /// Admits and publishes a policy. If this version is published already with the same digest,
    /// returns its current state.
    ///
    /// # Errors
    /// Returns every reason for a refusal. Also fails if the registry does not answer.
    pub async fn publish<'a>(
        &self,
        files: PolicyFiles,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        let author = author.into();
        let admitted = self.admit(files).await?;
        let policy = &admitted.loaded.spec.policy;
        if admitted.follow || self.serving().state.policy(policy).is_none() {
            self.store(&admitted, author.actor).await?;
        }
        let _changing = self.begin_change_by(author).await?;
        let published = self.publish_locked(admitted, author.actor).await;
        published.map_err(|error| self.in_terms_of(author, error))
    }

    /// Stores the modules of a policy, if the registry has room for it. This comes before the
    /// lock `changing`, because the transfer takes seconds on a slow network. If the policy is
    /// not published then, a clean-up removes its modules.
    async fn store(&self, admitted: &Admitted, actor: &str) -> Result<(), DeployError> {
        // The bundled policies are part of the program and always fit.
        if actor != HOST {
            self.check_quotas(admitted).await?;
        }
        for (digest, bytes) in &admitted.module_bytes {
            self.registry.store_module(*digest, bytes).await?;
        }
        Ok(())
    }

    async fn publish_locked(
        &self,
        admitted: Admitted,
        actor: &str,
    ) -> Result<Published, DeployError> {
        if admitted.follow {
            return self.follow_source(admitted, actor).await;
        }
        let loaded = &admitted.loaded;
        let policy = loaded.spec.policy.clone();
        let serving = self.serving.load_full();
        if let Some(published) = serving.state.policy(&policy) {
            return already_published(&serving, published, &loaded.spec);
        }
        self.publish_admitted(&admitted, actor).await
    }

    /// Runs only the admission of [`Deploy::publish`], without publishing.
    ///
    /// # Errors
    /// The same as for `publish`.
    pub async fn admit(&self, files: PolicyFiles) -> Result<Admitted, DeployError> {
        let permit = self.admissions.permit().await?;
        let bytes = self.loader.published_bytes(&files).await?;
        let known = self.loader.known(bytes, self.tried(&files));
        let engine = self.loader.engine().clone();
        let admitted = permit
            .run(move |wanted| admit_while(&engine, &known, &files, wanted))
            .await
            .ok_or_else(|| Refusal::one("the compiler panicked on this policy"))?
            .map_err(not_checked_or_refused)?;
        if admitted.follow && !self.is_development {
            let reason = "follow = true works only on a host started for development (nova demo, nova serve --watch)";
            return Err(Refusal::one(reason).into());
        }
        self.loader.keep(&admitted);
        Ok(admitted)
    }

    fn tried(&self, files: &PolicyFiles) -> Tried {
        if builtin::recipes().any(|bundled| bundled == *files) {
            return Tried::Bundled;
        }
        let serving = self.serving();
        let published = serving.state.policies.iter();
        Tried::Digests(published.map(|published| published.digest).collect())
    }

    async fn publish_admitted(
        &self,
        admitted: &Admitted,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let loaded = &admitted.loaded;
        let change = Change::Publish {
            spec: loaded.spec.clone(),
            digest: loaded.digest,
            modules: admitted.module_bytes.clone(),
            at_ms: unix_ms(),
            measured: admitted.record.clone().map(Box::new),
        };
        self.carry_out(change, actor).await?;
        let policy = loaded.spec.policy.clone();
        tracing::info!(%policy, digest = %loaded.digest, actor, "policy published");
        // A digest that is in quarantine is so under every name.
        Ok(Published {
            new: true,
            ..Published::from_state(&self.serving().state, &policy)?
        })
    }

    /// Publishes a changed policy as the next free `-dev.N` version and activates it at once.
    /// Used on development hosts only.
    async fn follow_source(
        &self,
        admitted: Admitted,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let serving = self.serving.load_full();
        let digest = admitted.loaded.digest;
        let PolicyRef { name, version } = admitted.loaded.spec.policy.clone();
        if serving.active.digest == digest && serving.active.spec.policy.name == name {
            return Ok(Published {
                policy: serving.active.spec.policy.clone(),
                digest,
                state: PolicyState::Active,
                percent: None,
                new: false,
            });
        }
        let taken = |n: usize| {
            dev_version(&version, n).is_none_or(|version| {
                serving
                    .state
                    .policy(&PolicyRef {
                        name: name.clone(),
                        version,
                    })
                    .is_some()
            })
        };
        let next = (1..=serving.state.policies.len() + 1)
            .find(|&n| !taken(n))
            .and_then(|n| dev_version(&version, n));
        let Some(version) = next else {
            return Err(
                Refusal::one(format!("version {version} cannot carry a -dev.N suffix")).into(),
            );
        };
        let mut spec = admitted.loaded.spec.clone();
        spec.policy.version = version;
        let loaded = LoadedPolicy::bind(digest, spec, admitted.loaded.modules.clone())
            .map_err(|reasons| Refusal { reasons })?;
        let admitted = Admitted {
            loaded: Arc::new(loaded),
            ..admitted
        };
        let published = self.publish_admitted(&admitted, actor).await?;
        self.activate_locked(&published.policy, actor).await?;
        Ok(Published {
            state: PolicyState::Active,
            ..published
        })
    }
}

/// A check that could not be made is no refusal of the policy.
fn not_checked_or_refused(refusal: Refusal) -> DeployError {
    match refusal.reasons.iter().any(|r| r.code == NOT_CHECKED) {
        true => DeployError::Busy,
        false => refusal.into(),
    }
}

fn dev_version(version: &semver::Version, n: usize) -> Option<semver::Version> {
    let pre = semver::Prerelease::new(&format!("dev.{n}")).ok()?;
    Some(semver::Version {
        pre,
        ..version.clone()
    })
}

fn already_published(
    serving: &Serving,
    published: &PublishedPolicy,
    uploaded: &PolicySpec,
) -> Result<Published, DeployError> {
    let policy = published.spec.policy.clone();
    if !published.spec.behaves_as(uploaded) {
        let reason = format!(
            "{policy} is published already with other content; a published version never changes, choose a new version"
        );
        return Err(Refusal::one(reason).into());
    }
    Published::from_state(&serving.state, &policy)
}
