# shellcheck shell=bash
# Functions shared by all services: their files, their ports, and starting, finding and stopping
# their processes.
#
# A service NAME is a file stack/NAME.sh with these functions:
#   NAME_packages   prints the missing Debian packages
#   NAME_fetch      downloads or builds everything else that is missing
#   NAME_prepare    writes the configuration and the data directory into $STATE/NAME; runs once
#   NAME_run        starts its process through `launch`
#   NAME_ready      succeeds if the service responds to a real query
#   NAME_env        prints the variables with the service's address

say() { printf 'services: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# Prints the start time of a running process, in clock ticks since boot. A zombie counts as ended,
# because in a container it may never be reaped.
started_at() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # Count fields after the command's name, which may itself contain blanks and brackets.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    case $1 in Z | X) return 1 ;; esac
    echo "${20}"
}

# Prints the pid of a running service. Pid and start time together identify the process, because the
# pid alone may have been reused.
pid_of() {
    local pid start
    [ -f "$STATE/$1/process" ] && read -r pid start <"$STATE/$1/process" || return 1
    [ "$(started_at "$pid")" = "$start" ] && echo "$pid"
}

# Starts a process in its own session, so that Ctrl-C in the terminal of `up` does not reach it. The
# process records itself before it executes the program, so that `down` finds it even if `up` is
# interrupted.
launch() {
    local name=$1
    shift
    rm -f "$STATE/$name/process"
    (
        cd "$STATE/$name" || exit
        pid=$BASHPID
        echo "$pid $(started_at "$pid")" >process.new && mv process.new process
        exec 9>&-
        exec setsid "$@"
    ) </dev/null >>"$STATE/$name/log" 2>&1 &
    disown $!
    while [ ! -e "$STATE/$name/process" ]; do sleep 0.01; done
}

# `end NAME SIGNAL SECONDS` signals a service and waits until it has ended. After SECONDS it sends
# SIGKILL to the service and its children.
end() {
    local pid children deadline=$((SECONDS + $3))
    pid=$(pid_of "$1") || return 0
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
    [ "$2" = KILL ] || kill -s "$2" "$pid" 2>/dev/null
    while [ $SECONDS -lt $deadline ] && pid_of "$1" >/dev/null; do sleep 0.05; done
    # shellcheck disable=SC2086
    if pid_of "$1" >/dev/null; then kill -KILL "$pid" $children 2>/dev/null; fi
    # shellcheck disable=SC2086
    await_gone $pid $children
    rm -f "$STATE/$1/process"
}

# Waits until the processes are gone; for a zombie that is not reaped, at most five seconds.
await_gone() {
    local pid deadline=$((SECONDS + 5))
    for pid; do
        while [ -d "/proc/$pid" ] && { [ $SECONDS -lt $deadline ] || started_at "$pid" >/dev/null; }; do sleep 0.02; done
    done
}

# Prints a service's port, which it keeps for the lifetime of the state directory. Ports are chosen
# below the kernel's range for outgoing connections. Otherwise such a connection could take the port
# while the service restarts.
port_of() {
    cat "$STATE/ports/$1"
}
assign_port() {
    local port first=15000 last=31999
    mkdir -p "$STATE/ports"
    [ ! -f "$STATE/ports/$1" ] || return 0
    while :; do
        port=$((first + (RANDOM * 32768 + RANDOM) % (last - first)))
        grep -qx "$port" "$STATE"/ports/* 2>/dev/null && continue
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port" >"$STATE/ports/$1"
}

# `await_ready NAME SECONDS` waits until a service responds. If the service ends or does not
# respond in time, prints the end of its log.
await_ready() {
    local deadline=$((SECONDS + $2))
    until "$1_ready" >/dev/null 2>&1; do
        if ! pid_of "$1" >/dev/null || [ $SECONDS -ge $deadline ]; then
            tail -n 15 "$STATE/$1/log" | sed "s/^/  $1: /" >&2
            return 1
        fi
        sleep 0.2
    done
}

# Allows one `up` or `down` at a time in a state directory. `down` also removes the lock file, so
# the file is checked again once it is locked.
lock() {
    while :; do
        mkdir -p "$STATE"
        exec 9>"$STATE/lock"
        flock -n 9 || { say "waiting for another $0 to finish"; flock 9; }
        if [ "$STATE/lock" -ef /dev/fd/9 ]; then return; fi
    done
}

# `download NAME COMMAND…` runs a command that fills the directory NAME of the downloads. The
# command gets an empty directory as its last argument, which is renamed to NAME only when
# complete. Two checkouts wait for each other instead of downloading twice.
download() {
    local target=$DOWNLOADS/$1
    shift
    [ ! -d "$target" ] || return 0
    mkdir -p "$DOWNLOADS"
    (
        exec 9>&-
        exec 8>"$target.lock"
        flock 8
        [ -d "$target" ] && exit
        rm -rf "$target.part" && mkdir "$target.part" || exit
        "$@" "$target.part" &
        report_growth "$(basename "$target")" $!
        wait $! && mv "$target.part" "$target"
    )
}

# Prints the progress of a download every ten seconds until its process ends.
report_growth() {
    local begun=$SECONDS next=$((SECONDS + 10))
    while started_at "$2" >/dev/null; do
        sleep 0.2
        [ $SECONDS -lt $next ] && continue
        next=$((next + 10))
        say "$1: still downloading after $((SECONDS - begun)) s, the download directory has $(du -sm "$DOWNLOADS" | cut -f 1) MB"
    done
}
