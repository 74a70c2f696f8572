# syntax=docker/dockerfile:1
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /docket
COPY . .
# Both caches stay on the builder: a change of one crate compiles that crate, and what is above it.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/docket/target \
    cargo build --release --locked && install -m 755 -s target/release/docket /usr/local/bin/docket

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /usr/local/bin/docket /usr/local/bin/docket
EXPOSE 8080 9464
ENTRYPOINT ["docket"]
CMD ["serve"]
