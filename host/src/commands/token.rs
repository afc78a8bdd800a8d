//! `nova token`: prints a token signed with the host's key.

use super::{ConfigPath, DataDir, output};
use crate::http::token::{ADMIN_AUDIENCE, Role, TokenKeys, VIEWER_AUDIENCE};
use crate::secret;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nova_model::event::ID_MAX;
use std::time::Duration;

/// Prints a token signed with the host's key.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nova token --user 42\n  nova token --user 1 --audience admin --role operator --ttl 8h"
)]
pub struct Token {
    /// Viewer id of the token's user.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=ID_MAX))]
    user: u64,
    /// Admin role of the user; may be repeated.
    #[arg(long = "role", value_name = "ROLE", value_parser = role_parser())]
    roles: Vec<Role>,
    /// Audience of the token: viewer for the feed, admin for /admin and /debug [default: admin
    /// if there is a role, else viewer]
    #[arg(long)]
    audience: Option<Audience>,
    /// Lifetime of the token, e.g. 90s, 1h, 7days.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Audience {
    #[value(alias = "nova")]
    Viewer,
    #[value(alias = "nova-admin")]
    Admin,
}

fn role_parser() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str))
        .try_map(|name| Role::parse(&name).ok_or("no such role"))
}

impl Token {
    pub fn run(self) -> anyhow::Result<()> {
        let config = self.config.load(&self.data_dir)?;
        let default = if self.roles.is_empty() {
            Audience::Viewer
        } else {
            Audience::Admin
        };
        let audience = match self.audience.unwrap_or(default) {
            Audience::Viewer => VIEWER_AUDIENCE,
            Audience::Admin => ADMIN_AUDIENCE,
        };
        let is_new = !secret::is_there(&config);
        let keys = TokenKeys::new(&secret::load_or_make(&config)?, &config.auth.issuer);
        if is_new {
            output::note(format_args!(
                "nova: generated a new key in {}; a host with another key refuses this token: set NOVA_DATA_DIR or NOVA_JWT_SECRET to the value of that host",
                config.data_dir.display()
            ));
        }
        let token = keys.sign(&self.user.to_string(), audience, &self.roles, self.ttl)?;
        if self.json {
            let ttl_s = self.ttl.as_secs();
            return output::line(
                serde_json::json!({ "token": token, "audience": audience, "ttl_s": ttl_s }),
            );
        }
        output::line(token)
    }
}
