#!/usr/bin/env bash
# Starts the worker of the snapshot in this folder, or starts it again.
#   bash start_worker.sh [start|stop|status|logs|remove]
# Needs docker, and compose as its plugin or as docker-compose. `logs` takes the options of `docker logs`, such as -f.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# How long the worker may take until it has reached the service and asked for its first job.
start_seconds=${START_SECONDS:-180}
# Where the container sees the certificates that WORKER_CA_FILE names, as in docker-compose.yml.
ca_file=/etc/ssl/worker-ca.crt

die() {
    echo "start_worker.sh: $*" >&2
    exit 1
}

# The value of a NAME=value line of worker.env, as compose reads it; the last one counts.
setting() {
    local line value=
    local single="^[[:space:]]*'(([^'\\]|\\\\.)*)'" double='^[[:space:]]*"(([^"\]|\\.)*)"'
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=(.*)$ ]] || continue
        value=${BASH_REMATCH[2]}
        if [[ $value =~ $single ]]; then
            value=${BASH_REMATCH[1]//"\\'"/"'"}
        elif [[ $value =~ $double ]]; then
            value=${BASH_REMATCH[1]//'\"'/'"'}
        else
            value=${value%%[[:space:]]#*}
            value=${value#"${value%%[![:space:]]*}"}
            value=${value%"${value##*[![:space:]]}"}
        fi
    done <"$here/worker.env"
    printf '%s' "$value"
}

# What the build wrote into the compose file of this snapshot; a line for each service that has it.
facts() {
    sed -n "s/^ *$1: *\"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" "$here/docker-compose.yml"
}

require_folder() {
    local file name
    for file in docker-compose.yml worker.env; do
        [[ -r $here/$file ]] || die "$here/$file is missing or cannot be read; copy the snapshot's whole folder (scp -rp)"
    done
    if grep -q $'\r' "$here/worker.env"; then
        die "worker.env has the line ends of Windows; take them out: sed -i 's/\r//' '$here/worker.env'"
    fi
    for name in UWORKER_JOB_API_ROOT UWORKER_JOB_API_PROJECT; do
        [[ -n $(setting "$name") ]] || die "worker.env says no $name; write $name=… into it"
    done
    if [[ $(stat -c %a "$here/worker.env") != 600 ]]; then
        if chmod 600 "$here/worker.env" 2>/dev/null; then
            echo "worker.env holds the token; it is now readable for its owner alone"
        else
            echo "start_worker.sh: warning: worker.env holds the token, and others may read it; let its owner call chmod 600 '$here/worker.env'" >&2
        fi
    fi
}

require_docker() {
    command -v docker >/dev/null || die "docker is not installed; on Debian: sudo apt-get install docker.io docker-compose (Ubuntu: docker.io docker-compose-v2)"
    local said
    if ! said=$(docker version --format '{{.Server.Version}}' 2>&1); then
        case $said in
            *"ermission denied while trying to connect"*) die "this user may not use docker; use sudo, or: sudo usermod -aG docker $(id -un), and log in again" ;;
            *) die "the Docker engine does not answer (${said##*$'\n'}); start it: sudo systemctl start docker" ;;
        esac
    fi
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif command -v docker-compose >/dev/null; then
        compose=(docker-compose)
        # compose 1 is no longer made, and newer engines do not answer it any more as it expects.
        if [[ ${said%%.*} =~ ^[0-9]+$ ]] && ((${said%%.*} >= 26)) && [[ $(docker-compose version --short 2>/dev/null) == 1.* ]]; then
            die "docker-compose 1 cannot work with Docker $said; install compose as docker's plugin: sudo apt-get install docker-compose-v2 (of Docker's own packages: docker-compose-plugin)"
        fi
    else
        die "compose is not installed; on Debian: sudo apt-get install docker-compose (Ubuntu: docker-compose-v2)"
    fi
    # By the path: a copy elsewhere is another worker.
    local base sum
    base=$(basename "$here" | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9_\n' '-')
    sum=$(printf '%s' "$here" | cksum)
    name=decimer-$base-${sum%% *}
    compose+=(--project-name "$name" --project-directory "$here" --file "$here/docker-compose.yml")
    # What the compose file asks for, it gets from worker.env.
    local variable
    # shellcheck disable=SC2016
    for variable in $(grep -o '\${[A-Z_]*' "$here/docker-compose.yml" | tr -d '${'); do
        export "$variable=$(setting "$variable")"
    done
    # The same place, where that is all that is said.
    [[ -n $WORKER_MOUNT ]] || WORKER_MOUNT=$(setting UWORKER_SOURCE_ROOT)
    # SSL_CERT_FILE is the container's, and not what this machine's shell says.
    SSL_CERT_FILE=$(setting SSL_CERT_FILE)
    [[ -z $WORKER_CA_FILE ]] || SSL_CERT_FILE=$ca_file
    export SSL_CERT_FILE
    [[ -n $SSL_CERT_FILE ]] || unset SSL_CERT_FILE
    services=(worker)
    [[ -z $(facts engine_image_id) ]] || services+=(engine)
    mapfile -t images < <(facts image)
}

# The id of this folder's container of a service, running or not; nothing where there is none.
container() {
    docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$name" \
        --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False | head -n 1
}

has_image() {
    docker image inspect "$1" >/dev/null 2>&1
}

# An image's name ends with its id: who has one of that name has that image.
load_image() {
    local image is_loaded=yes file=$here/docker_image root driver free_kb need_kb
    for image in "${images[@]}"; do
        has_image "$image" || is_loaded=no
    done
    if [[ $is_loaded == yes ]]; then
        printf 'image %s is loaded\n' "${images[@]}"
        return
    fi
    [[ -r $file ]] || die "$file is missing or cannot be read; copy the snapshot's whole folder (scp -rp)"
    root=$(docker info --format '{{.DockerRootDir}}')
    # Where containerd keeps the images, they are no part of docker's folder.
    driver=$(docker info --format '{{json .DriverStatus}}')
    [[ $driver != *io.containerd.snapshotter* || ! -d /var/lib/containerd ]] || root=/var/lib/containerd
    # docker unpacks the whole file before it takes the image apart.
    need_kb=$(($(facts size_bytes) * 2 / 1024 + 262144))
    if free_kb=$(df -Pk "$root" 2>/dev/null | awk 'NR == 2 { print $4 }') && [[ -n $free_kb ]] && ((free_kb < need_kb)); then
        die "only $((free_kb / 1024)) MB are free where docker keeps its images ($root), and this one needs $((need_kb / 1024)) MB while it is loaded; make room (docker image prune --all --filter label=decimer-jobs.snapshot takes away the snapshots that no worker uses), or give docker a larger disk"
    fi
    echo "loading the image, which takes a while the first time"
    docker load --quiet --input "$file" >/dev/null || die "the image could not be loaded; docker says above why"
    for image in "${images[@]}"; do
        has_image "$image" || die "$file does not hold the image $image; copy the snapshot's whole folder anew"
    done
}

# Runs something in a container like the worker's. When it fails, shows what it said: lines that begin with `uworker: `,
# or all, when it is compose that failed.
in_container() {
    local said
    if ! said=$("${compose[@]}" run --rm --no-deps -T "$@" </dev/null 2>&1); then
        grep '^uworker: ' <<<"$said" | sed 's/^uworker: /start_worker.sh: /' >&2 || echo "$said" >&2
        if [[ $said == *"ertificate verify failed"* || $said == *CERTIFICATE_VERIFY_FAILED* ]]; then
            die "this machine must be told whose certificates to believe: WORKER_CA_FILE in worker.env names a file of certificates, such as /etc/ssl/certs/ca-certificates.crt"
        fi
        die "the worker was not started; put that right, then: bash $0"
    fi
}

# To be run in the container; its argument is $0 there.
# shellcheck disable=SC2016
may_read='[ -r "$0" ] && [ -x "$0" ] || { echo "uworker: the worker, which runs as user 10001, may not read $0; let others read it (chmod o+rx)"; exit 1; }'
# shellcheck disable=SC2016
may_write='[ -w "$0" ] || { echo "uworker: the worker, which runs as user 10001, may not write to $0; let it (setfacl -R -m u:10001:rwX -m d:u:10001:rwX)"; exit 1; }'

# shellcheck disable=SC2016
may_read_file='[ -r "$0" ] || { echo "uworker: the worker, which runs as user 10001, may not read the file that WORKER_CA_FILE names; let others read it (chmod o+r)"; exit 1; }'

check() {
    if [[ -n $WORKER_CA_FILE ]]; then
        [[ -f $WORKER_CA_FILE ]] || die "there is no file $WORKER_CA_FILE on this machine; correct WORKER_CA_FILE in worker.env"
        in_container --entrypoint sh check -c "$may_read_file" "$ca_file"
    fi
    if [[ -n $WORKER_MOUNT ]]; then
        [[ -d $WORKER_MOUNT ]] || die "there is no folder $WORKER_MOUNT on this machine; mount it, or correct WORKER_MOUNT in worker.env"
        in_container --entrypoint sh check -c "$may_read" "$WORKER_MOUNT"
        [[ $WORKER_MOUNT_READ_ONLY != false ]] || in_container --entrypoint sh check -c "$may_write" "$WORKER_MOUNT"
    fi
    in_container check check
}

# One field of what `uworker state --json` says.
field() {
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" <<<"$2" | head -n 1
}

# Shows the log's end, and gives up.
fail() {
    local id=$1
    shift
    docker logs --tail 15 "$id" 2>&1 | sed 's/^/  /' >&2
    die "$*"
}

# A container that has ended, or was started again by Docker, will not come right while somebody waits.
require_up() {
    local service=$1 id=$2 status restarts code
    read -r status restarts code < <(docker inspect --format '{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}' "$id")
    if [[ $status != running && $status != created ]] || ((restarts > 0)); then
        # One that was started again has no exit code.
        [[ $status != running ]] || code=unknown
        code=$(docker events --since 1h --until 0s --filter "container=$id" --filter event=die \
            --format '{{.Actor.Attributes.exitCode}}' | tail -n 1 | grep . || echo "$code")
        [[ $code != 137 ]] || code="137 (killed, possibly for want of memory; WORKER_MEMORY_LIMIT in worker.env bounds it)"
        halt
        fail "$id" "the $service ended with exit code $code, and was not started again; its last words are above"
    fi
}

wait_until_ready() {
    local id service said loading end=$((SECONDS + start_seconds))
    id=$(container worker)
    while :; do
        for service in "${services[@]}"; do
            require_up "$service" "$(container "$service")"
        done
        if said=$(docker exec "$id" uworker state --json 2>/dev/null); then
            loading=
            [[ $(field state "$said") != working || $said != *'"threads":0,'* ]] || loading="; it is loading the engine"
            echo "worker $(field worker_id "$said"): $(field plan "$said")$loading; status: $(setting UWORKER_JOB_API_ROOT)/v4/$(setting UWORKER_JOB_API_PROJECT)"
            return
        fi
        if ((SECONDS >= end)); then
            fail "$id" "the worker is not ready after $start_seconds s; it goes on trying: bash $0 status (or logs, or stop)"
        fi
        sleep 0.5
    done
}

# Ends what runs: the worker first, while its engine is there.
halt() {
    local service id
    for service in "${services[@]}"; do
        id=$(container "$service")
        [[ -z $id ]] || docker stop -t 30 "$id" >/dev/null
    done
}

start() {
    load_image
    check
    local said
    if [[ -n $(docker ps --quiet --filter "label=com.docker.compose.project=$name") ]]; then
        echo "the worker that runs is replaced; it gives back what it holds"
        halt
    fi
    said=$("${compose[@]}" up --detach --force-recreate "${services[@]}" 2>&1 </dev/null) || { echo "$said" >&2; die "compose could not start the worker; it says above why"; }
    wait_until_ready
}

stop() {
    local id was code
    id=$(container worker)
    [[ -n $id ]] || die "no worker was started from this folder"
    was=$(docker inspect --format '{{.State.Status}}' "$id")
    halt
    code=$(docker inspect --format '{{.State.ExitCode}}' "$id")
    case $was:$code in
        running:0) echo "stopped; what the worker held was given back. Its log is kept: bash $0 logs" ;;
        running:137) die "the worker did not end within 30 s and was killed (exit code 137); what it held is given to others when its leases run out" ;;
        running:*) die "the worker ended with exit code $code; what it held may be given to others only when its leases run out. Its log: bash $0 logs" ;;
        *) echo "stopped; the worker did not run, it had ended with exit code $code. Its log is kept: bash $0 logs" ;;
    esac
}

