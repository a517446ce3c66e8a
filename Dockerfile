# rosi-gguf for the CPU, to run on any x86-64 with AVX2 or any arm64:
#
#   docker build -t rosi-gguf .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/models" rosi-gguf inject model.gguf
#
# -u because what is written into the folder is to belong to you. Models of the hub go to HF_HOME, which is /models/.cache
# here: they are kept between runs.
FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ libclang-dev make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN scripts/portable cargo build --release --locked \
 && target/release/rosi-gguf man --dir /man \
 && target/release/rosi-gguf completions bash > /rosi-gguf.bash

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 libstdc++6 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 rosi \
 && install -d -o rosi /models
COPY --from=build /src/target/release/rosi-gguf /usr/local/bin/
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /usr/local/share/doc/rosi-gguf/
COPY --from=build /man /usr/local/share/man/man1
COPY --from=build /rosi-gguf.bash /usr/share/bash-completion/completions/rosi-gguf
ENV HF_HOME=/models/.cache
USER 1000
WORKDIR /models
ENTRYPOINT ["rosi-gguf"]
CMD ["--help"]
