# shellcheck shell=bash
# Redis from Debian, configured as a cache: bounded, with eviction, and without persistence.

redis_packages() { has redis-server && has redis-cli || echo redis-server; }
redis_fetch() { :; }

redis_prepare() {
    # A full cache must evict entries instead of refusing writes; the policy is that of
    # compose.yaml. Nothing is written to disk, so Redis is empty after a restart, which the host
    # must tolerate.
    cat >"$STATE/redis/redis.conf" <<EOF
bind 127.0.0.1
port $(port_of redis)
dir $STATE/redis
daemonize no
save ""
appendonly no
maxmemory 256mb
maxmemory-policy volatile-lru
EOF
}

redis_run() { launch redis "$(command -v redis-server)" "$STATE/redis/redis.conf"; }
redis_ready() { [ "$(redis-cli -h 127.0.0.1 -p "$(port_of redis)" SET services:ready 1 PX 1000)" = OK ]; }
redis_env() { echo "REDIS_URL='redis://127.0.0.1:$(port_of redis)'"; }
