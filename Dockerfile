# Does not need BuildKit. The dependencies are a separate layer, rebuilt when Cargo.toml or Cargo.lock changes.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY crates/domain/Cargo.toml crates/domain/
RUN mkdir src crates/domain/src \
    && touch src/lib.rs crates/domain/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin metergate \
    && cargo clean --release --locked --package metergate --package metergate-domain \
    && rm -r src crates/domain/src
# the settings, migrations and the API document are compiled in
COPY openapi.yaml ./
COPY config config
COPY migrations migrations
COPY crates crates
COPY src src
RUN cargo build --release --locked --bin metergate \
    && strip target/release/metergate

FROM debian:bookworm-slim
# for outgoing calls: JWKS documents, Stripe
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/metergate /usr/local/bin/metergate
# The image has no PostgreSQL and downloads none. Set DATABASE_URL; without it, the start fails and says so.
ENV METERGATE__HTTP__BIND=0.0.0.0:8080 \
    METERGATE__POSTGRES__BIN=/nonexistent \
    METERGATE__POSTGRES__FOLDER=/tmp/metergate
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["metergate", "healthcheck"]
ENTRYPOINT ["metergate"]
CMD ["serve"]
