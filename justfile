# The commands of every day; `just` lists them.
default:
    @just --list
check:
    cargo fmt --check && cargo clippy --workspace --all-targets -- -D warnings && cargo deny check licenses bans sources
test:
    cargo test
e2e *filter:
    cargo test -p ringfence-cli --test e2e -- {{filter}}
bench *args:
    bench/run {{args}}
docs:
    cargo doc --workspace --no-deps && cargo test -p ringfence-cli --test docs
