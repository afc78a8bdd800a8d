# Image with the host only: the bundled policies and both database schemas are inside the binary.

FROM rust:1.95-bookworm AS build
WORKDIR /nova
COPY . .
# rust-toolchain.toml adds the WebAssembly target for the policies.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/nova/target \
    cargo build --release --locked && cp target/release/nova /usr/local/bin/nova

FROM debian:bookworm-slim
# The health check of the container calls /readyz with curl.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates curl && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/nova --create-home nova
COPY --from=build /usr/local/bin/nova /usr/local/bin/nova
USER nova
VOLUME /var/lib/nova
EXPOSE 8080
CMD ["nova", "serve"]
