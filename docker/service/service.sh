#!/usr/bin/env bash
# The service in containers; `bash service.sh help` lists what it does, docs/service.md explains it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
clone=$(dirname "$(dirname "$here")")
settings=$here/.env
wait_seconds=180
first_password=/var/lib/decimer-jobs/admin-password

usage() {
    cat <<'END'
bash docker/service/service.sh COMMAND

  up [NAME [EMAIL]]      build, start, or bring up to date; NAME is how clients call the service, needed once.
                         With EMAIL the certificate is one of Let's Encrypt, without it one of the proxy's own authority
  build                  build the image alone, for the next up or restore
  password               show the first password of the user admin
  reset-password         give the user admin a new password, and show it
  certificate            show the certificate of the proxy's own authority, which clients must trust
  status                 list the containers
  logs [SERVICE]         follow the logs of all, or of api, proxy or db
  backup FILE            write the database to FILE; the service goes on
  restore FILE [--yes]   put the database of FILE in the place of the present one; --yes does not ask
  down                   stop all; the data stay
  compose ARGUMENT...    run docker compose on it
END
}

die() {
    echo "service.sh: $*" >&2
    exit 1
}

say() {
    echo "$*" >&2
}

# shellcheck source-path=SCRIPTDIR source=backup.sh
source "$here/backup.sh"

# --- Docker ---

check_docker() {
    command -v docker >/dev/null || die "docker is not found; install it (Debian: apt-get install docker.io docker-compose)"
    local said
    said=$(docker version --format '{{.Server.Version}}' 2>&1) ||
        die "Docker's engine cannot be used: ${said##*$'\n'}; start it, or run this as root or as a member of the group docker"
    if docker compose version >/dev/null 2>&1; then
        compose_program=(docker compose)
    elif command -v docker-compose >/dev/null; then
        compose_program=(docker-compose)
        # compose 1 is no longer made, and newer engines do not answer it any more as it expects.
        if [[ ${said%%.*} =~ ^[0-9]+$ ]] && ((${said%%.*} >= 26)) && [[ $(docker-compose version --short 2>/dev/null) == 1.* ]]; then
            die "docker-compose 1 cannot work with Docker $said; install compose as docker's plugin (Ubuntu: apt-get install docker-compose-v2; of Docker's own packages: docker-compose-plugin)"
        fi
    else
        die "docker compose is not found; install the package docker-compose-v2 (Ubuntu), docker-compose-plugin (Docker's own) or docker-compose (Debian)"
    fi
}

# What compose says is shown where it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || {
        printf '%s\n' "$said" | tail -n 30 >&2
        return 1
    }
}

