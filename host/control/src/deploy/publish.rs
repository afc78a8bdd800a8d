//! Publication of policies: the bundled ones, uploads and a watched directory.

use super::attempt::Attempts;
use super::{Author, Deploy, DeployError, PolicyState, Published, Serving};
use crate::loader::Tried;
use nova_model::artifact::PolicySpec;
use nova_model::prune::next_dev_version;
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
        let mut attempts = Attempts::new();
        loop {
            let made = match admitted.follow {
                true => self.try_to_follow_source(&admitted, author).await,
                false => self.try_to_publish(&admitted, author).await,
            };
            if attempts.again(&made) {
                continue;
            }
            let published = self.finish(author, made).await?;
            if !admitted.follow || published.state == PolicyState::Active {
                return Ok(published);
            }
            // The author's precondition held for the publication.
            let activated = self.activate(&published.policy, author.actor).await?;
            return Ok(Published {
                state: activated.state,
                ..published
            });
        }
    }

    async fn try_to_publish(
        &self,
        admitted: &Admitted,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let loaded = &admitted.loaded;
        let policy = &loaded.spec.policy;
        if self.serving().state.policy(policy).is_none() {
            self.store(admitted, author.actor).await?;
        }
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        if let Some(published) = serving.state.policy(policy) {
            return already_published(&serving, published, &loaded.spec);
        }
        self.publish_admitted(admitted, author.actor).await
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

    /// Returns the active policy if it has this one's name and content.
    fn active_as(&self, admitted: &Admitted) -> Option<Published> {
        let (serving, loaded) = (self.serving(), &admitted.loaded);
        let active = &serving.active;
        let is_same =
            active.digest == loaded.digest && active.spec.policy.name == loaded.spec.policy.name;
        is_same.then(|| Published {
            policy: active.spec.policy.clone(),
            digest: active.digest,
            state: PolicyState::Active,
            percent: None,
            new: false,
        })
    }

    /// Publishes a changed policy as the next `-dev.N` version, for the caller to activate. Used on
    /// development hosts only.
    async fn try_to_follow_source(
        &self,
        admitted: &Admitted,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        if let Some(active) = self.active_as(admitted) {
            return Ok(active);
        }
        if self.has_too_many_dev_versions() {
            self.prune(false, author.actor).await?;
        }
        let version = admitted.loaded.spec.policy.version.clone();
        let next = next_dev_version(&self.serving().state, &admitted.loaded.spec.policy);
        let Some(next) = next else {
            return Err(
                Refusal::one(format!("version {version} cannot carry a -dev.N suffix")).into(),
            );
        };
        let digest = admitted.loaded.digest;
        let mut spec = admitted.loaded.spec.clone();
        spec.policy.version = next.clone();
        let loaded = LoadedPolicy::bind(digest, spec, admitted.loaded.modules.clone())
            .map_err(|reasons| Refusal { reasons })?;
        let renamed = Admitted {
            loaded: Arc::new(loaded),
            ..admitted.clone()
        };
        self.store(&renamed, author.actor).await?;
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        if let Some(active) = self.active_as(admitted) {
            return Ok(active);
        }
        if next_dev_version(&serving.state, &admitted.loaded.spec.policy) != Some(next) {
            let taken = "another process published the version; repeat the request";
            return Err(DeployError::Overtaken(taken.to_owned()));
        }
        self.publish_admitted(&renamed, author.actor).await
    }
}

/// A check that could not be made is no refusal of the policy.
fn not_checked_or_refused(refusal: Refusal) -> DeployError {
    match refusal.reasons.iter().any(|r| r.code == NOT_CHECKED) {
        true => DeployError::Busy,
        false => refusal.into(),
    }
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
