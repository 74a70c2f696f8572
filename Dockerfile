# syntax=docker/dockerfile:1.7
FROM rust:1.95.0-bookworm AS build
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --profile dist --locked --package server \
    && install -D target/dist/docket /out/docket

FROM debian:12.11-slim
COPY --from=build /out/docket /usr/local/bin/docket
# The root certificates for TLS connections to NATS and to an OTLP collector.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# The working directory. In embedded mode, the databases are in ./data.
RUN install -d -m 700 -o 10001 -g 10001 /var/lib/docket
WORKDIR /var/lib/docket
USER 10001:10001
ENV DOCKET_LISTEN=0.0.0.0:8080 DOCKET_METRICS_LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
ENTRYPOINT ["docket"]
CMD ["serve"]
