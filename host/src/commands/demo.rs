//! `nova demo`: a host with a generated community, so that there is something to rank.

use super::import::load;
use super::serve::run_host;
use super::watch::WatchArguments;
use super::{block_on, output};
use crate::config::{Config, LogFormat, Stores};
use crate::http::token::{ADMIN_AUDIENCE, Role, TokenKeys, VIEWER_AUDIENCE};
use crate::secret;
use nova_model::time::rfc3339;
use nova_model::time::{DAY_MS, HOUR_MS};
use nova_support::clock::unix_ms;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Serves a generated community from a temporary data directory and prints commands to try.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nova demo --listen 127.0.0.1:8080\n  nova demo --watch fresh-first"
)]
pub struct Demo {
    /// Address to listen on; port 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Seed of the generator; the same seed generates the same community.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    watch: WatchArguments,
}

const USERS: u64 = 300;
const POSTS: u64 = 3_000;
const FOLLOWS_PER_USER: u64 = 20;
const LIKES: u64 = 20_000;
const COMMENTS: u64 = 4_000;
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

impl Demo {
    pub fn run(self) -> anyhow::Result<()> {
        let watched = self.watch.open()?;
        let directory = tempfile::Builder::new().prefix("nova-demo-").tempdir()?;
        let data_dir = directory.path().join("data");
        let community = directory.path().join("community");
        std::fs::create_dir_all(&community)?;
        write_community(&community, self.seed)?;
        let mut config = Config::load(None, |name| std::env::var(name).ok())?;
        // A demo uses temporary stores only, even if the environment names others.
        config.stores = Stores::default();
        config.listen = self.listen;
        config.data_dir = data_dir;
        block_on(load(&config, &community, false))?;
        config.log_format = LogFormat::Text;
        if std::env::var_os("LOG_LEVEL").is_none() {
            config.live.log_level = "warn".to_owned();
        }
        let keys = TokenKeys::new(&secret::load_or_make(&config)?, &config.auth.issuer);
        let viewer = keys.sign("42", VIEWER_AUDIENCE, &[], TOKEN_TTL)?;
        let operator = keys.sign("1", ADMIN_AUDIENCE, &[Role::Operator], TOKEN_TTL)?;
        let data_dir = config.data_dir.clone();
        run_host(config, true, None, move |address, app| {
            print_welcome(address, &data_dir, &viewer, &operator);
            if let Some(watched) = watched {
                watched.start(app);
            }
        })
    }
}

fn print_welcome(address: SocketAddr, data_dir: &Path, viewer: &str, operator: &str) {
    let program = std::env::current_exe().unwrap_or_default();
    let text = format!(
        "Nova serves {USERS} users and {POSTS} posts on http://{address} (data: {data}, deleted when the demo ends).

The feed of viewer 42, ranked by baseline@1.0.0:
  curl -s 'http://{address}/api/v1/feed?limit=5' -H 'Authorization: Bearer {viewer}'

Trending posts (no token needed):
  curl -s 'http://{address}/api/v1/feed/trending?window=24h&limit=5'

Switch all viewers to another policy, and back (run the export lines in every terminal that talks to this host):
  export PATH={programs}:$PATH
  export NOVA_DATA_DIR={data}
  export NOVA_HOST=http://{address}
  export NOVA_TOKEN={operator}
  nova policy list
  nova policy activate timeline@1.0.0
  nova policy rollback

All routes: http://{address}/docs    Press Ctrl-C to stop.
",
        data = data_dir.display(),
        programs = program.parent().unwrap_or(Path::new(".")).display(),
    );
    // A reader that closes the pipe early (`nova demo | head`) must not end the host.
    let _ = output::text(text);
}

/// Writes the files of a generated community in the format of `nova import`.
///
/// # Errors
/// The directory cannot be written.
pub fn write_community(dir: &Path, seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let now_ms = unix_ms();
    let mut users = String::from("user_id,created_at,username,bio,country,language\n");
    for id in 1..=USERS {
        let created = rfc3339(now_ms - random.random_range(1..400) * DAY_MS);
        let country = ["DE", "FR", "JP", "BR", "US"][random.random_range(0..5)];
        writeln!(
            users,
            "{id},{created},user{id},\"Posts about topic {}\",{country},en",
            id % 17
        )?;
    }
    // A few authors write and receive most posts and follows. Without that, saturation would
    // have nothing to do.
    let popular =
        |random: &mut StdRng, n: u64| 1 + (random.random::<f64>().powi(3) * n as f64) as u64;
    let mut posts = String::from("post_id,author_id,created_at,view_count\n");
    let mut posted_ms = Vec::new();
    for id in 1..=POSTS {
        let age_ms = (random.random::<f64>().powi(2) * (20 * DAY_MS) as f64) as u64;
        posted_ms.push(now_ms - age_ms);
        let author = popular(&mut random, USERS);
        writeln!(
            posts,
            "{id},{author},{},{}",
            rfc3339(now_ms - age_ms),
            random.random_range(0..500)
        )?;
    }
    let mut follows = String::from("follower_id,following_id,created_at\n");
    for follower in 1..=USERS {
        let followees: std::collections::BTreeSet<u64> = (0..FOLLOWS_PER_USER)
            .map(|_| popular(&mut random, USERS))
            .filter(|id| *id != follower)
            .collect();
        for followee in followees {
            writeln!(
                follows,
                "{follower},{followee},{}",
                rfc3339(now_ms - random.random_range(1..100) * DAY_MS)
            )?;
        }
    }
    std::fs::write(dir.join("users.csv"), users)?;
    std::fs::write(dir.join("posts.csv"), posts)?;
    std::fs::write(dir.join("follows.csv"), follows)?;
    std::fs::write(
        dir.join("likes.csv"),
        reactions("like_id", LIKES, &posted_ms, now_ms, &mut random)?,
    )?;
    std::fs::write(
        dir.join("comments.csv"),
        reactions("comment_id", COMMENTS, &posted_ms, now_ms, &mut random)?,
    )?;
    Ok(())
}

/// Returns likes or comments as CSV. Most of them come soon after their post.
fn reactions(
    id_column: &str,
    count: u64,
    posted_ms: &[u64],
    now_ms: u64,
    random: &mut impl Rng,
) -> anyhow::Result<String> {
    let mut csv = format!("{id_column},post_id,user_id,created_at\n");
    for id in 1..=count {
        let post = (random.random::<f64>().powi(2) * posted_ms.len() as f64) as usize;
        let delay_ms = (random.random::<f64>().powi(3) * (72 * HOUR_MS) as f64) as u64;
        let at_ms = (posted_ms[post] + delay_ms).min(now_ms);
        writeln!(
            csv,
            "{id},{},{},{}",
            post + 1,
            random.random_range(1..=USERS),
            rfc3339(at_ms)
        )?;
    }
    Ok(csv)
}
