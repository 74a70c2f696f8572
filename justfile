# Everyday commands. `just` lists them. Install it from https://just.systems or with `cargo install just`.

_list:
    @just --list --unsorted

# Runs one process on SQLite, with its data in ./data.
dev *ARGS:
    cargo run --release -- dev {{ARGS}}

# Checks format and lints and runs every test that starts no `docket`. Run it before each commit; it takes under 90 seconds after a first build.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo build --package tests --bins --locked
    cargo nextest run --workspace --locked -E 'not (package(tests) or package(bench) or (package(loyalty) and kind(test))) or test(/^(architecture|documents)::/)'

# Runs the stories whose names contain NAME, embedded and scaled: `just story a_rolling_upgrade`.
story NAME *ARGS:
    cargo build --workspace --locked
    cargo nextest run --workspace --locked -E 'test({{NAME}})' {{ARGS}}

# Runs every test as CI does.
stories:
    tests/run

# Regenerates the event schemas and the API documents.
schemas:
    UPDATE_SCHEMAS=1 cargo test -p domain --test schemas
    UPDATE_SCHEMAS=1 cargo test -p server document
    UPDATE_SCHEMAS=1 cargo test -p toy -p loyalty --bins

# Regenerates the sources of the clients from the API document, and builds the TypeScript client.
clients:
    cd clients/typescript && npm run generate && npm run check && npm run build
    cd clients/python && PYTHONPATH={{justfile_directory()}}/target/tools/python python3 generate.py

# Runs a benchmark: `just bench create --seconds 20`.
bench *ARGS:
    cargo build --profile dist --locked -p server -p bench -p loyalty -p toy
    target/dist/docket-bench {{ARGS}}

# Builds the optimised binary, and packs it with its documents into target/dist/docket-*.tar.gz.
dist:
    cargo build --profile dist --locked --package server
    deploy/dist target/dist/docket target/dist
