# Short names for the usual commands; `just` lists them.

default:
    @just --list

# Run the service with its own PostgreSQL.
run *args:
    cargo run -- {{args}}

# Run all tests, or those whose name contains a text.
test *args:
    cargo test {{args}}

# Check format and lints, as .ci/run does.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Measure: `just bench --quick`, `just bench --only gate`.
bench *args:
    cargo run --release --example bench -- {{args}}

# Check the links of the documentation, and build the API documentation of the code.
docs:
    .ci/links
    cargo doc --no-deps --workspace --document-private-items
