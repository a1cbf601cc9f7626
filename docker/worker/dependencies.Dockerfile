# The lower half of a worker's image: Debian's Python, and in /opt/venv what uv.lock pins. Made anew when one of the
# files in its context changes, which `uworker/snapshot/images.py` puts together.
ARG BASE=debian:bookworm-slim

# A volume that is mounted at a folder for the first time takes over its owner and mode; a tmpfs the mode alone.
FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin uworker \
    && install --directory --owner=uworker --group=uworker --mode=0700 /var/lib/uworker \
    && install --directory --mode=1777 /run/uworker

# Thrown away: pip, uv and the certificates of the machine that builds go no further.
FROM python AS dependencies
ARG EXTRA=worker
ARG GROUP=cpu
ARG UV_VERSION=0.13.8
RUN apt-get update && apt-get install --yes --no-install-recommends binutils python3-venv
WORKDIR /build
COPY . .
RUN sh install-dependencies.sh "$UV_VERSION" "$EXTRA" "$GROUP" && sh slim.sh

FROM python
COPY --from=dependencies /opt/venv /opt/venv
