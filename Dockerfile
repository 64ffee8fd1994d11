# The platform's images, a target each, with and without BuildKit:
#   docker build --target gateway -t dartcloud/gateway .
#   docker build --target node-agent -t dartcloud/node-agent .
# Programs that were built already are taken with --build-arg PROGRAMS=given --build-arg RUST=debian:bookworm-slim; they
# lie in .programs then. Where no registry has these two images, `script/images gateway node-agent` does all that.
ARG RUST=rust:1.95-bookworm
ARG BASE=debian:bookworm-slim

FROM ${RUST} AS programs
ARG PROGRAMS=built
WORKDIR /src
# The dependencies are a layer of their own, made anew only when a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
COPY cli/Cargo.toml cli/
COPY common/Cargo.toml common/
COPY gateway/Cargo.toml gateway/
COPY node-agent/Cargo.toml node-agent/
COPY runner/Cargo.toml runner/
COPY store/Cargo.toml store/
COPY tests/Cargo.toml tests/
RUN [ "$PROGRAMS" = given ] || { \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake jq && rm -rf /var/lib/apt/lists/* \
   && for crate in */; do \
        mkdir -p "$crate/src" "$crate/tests" "$crate/e2e" \
     && touch "$crate/src/lib.rs" "$crate/tests/program.rs" "$crate/e2e/main.rs" \
     && echo 'fn main() {}' >"$crate/src/main.rs"; \
      done \
   && cargo build --locked --release --workspace --exclude runner --bins; \
    }
COPY . .
# Whatever its time, what was copied is newer than what stood in for it.
RUN if [ "$PROGRAMS" = given ]; then mv .programs /programs; else \
      find . -name '*.rs' -not -path './target/*' -exec touch {} + \
   && script/build --release \
   && mkdir /programs \
   && cd target/release \
   && mv dartcloud dartcloud-gateway dartcloud-node-agent dartcloud-runner /programs/; \
    fi

FROM ${BASE} AS gateway
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
 && useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin dartcloud \
 && install -d -o dartcloud -g dartcloud /app /app/data /app/functions /run/dartcloud
COPY --from=programs /programs/dartcloud /programs/dartcloud-gateway /usr/local/bin/
# One that was built on a newer system than this wants a newer C library, and fails here and not in operation.
RUN dartcloud-gateway --version
USER dartcloud
WORKDIR /app
ENV DATA_DIR=/app/data FUNCTIONS_DIR=/app/functions BIND_ADDR=0.0.0.0 LINK_SOCKET=/run/dartcloud/link.sock
VOLUME /app/data /app/functions
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD curl -fs -o /dev/null "http://${OPS_ADDR:-127.0.0.1:9464}/ready"
ENTRYPOINT ["dartcloud-gateway"]

# The agent is root: it mounts builds into sandboxes, and whoever has the Engine's socket is root anyway.
FROM ${BASE} AS node-agent
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates curl e2fsprogs iptables mount \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
# `dartcloud` is for `node join` and `node doctor`.
COPY --from=programs /programs/dartcloud /programs/dartcloud-node-agent /programs/dartcloud-runner /usr/local/bin/
RUN dartcloud-node-agent --version
ENV DATA_DIR=/var/lib/dartcloud LINK_SOCKET=/run/dartcloud/link.sock
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD curl -fs -o /dev/null "http://${OPS_ADDR:-127.0.0.1:9464}/ready"
ENTRYPOINT ["dartcloud-node-agent"]
