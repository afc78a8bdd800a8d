# List the recipes.
default:
    @just --list

# Serve a generated community.
demo *args:
    cargo run --release -- demo {{args}}

# Run the tests that need no servers.
test *args:
    cargo test {{args}}

# Run every test, on the real stack as well.
test-all *args:
    tests/run --install {{args}}

# Type-check everything.
check:
    cargo check --workspace --all-targets

# Check formatting and lints.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Measure the three stages; or another benchmark: just bench drain.
bench name="ranking" *args:
    cargo bench --bench {{name}} -- {{args}}

# Run a part of the load run, e.g. just load throughput.
load *args:
    cargo bench --bench load -- {{args}}

# Check licences, advisories, sources and duplicate versions of dependencies.
deny:
    cargo deny check

# Build the API documentation, warnings as errors.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Run what continuous integration runs.
ci:
    bash .ci/run
