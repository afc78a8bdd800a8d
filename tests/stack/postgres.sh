# shellcheck shell=bash
# PostgreSQL 15 or newer from Debian, with logical replication. A cluster of the system is not
# touched.

# Prints the directory of the newest server programs, which Debian does not put on the PATH.
postgres_bin() {
    local dir
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
        if [ -x "$dir/postgres" ] && [ "$(basename "$(dirname "$dir")")" -ge 15 ]; then echo "$dir" && return; fi
    done
    return 1
}

postgres_packages() { postgres_bin >/dev/null || echo postgresql; }
postgres_fetch() { :; }

# Prints the command prefix that switches from root to the system user of Debian's package, because
# PostgreSQL refuses to run as root.
postgres_user() { if [ "$(id -u)" = 0 ]; then echo setpriv --reuid=postgres --regid=postgres --init-groups; fi; }

postgres_prepare() {
    local dir=$STATE/postgres as
    read -ra as <<<"$(postgres_user)"
    if [ "$(id -u)" = 0 ]; then chown postgres: "$dir"; fi
    if ! "${as[@]}" test -x "$dir"; then
        say "postgres: the system user postgres cannot enter $dir; set NOVA_SERVICES_DIR to a directory that it can"
        return 1
    fi
    (umask 077 && echo nova >"$dir/password" && if [ "$(id -u)" = 0 ]; then chown postgres: "$dir/password"; fi)
    (cd "$dir" && "${as[@]}" "$(postgres_bin)/initdb" --pgdata="$dir/data" --username=nova --pwfile="$dir/password" \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync) >"$dir/log" 2>&1 || return
    # `max_slot_wal_keep_size` bounds the log that a slot retains while its reader is disconnected,
    # as in production.
    "${as[@]}" tee -a "$dir/data/postgresql.conf" >/dev/null <<EOF
listen_addresses = '127.0.0.1'
port = $(port_of postgres)
unix_socket_directories = ''
max_connections = 200
wal_level = logical
max_replication_slots = 10
max_wal_senders = 10
max_slot_wal_keep_size = 2GB
shared_buffers = 256MB
EOF
}

postgres_run() {
    local as
    read -ra as <<<"$(postgres_user)"
    # The server is known not to run. If a killed server is not reaped, PostgreSQL would take the
    # zombie for a running server.
    rm -f "$STATE/postgres/data/postmaster.pid"
    launch postgres "${as[@]}" "$(postgres_bin)/postgres" -D "$STATE/postgres/data"
}

postgres_url() { echo "postgres://nova:nova@127.0.0.1:$(port_of postgres)/$1"; }

# Checks the server, and creates the database when it first responds, because that needs a running
# server.
postgres_ready() {
    local psql
    psql=$(postgres_bin)/psql
    "$psql" -Xqtc 'SELECT 1' "$(postgres_url nova)" && return
    "$psql" -Xqc 'CREATE DATABASE nova' "$(postgres_url postgres)" && "$psql" -Xqtc 'SELECT 1' "$(postgres_url nova)"
}

postgres_env() { echo "POSTGRES_URL='$(postgres_url nova)'"; }
