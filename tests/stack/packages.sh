# shellcheck shell=bash
# Installation of Debian packages in one run of apt-get, without starting their daemons.

# Runs a command as root, through sudo if the caller is another user.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Installs packages for their programs only: no daemon starts and no PostgreSQL cluster is created.
install_packages() {
    local policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.d undo=()
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null && as_root chmod 755 $policy
        undo+=("$policy")
    fi
    if [ ! -e $clusters/nova.conf ]; then
        as_root mkdir -p $clusters && echo 'create_main_cluster = false' | as_root tee $clusters/nova.conf >/dev/null
        undo+=("$clusters/nova.conf")
    fi
    say "installing $* (apt-get)"
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >"$STATE/apt.log" 2>&1 9>&-
    local outcome=$?
    [ ${#undo[@]} = 0 ] || as_root rm -f "${undo[@]}"
    [ $outcome = 0 ] || { say "apt-get failed:"; tail -n 5 "$STATE/apt.log" >&2; }
    return $outcome
}
