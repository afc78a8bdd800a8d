//! The three stages over N candidates: the native copy, the same code as WebAssembly with a fresh
//! instance per call, and with reused instances. One run measures all three, so their ratios hold
//! under any load of the machine.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nova_model::artifact::Stage;
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::Counters;
use nova_model::time::HOUR_MS;
use nova_policy::admission::{NothingKnown, PolicyFiles, admit};
use nova_policy::builtin;
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::native::Native;
use nova_policy::ranking::{Columns, RankInput, Ranking, Stages, rank};
use nova_policy_sdk::Request;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const SIZES: [usize; 5] = [100, 500, 900, 2_000, 5_000];
const NOW_MS: u64 = 1_750_000_000_000;
/// Generous limit, because the benchmark measures the time taken and not the adherence to a
/// limit.
const BUDGET: Duration = Duration::from_secs(1);

fn baseline(engine: &Engine, instance: &str) -> Arc<LoadedPolicy> {
    let recipe = builtin::recipes().next().expect("baseline is compiled in");
    let mut manifest: toml::Table = recipe.manifest.parse().expect("a manifest");
    let mut limits = toml::Table::new();
    limits.insert("deadline_ms".into(), 1_000.into());
    limits.insert("instance".into(), instance.into());
    manifest.insert("limits".into(), limits.into());
    let files = PolicyFiles {
        manifest: manifest.to_string(),
        ..PolicyFiles::default()
    };
    admit(engine, &NothingKnown, &files)
        .expect("baseline is admitted")
        .loaded
}

/// Creates candidates like those of a real feed: a fifth of the authors write most posts, and
/// some posts are seen.
fn candidates(n: usize) -> (CandidateSet, Vec<bool>) {
    let mut random = StdRng::seed_from_u64(n as u64);
    let mut set = CandidateSet::default();
    let mut sources = Sources::FOLLOWEES;
    sources.insert(Sources::TRENDING);
    for post in 0..n as u64 {
        let exposures = random.random_range(0..2_000);
        set.post_ids.push(post + 1);
        set.author_ids
            .push(1 + (random.random::<f64>().powi(3) * n as f64 / 4.0) as u64);
        set.created_at_ms
            .push(NOW_MS - random.random_range(0..72 * HOUR_MS));
        set.sources.push(sources);
        set.counters.push(Counters {
            views: exposures / 3,
            likes: random.random_range(0..=exposures / 10),
            comments: random.random_range(0..=exposures / 50),
            shares: random.random_range(0..=exposures / 100),
            dwell_ms_sum: exposures * 900,
            exposures,
        });
        set.affinity.push(random.random_range(0..20));
        set.author_recent_impressions
            .push(random.random_range(0..5));
    }
    let seen = (0..n).map(|_| random.random_bool(0.1)).collect();
    (set, seen)
}

fn ranking(criterion: &mut Criterion) {
    let engine = Engine::start().expect("the engine starts");
    let (fresh, reuse) = (baseline(&engine, "fresh"), baseline(&engine, "reuse"));
    let wasm = |policy: &LoadedPolicy, input: RankInput<'_>| -> Ranking {
        rank(&policy.running(policy.budget(BUDGET)), input).expect("baseline ranks")
    };
    let mut group = criterion.benchmark_group("ranking");
    for n in SIZES {
        let (set, seen) = candidates(n);
        let request = Request {
            user_id: 7,
            now_ms: NOW_MS,
            seed: 1,
            limit: 50,
        };
        let input = RankInput {
            request: &request,
            set: &set,
            seen: &seen,
        };
        let native = rank(Native::get(), input).expect("the native copy ranks");
        assert_eq!(
            native.rows,
            wasm(&fresh, input).rows,
            "native and WebAssembly must rank alike to be compared"
        );
        group.throughput(Throughput::Elements(n as u64));
        group.bench_with_input(BenchmarkId::new("native", n), &input, |bencher, input| {
            bencher.iter(|| rank(Native::get(), black_box(*input)));
        });
        group.bench_with_input(
            BenchmarkId::new("wasm-fresh", n),
            &input,
            |bencher, input| {
                bencher.iter(|| wasm(&fresh, black_box(*input)));
            },
        );
        group.bench_with_input(
            BenchmarkId::new("wasm-reuse", n),
            &input,
            |bencher, input| {
                bencher.iter(|| wasm(&reuse, black_box(*input)));
            },
        );
    }
    group.finish();
}

/// Measures each stage alone over 900 candidates, which shows the share of each in the time of a
/// ranking.
fn stages(criterion: &mut Criterion) {
    const N: usize = 900;
    let engine = Engine::start().expect("the engine starts");
    let (fresh, reuse) = (baseline(&engine, "fresh"), baseline(&engine, "reuse"));
    let (set, seen) = candidates(N);
    let request = Request {
        user_id: 7,
        now_ms: NOW_MS,
        seed: 1,
        limit: 50,
    };
    let input = RankInput {
        request: &request,
        set: &set,
        seen: &seen,
    };
    let mut group = criterion.benchmark_group("stages");
    for stage in Stage::ALL {
        let native = || run_stage(Native::get(), stage, input);
        group.bench_function(BenchmarkId::new("native", stage), |bencher| {
            bencher.iter(native)
        });
        for (name, policy) in [("wasm-fresh", &fresh), ("wasm-reuse", &reuse)] {
            let wasm = || run_stage(&policy.running(policy.budget(BUDGET)), stage, input);
            group.bench_function(BenchmarkId::new(name, stage), |bencher| bencher.iter(wasm));
        }
    }
    group.finish();
}

fn run_stage(stages: &impl Stages, stage: Stage, input: RankInput<'_>) -> usize {
    let rows = (0..input.set.len() as u32).collect();
    let columns = Columns::gather(stages.features(stage), input, rows);
    let scores = vec![0.0; columns.rows.len()];
    match stage {
        Stage::Dedup => stages
            .dedup(input.request, &columns.candidates())
            .map(|kept| kept.len()),
        Stage::Score => stages
            .score(input.request, &columns.candidates())
            .map(|scores| scores.len()),
        Stage::Saturation => stages
            .saturate(input.request, &columns.ranked(&scores))
            .map(|shown| shown.len()),
    }
    .expect("baseline ranks")
}

criterion_group!(benches, ranking, stages);
criterion_main!(benches);
