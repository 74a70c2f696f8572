# Everyday commands. `just` lists them; https://just.systems installs it, as `cargo install just` does.

_list:
    @just --list --unsorted

# One process on SQLite, data in ./data.
dev *ARGS:
    cargo run --release -- dev {{ARGS}}

# Before each commit: format, lints, and every test that starts no server. Under 90 seconds when warm.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo nextest run --workspace --locked -E 'not (package(tests) or package(bench) or test(/^(embedded|scaled)::/) or test(scaled)) or test(/^(architecture|documents)::/)'

# The stories with this in their names, both ways: `just story a_rolling_upgrade`.
story NAME *ARGS:
    cargo build --workspace --locked
    cargo nextest run --workspace --locked -E 'test({{NAME}})' {{ARGS}}

# Every test, as CI runs them.
stories:
    tests/run

# Writes the schemas of events and the documents of the API again.
schemas:
    UPDATE_SCHEMAS=1 cargo test -p domain --test schemas
    UPDATE_SCHEMAS=1 cargo test -p server document
    UPDATE_SCHEMAS=1 cargo test -p toy -p loyalty --bins

# Measures: `just bench create --seconds 20`.
bench *ARGS:
    cargo build --profile dist --locked -p server -p bench -p loyalty -p toy
    target/dist/docket-bench {{ARGS}}
