# Backup and restore: a part of service.sh, whose functions and variables it uses.
# shellcheck shell=bash disable=SC2154 # image and first_password are service.sh's

# A shell of its own, which leaves nothing behind.
backup() (
    (($# == 1)) || die "backup takes the name of a file"
    file=$1
    [[ ! -d $file ]] || die "$file is a folder; say which file in it: $file/decimer-jobs.dump"
    [[ -n $(database) ]] || die "the database does not run; start it with: bash $0 up"
    half=$(mktemp "$file.XXXXXX.half") || die "the folder of $file cannot be written to"
    trap 'rm -f "$half"' EXIT
    docker exec "$(database)" pg_dump --username=decimer --format=custom decimer_jobs >"$half" ||
        die "the backup failed; nothing was written to $file"
    docker exec --interactive "$(database)" pg_restore --list <"$half" >/dev/null ||
        die "what was written cannot be read back; nothing was written to $file"
    sync "$half"
    mv "$half" "$file"
    say "$file has $(du --human-readable "$file" | cut -f 1)"
)

rename_databases() {
    sql --dbname=postgres --single-transaction --command="ALTER DATABASE decimer_jobs RENAME TO $1" \
        --command="ALTER DATABASE $2 RENAME TO decimer_jobs"
}

drop_database() { sql --dbname=postgres --command='SET client_min_messages = warning' --command="DROP DATABASE IF EXISTS $1 WITH (FORCE)"; }

# Whatever ends a restore that has not succeeded: all that it has changed is put back.
undo_restore() {
    local status=$? now
    trap '' INT TERM HUP
    [[ $restore_is != finished ]] || return 0
    [[ $restore_is == loading ]] || say "putting back what there was ..."
    if [[ $restore_is == exchanging && -n $(sql --dbname=postgres --command="SELECT 1 FROM pg_database WHERE datname = 'decimer_jobs_old'") ]]; then
        mapfile -t now < <(containers api)
        ((${#now[@]} == 0)) || quietly docker stop --time 20 "${now[@]}" || true
        rename_databases decimer_jobs_new decimer_jobs_old ||
            say "the former database was not put back, above is why; it is still there as decimer_jobs_old"
    fi
    if ((${#served[@]})) && ! quietly docker start "${served[@]}"; then
        say "the API was not started again; do it with: bash $0 up"
    fi
    quietly drop_database decimer_jobs_new || true
    exit "$status"
}

# Load a backup into decimer_jobs_new, and have it judged by the code that is to run on it.
load() {
    drop_database decimer_jobs_new
    sql --dbname=postgres --command='CREATE DATABASE decimer_jobs_new'
    docker exec --interactive "$(database)" pg_restore --username=decimer --no-owner --exit-on-error --dbname=decimer_jobs_new <"$1" ||
        die "the backup cannot be loaded; the service goes on with what it had"
    quietly compose run --rm --no-deps -e JOB_API_DATABASE_URL=postgresql://decimer@db:5432/decimer_jobs_new migrate ||
        die "this code cannot use the backup, above is why; the service goes on with what it had"
}

restore() {
    local file=${1:-} answer=${2:-}
    [[ -n $file && (-z $answer || $answer == --yes) ]] || die "restore takes the name of a file, and --yes if it shall not ask"
    [[ -f $file && -r $file ]] || die "$file cannot be read"
    [[ -n $(setting SITE '') ]] || die "say first how clients call the service, by: bash $0 up NAME"
    docker image inspect "$image" >/dev/null 2>&1 || build
    [[ -n $(database) ]] || start_database
    docker exec --interactive "$(database)" pg_restore --list <"$file" >/dev/null || die "$file is no backup that this database can read"
    if [[ $answer != --yes ]]; then
        read -r -p "All that the service at $(address) holds is replaced by $file. Type yes to go on: " answer || true
        [[ $answer == yes ]] || die "nothing was changed"
    fi
    restore_is=loading served=()
    trap undo_restore EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "loading $file ..."
    load "$file"
    # Left by a restore that somebody cut off; the present one is decimer_jobs, which always exists.
    drop_database decimer_jobs_old
    restore_is=exchanging
    say "stopping the API ..."
    mapfile -t served < <(containers api)
    ((${#served[@]} == 0)) || quietly docker stop --time 20 "${served[@]}"
    # At once or not at all; nobody may be connected, such as a backup.
    rename_databases decimer_jobs_old decimer_jobs_new ||
        die "the databases cannot be exchanged, above is why; the service goes on with what it had"
    # Others than the code that has judged the backup may not be able to use it: they are replaced.
    if ((${#served[@]})) && [[ $(docker inspect --format '{{.Image}}' "${served[@]}" | sort --unique) == "$(image_id)" ]]; then
        docker start "${served[@]}" >/dev/null
        (wait_until_healthy "the API" "${served[@]}") || die "the API does not start on the backup; the service goes on with what it had"
        start_proxy
    else
        start
    fi
    restore_is=finished
    # It was that of a user who is gone.
    in_api rm -f "$first_password"
    drop_database decimer_jobs_old
    say "the service at $(address) has the data of $file, with the users and passwords of that time"
}
