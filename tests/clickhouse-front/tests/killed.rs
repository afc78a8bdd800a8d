//! Durability of the front: acknowledged inserts survive SIGKILL, and a repeated insert counts
//! once. Needs the engine at `NOVA_LIBCHDB`, which `tests/services env` prints if no server is
//! installed.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROWS_PER_INSERT: u64 = 1_000;
const ROUNDS: u64 = 4;

struct Front {
    process: Child,
    address: String,
}

impl Front {
    fn start(library: &str, data: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_clickhouse-front"))
            .args(["--lib", library, "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().to_owned();
        Self { process, address }
    }

    /// Returns the status line and the body, or `None` if the front died.
    fn post(&self, path: &str, body: &str) -> Option<(String, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: front\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.trim().to_owned()))
    }

    fn ask(&self, query: &str) -> String {
        let (status, body) = self.post("/", query).unwrap();
        assert!(status.contains("200"), "{query}: {body}");
        body
    }

    /// Inserts a batch. Returns true if there was a response.
    fn insert(&self, batch: u64) -> bool {
        let path = format!(
            "/?query=INSERT+INTO+t+FORMAT+TSV&insert_deduplication_token=b{batch}\
             &deduplicate_blocks_in_dependent_materialized_views=1"
        );
        let first = batch * ROWS_PER_INSERT;
        let rows = (first..first + ROWS_PER_INSERT).map(|row| format!("{row}\n"));
        let answer = self.post(&path, &rows.collect::<String>());
        if let Some((status, body)) = &answer {
            assert!(status.contains("200"), "{body}");
        }
        answer.is_some()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn acknowledged_inserts_survive_a_kill_and_a_repeated_insert_counts_once() {
    let Ok(library) = std::env::var("NOVA_LIBCHDB") else {
        eprintln!("skipped: NOVA_LIBCHDB is not set");
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let window = "SETTINGS non_replicated_deduplication_window = 1000";
    let front = Front::start(&library, data.path());
    front.ask(&format!(
        "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n {window}"
    ));
    front.ask(&format!(
        "CREATE TABLE sums (k UInt8, c UInt64) ENGINE = SummingMergeTree ORDER BY k {window}"
    ));
    front
        .ask("CREATE MATERIALIZED VIEW v TO sums AS SELECT 1 AS k, count() AS c FROM t GROUP BY k");
    drop(front);

    let mut next = 0;
    for round in 0..ROUNDS {
        let front = Front::start(&library, data.path());
        let id = front.process.id().to_string();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200 + 150 * round));
            Command::new("kill").args(["-9", &id]).status().unwrap()
        });
        // The next round repeats the batch that got no response.
        while front.insert(next) {
            next += 1;
        }
        assert!(killer.join().unwrap().success());
    }
    let front = Front::start(&library, data.path());
    let kept: u64 = front.ask("SELECT uniqExact(n) FROM t").parse().unwrap();
    let answered = next * ROWS_PER_INSERT;
    assert!(
        kept == answered || kept == answered + ROWS_PER_INSERT,
        "{kept} of {answered}"
    );
    // Repeat the insert, like a client that never received its response.
    assert!(front.insert(next));
    let all = (answered + ROWS_PER_INSERT).to_string();
    assert_eq!(front.ask("SELECT count() FROM t"), all);
    assert_eq!(front.ask("SELECT sum(c) FROM sums"), all);
}
