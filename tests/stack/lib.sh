# shellcheck shell=bash
# What the services have in common: where their files are, which ports they get, how a process is started, found again and stopped.
#
# A service NAME is a file stack/NAME.sh with these functions:
#   NAME_packages   prints the Debian packages that are missing for it
#   NAME_fetch      downloads or builds what is missing beyond packages
#   NAME_prepare    writes configuration and data directory, once, into $STATE/NAME
#   NAME_run        starts its process through `launch`
#   NAME_ready      true when it answers a real query
#   NAME_env        prints the lines that tell a test where it is

say() { printf 'services: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# The start time (in clock ticks since boot) of a process that runs. A zombie has ended: nobody may ever reap it in a container.
started_at() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # Fields are counted behind the command's name, which may itself contain blanks and brackets.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    case $1 in Z | X) return 1 ;; esac
    echo "${20}"
}

# Prints the pid of a service that runs. A pid alone may belong to another program by now; with its start time it names one process.
pid_of() {
    local pid start
    [ -f "$STATE/$1/process" ] && read -r pid start <"$STATE/$1/process" || return 1
    [ "$(started_at "$pid")" = "$start" ] && echo "$pid"
}

# Starts a process in a session of its own, so that ctrl-C in the terminal of `up` does not reach it. It records itself before
# it becomes the program: whatever moment `up` is interrupted at, `down` knows of it.
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

# Signals a service and waits until it is gone: `end NAME SIGNAL SECONDS`, after that SIGKILL for it and its children.
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

# Until nothing is left of the processes; for a zombie that nobody reaps, five seconds.
await_gone() {
    local pid deadline=$((SECONDS + 5))
    for pid; do
        while [ -d "/proc/$pid" ] && { [ $SECONDS -lt $deadline ] || started_at "$pid" >/dev/null; }; do sleep 0.02; done
    done
}

# A free port, kept for the life of the state directory. It lies below the range from which the kernel takes the ports of
# outgoing connections, or one of those could take it while the service is down for a restart.
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

# Waits until a service answers: `await_ready NAME SECONDS`. What it said last is shown when it ended or never answered.
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

# One `up` or `down` at a time in one state directory. `down` removes the lock with it, hence the second look.
lock() {
    while :; do
        mkdir -p "$STATE"
        exec 9>"$STATE/lock"
        flock -n 9 || { say "waiting for another $0 to finish"; flock 9; }
        if [ "$STATE/lock" -ef /dev/fd/9 ]; then return; fi
    done
}

# Runs a command that fills a directory under the downloads: `download NAME COMMAND…`, the command gets an empty directory as its
# last argument. Only a complete result gets the name, and two checkouts wait for each other instead of loading twice.
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

# Says every ten seconds how far a download is, until its process has ended.
report_growth() {
    local begun=$SECONDS next=$((SECONDS + 10))
    while started_at "$2" >/dev/null; do
        sleep 0.2
        [ $SECONDS -lt $next ] && continue
        next=$((next + 10))
        say "$1: still downloading after $((SECONDS - begun)) s, the downloads are at $(du -sm "$DOWNLOADS" | cut -f 1) MB"
    done
}