status() {
    local service id status code ended
    for service in "${services[@]}"; do
        id=$(container "$service")
        [[ -n $id ]] || die "no $service was started from this folder; start one: bash $0"
        read -r status code ended < <(docker inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.FinishedAt}}' "$id")
        case $status in
            running) ;;
            restarting) die "the $service fails and is started again and again; it ended last with exit code $code at $ended. Its log: bash $0 logs" ;;
            *) die "the $service does not run; it ended with exit code $code at $ended" ;;
        esac
        [[ $service != engine ]] || docker inspect --format 'engine: {{.State.Health.Status}}, was started again {{.RestartCount}} times' "$id"
    done
    code=0
    docker exec "$(container worker)" uworker state || code=$?
    ((code <= 1)) || die "the worker ended while it was asked; ask again: bash $0 status"
    return "$code"
}

# Whether results that the service has not got lie in the volume. In the image of the worker, for the volume is its user's.
# shellcheck disable=SC2016
has_results='for file in /var/lib/uworker/*.spool; do [ ! -e "$file" ] || exit 9; done'

remove() {
    local service id image used=false code=0
    for service in "${services[@]}"; do
        id=$(container "$service")
        [[ -n $id ]] || continue
        case $(docker inspect --format '{{.State.Status}}' "$id") in
            running | restarting | paused) die "the $service runs; stop it first: bash $0 stop" ;;
        esac
    done
    if [[ $discard == false ]] && docker volume inspect "${name}_spool" >/dev/null 2>&1; then
        has_image "${images[0]}" || die "the image is gone, so that nobody can see whether results wait for the service; to remove all the same: bash $0 remove --discard"
        docker run --rm --network none --entrypoint sh --volume "${name}_spool:/var/lib/uworker" "${images[0]}" -c "$has_results" >/dev/null || code=$?
        ((code != 9)) || die "results wait for the service; start the worker once more to have them posted (where its token was revoked or has expired, write a new one of the project into worker.env first), or give them up: bash $0 remove --discard"
        ((code == 0)) || die "docker cannot look for results that wait; it says above why. To remove all the same: bash $0 remove --discard"
    fi
    for service in "${services[@]}"; do
        id=$(container "$service")
        [[ -z $id ]] || docker rm "$id" >/dev/null
    done
    docker volume rm --force "${name}_spool" "${name}_engine" >/dev/null
    for image in "${images[@]}"; do
        if has_image "$image" && ! docker image rm "$image" >/dev/null 2>&1; then
            used=true
        fi
    done
    if [[ $used == true ]]; then
        echo "removed, but for the image, which another worker uses; the folder $here is yours to remove"
    else
        echo "removed; the folder $here is yours to remove"
    fi
}