# One of .env, as compose reads it; what the environment says goes before.
setting() {
    local name=$1 value=${!1:-} line
    if [[ -z $value && -f $settings ]]; then
        while IFS= read -r line || [[ -n $line ]]; do
            line=${line%$'\r'}
            [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?${name}[[:space:]]*=[[:space:]]*(.*)$ ]] || continue
            value=${BASH_REMATCH[2]}
            if [[ $value =~ ^\'([^\']*)\' || $value =~ ^\"([^\"]*)\" ]]; then
                value=${BASH_REMATCH[1]}
            else
                value=${value%%[[:space:]]#*}
                value=${value%"${value##*[![:space:]]}"}
            fi
        done <"$settings"
    fi
    echo "${value:-$2}"
}

image=$(setting API_IMAGE decimer-jobs-api)
COMPOSE_PROJECT_NAME=$(setting COMPOSE_PROJECT_NAME decimer-jobs)
export COMPOSE_PROJECT_NAME

# :PORT, where it is not the usual one.
https_suffix() {
    local port
    port=$(setting HTTPS_PORT 443)
    port=${port##*:}
    [[ $port == 443 ]] || echo ":$port"
}

address() { echo "https://$(setting SITE localhost)$(https_suffix)"; }

compose() {
    API_IMAGE=$image HTTPS_SUFFIX=$(https_suffix) "${compose_program[@]}" --project-directory "$here" --file "$here/docker-compose.yml" "$@"
}

# Those of a service that run; asked of Docker, for of compose there are two kinds, which answer differently.
containers() {
    docker ps --no-trunc --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
        --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False "${@:2}"
}

stopped() { containers "$1" --all --filter status=created --filter status=exited --filter status=dead; }

health() { docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' "$1"; }

restarts() { docker inspect --format '{{.RestartCount}}' "$1"; }

wait_until_healthy() {
    local what=$1 container begun deadline=$((SECONDS + wait_seconds))
    shift
    (($#)) || die "no container of $what was started; look at: bash $0 status"
    for container in "$@"; do
        begun=$(restarts "$container")
        until [[ $(health "$container") == healthy ]]; do
            if (($(restarts "$container") > begun + 2)); then
                docker logs --tail 20 "$container" >&2 || true
                die "$what ends again and again; above is the end of its log"
            elif ((SECONDS > deadline)); then
                docker logs --tail 20 "$container" >&2 || true
                die "$what is not ready after $wait_seconds s; above is the end of its log"
            fi
            sleep 0.5
        done
    done
}

database() { containers db | head -n 1; }

# Ctrl-C does not reach it: what it was told goes on in the container in any case, and its end shall be known.
sql() { setsid --wait docker exec --interactive "$(database)" psql --username=decimer --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

# --- up ---

remember_name() {
    local name=$1 contact=${2:-}
    [[ $name != *:* ]] || die "'$name' is more than a name; a port is set as HTTPS_PORT in $settings"
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9.-]*$ ]] || die "'$name' is no name of a host; give it without https:// and without a path"
    if [[ -z $contact && $name == "$(setting SITE '')" ]]; then
        contact=$(setting TLS internal)
        [[ $contact == internal ]] || say "the certificate stays one of Let's Encrypt for $contact; for the proxy's own authority: up $name internal"
    fi
    contact=${contact:-internal}
    [[ $contact == internal || $contact == ?*@?*.?* ]] || die "'$contact' is no e-mail address"
    local half=$settings.half
    { [[ ! -f $settings ]] || grep --invert-match --extended-regexp '^(SITE|TLS)=' "$settings" || true; } >"$half"
    printf 'SITE=%s\nTLS=%s\n' "$name" "$contact" >>"$half"
    mv "$half" "$settings"
}

# A shell of its own, which leaves nothing behind.
build() (
    context='' revision=unknown dirty=unknown
    if git -C "$clone" rev-parse HEAD >/dev/null 2>&1; then
        revision=$(git -C "$clone" rev-parse HEAD)
        dirty=$([[ -z $(git -C "$clone" status --porcelain) ]] && echo false || echo true)
    fi
    context=$(mktemp --directory)
    trap 'rm -rf "$context"' EXIT
    # Where a proxy inspects TLS, PyPI is reached with the machine's own bundle alone; it gets no further than the build.
    : >"$context/ca-bundle.crt"
    [[ -z ${SSL_CERT_FILE:-} ]] || cp "$SSL_CERT_FILE" "$context/ca-bundle.crt"
    say "building the image $image of ${revision:0:7} (a first time takes minutes) ..."
    # Docker takes the values from the environment, and keeps them in no layer: they may hold a password.
    local proxies=() name
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [[ -z ${!name:-} ]] || proxies+=(--build-arg "$name")
    done
    # The host's network: a build may need a way out that only the machine has. Logins that lie in the clone stay there.
    tar --create --mode=a+rX --owner=0 --group=0 --exclude=__pycache__ --exclude='*.conf' --exclude='*.env' --exclude='*.dump' \
        --directory="$clone" pyproject.toml uv.lock job_api alembic docker/api docker/install-dependencies.sh \
        --directory="$context" ca-bundle.crt |
        quietly docker build --network=host --tag "$image" --file docker/api/Dockerfile \
            --build-arg "UV_VERSION=$(sed -n 's/^UV_VERSION := //p' "$clone/Makefile")" \
            --build-arg "VERSION=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' "$clone/pyproject.toml")" \
            --build-arg "REVISION=$revision" --build-arg "DIRTY=$dirty" "${proxies[@]}" - ||
        die "the image cannot be built; above is the end of what the builder said"
)

start_database() {
    quietly compose up --detach db || die "the database cannot be started; above is what compose said"
    wait_until_healthy "the database" "$(database)"
}

# A label says which settings a container was made with: compose's own hash of them is not the same from one of its
# versions to the next.
settings_of_api() {
    compose config | awk '/^[^ ]/ { within = ($1 == "services:") }
        within && /^  [^ ]/ { api = ($1 == "api:") }
        within && api' | sha256sum | cut --characters=1-16
}

image_id() { docker image inspect --format '{{.Id}}' "$image"; }

# The network that the proxy finds the API in.
front() {
    local filters=(--filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter label=com.docker.compose.network=front)
    [[ -n $(docker network ls --quiet "${filters[@]}") ]] || quietly compose up --no-start --no-deps --no-recreate proxy || return 1
    docker network ls --quiet --no-trunc "${filters[@]}"
}

# Let the proxy find containers, which it does not before they are ready.
open_to_proxy() {
    local front container
    front=$(front) || die "the network of the proxy cannot be made; above is what compose said"
    for container in "$@"; do
        [[ $(docker inspect --format '{{range .NetworkSettings.Networks}}{{.NetworkID}} {{end}}' "$container") == *"$front"* ]] ||
            docker network connect --alias api "$front" "$container" || return 1
    done
}

# Makes so many more containers of the API, and takes them in once they are ready; of those that do not get ready none is left.
add_api() {
    local before=" ${*:2} " added=() container failed=''
    API_SETTINGS=$wanted_settings quietly compose up --detach --no-deps --no-recreate --scale "api=$(($# - 1 + $1))" api || failed=yes
    for container in $(containers api --all); do
        [[ $before == *" $container "* ]] || added+=("$container")
    done
    if [[ -n $failed ]] || ! (wait_until_healthy "the new API" "${added[@]}" && open_to_proxy "${added[@]}"); then
        ((${#added[@]} == 0)) || docker rm --force "${added[@]}" >/dev/null
        (($# == 1)) || die "the old containers of the API go on; the new ones were removed"
        die "the API cannot be started; above is why"
    fi
}

# Containers of an older image or other settings are replaced one by one, each once a new one is ready.
start_api() {
    local wanted wanted_settings wanted_image running=() current=() surplus=() container
    wanted=$(setting API_CONTAINERS 1)
    [[ $wanted =~ ^[1-9][0-9]?$ ]] || die "API_CONTAINERS in $settings is '$wanted' and must be a number from 1 to 99"
    wanted_settings=$(settings_of_api) || die "compose cannot read the settings; above is why"
    wanted_image=$(image_id)
    # compose would start them again, whatever they were made of.
    for container in $(stopped api); do
        docker rm "$container" >/dev/null
    done
    mapfile -t running < <(containers api)
    for container in "${running[@]}"; do
        if ((${#current[@]} < wanted)) &&
            [[ $(docker inspect --format '{{.Image}} {{index .Config.Labels "decimer-jobs.settings"}}' "$container") == "$wanted_image $wanted_settings" ]]; then
            current+=("$container")
        else
            surplus+=("$container")
        fi
    done
    if ((${#current[@]} < wanted)); then
        ((${#surplus[@]} == 0)) || say "replacing ${#surplus[@]} container(s) of the API, one by one ..."
        add_api $((wanted - ${#current[@]})) "${running[@]}"
    fi
    ((${#current[@]} == 0)) || (wait_until_healthy "the API" "${current[@]}")
    open_to_proxy "${current[@]}"
    for container in "${surplus[@]}"; do
        docker stop --time 20 "$container" >/dev/null
        docker rm "$container" >/dev/null
    done
}

start_proxy() {
    quietly compose up --detach --no-deps proxy || die "the proxy cannot be started; above is what compose said"
    local proxy
    proxy=$(containers proxy)
    wait_until_healthy "the proxy" "$proxy"
    # Its file may be a newer one than it read.
    quietly docker exec "$proxy" caddy reload --config /etc/caddy/Caddyfile --adapter caddyfile || die "the proxy refuses its Caddyfile"
}

start() {
    say "starting the database ..."
    start_database
    quietly compose run --rm --no-deps migrate || die "the schema cannot be brought up to date; above is why"
    say "starting the API and the proxy ..."
    start_api
    start_proxy
    # What older builds left; another one may have them in use.
    docker image prune --force --filter label=org.opencontainers.image.title=decimer-jobs-api >/dev/null || true
}

up() {
    (($# <= 2)) || die "up takes a name and an e-mail address"
    (($# == 0)) || remember_name "$@"
    [[ -n $(setting SITE '') ]] || die "say first how clients call the service: up jobs.example.org you@example.org (certificate of Let's Encrypt) or up NAME (of the proxy's own authority)"
    build
    start
    say "the service is at $(address), with $(containers api | wc -l) container(s) of the API"
    say "password of the user admin: bash $0 password"
    [[ $(setting TLS internal) != internal ]] || say "clients must trust: bash $0 certificate > decimer-jobs-ca.crt"
}

# --- the rest ---

need_running() {
    [[ -n $(containers "$1") ]] || die "the service does not run; start it with: bash $0 up"
}

# Not compose's own exec: it wants the first one, which is gone once others have taken its place.
in_api() { docker exec "$(containers api | head -n 1)" "$@"; }

password() {
    need_running api
    in_api cat "$first_password" 2>/dev/null ||
        die "there is no first password here: the users are those of a backup. A new one: bash $0 reset-password"
}

reset_password() {
    need_running api
    quietly in_api job-api reset-admin || die "the password cannot be set; above is why"
    password
}

certificate() {
    need_running proxy
    [[ $(setting TLS internal) == internal ]] || die "the certificate is one of Let's Encrypt, which clients trust anyway"
    docker exec "$(containers proxy)" cat /data/caddy/pki/authorities/local/root.crt
}

main() {
    local command=${1:-help}
    shift || true
    case $command in
        help | --help | -h) usage ;;
        reset-password)
            check_docker
            reset_password
            ;;
        up | build | password | certificate | backup | restore | compose)
            check_docker
            "$command" "$@"
            ;;
        status)
            check_docker
            compose ps
            ;;
        logs)
            check_docker
            compose logs --tail=100 --follow "$@"
            ;;
        down)
            check_docker
            compose down
            ;;
        *)
            usage >&2
            die "there is no command '$command'"
            ;;
    esac
}

main "$@"