logs() {
    local id engine
    id=$(container worker)
    [[ -n $id ]] || die "no worker was started from this folder"
    engine=$(container engine)
    if [[ -z $engine ]]; then
        docker logs "${@:---tail=100}" "$id"
        return
    fi
    trap 'kill $(jobs -p) 2>/dev/null || :' EXIT
    docker logs "${@:---tail=100}" "$engine" 2>&1 | sed -u 's/^/engine | /' &
    # One after the other, unless they are followed.
    case " $* " in
        *" -f "* | *" --follow "*) ;;
        *) wait ;;
    esac
    docker logs "${@:---tail=100}" "$id" 2>&1 | sed -u 's/^/worker | /'
    wait
}

usage="use: bash $0 [start|stop|status|logs|remove]"
discard=false
verb=${1:-start}
case $verb in
    start | stop | status) (($# <= 1)) || die "too many arguments; $usage" ;;
    logs) shift ;;
    remove)
        [[ $# -le 1 || ($# == 2 && $2 == --discard) ]] || die "remove takes --discard alone; $usage"
        [[ ${2:-} != --discard ]] || discard=true
        ;;
    *) die "there is no '$verb'; $usage" ;;
esac
require_folder
require_docker
if [[ $verb == logs ]]; then logs "$@"; else "$verb"; fi
