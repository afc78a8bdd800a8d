# shellcheck shell=bash
# ClickHouse: the server if one is installed, otherwise its engine from libchdb behind
# `tests/clickhouse-front`.

CHDB_PACKAGE=@chdb/lib-linux-x64-gnu
CHDB_VERSION=26.5.3
CHDB_SHA512=7cfacb991b79328a2bf721b3e266b36eb3637b8b7b5fd281da64c6917156471441b3688acbcca1ea3c75d71b1ad10af788314c53fc87a9df9b55d6095eedd069

# Prints the command that starts an installed server. Debian's own package, 18.16, is not used
# because it supports only half of the features that Nova needs.
clickhouse_server() {
    local command version
    for command in clickhouse-server "clickhouse server"; do
        has "${command%% *}" || continue
        version=$($command --version 2>/dev/null | sed -n 's/.* version \([0-9]*\).*/\1/p')
        if [ "${version:-0}" -ge 24 ]; then echo "$command" && return; fi
    done
    return 1
}

chdb_home() { echo "chdb-$CHDB_VERSION"; }

clickhouse_packages() {
    has curl || echo curl
    [ -d "$DOWNLOADS/$(chdb_home)" ] || clickhouse_server >/dev/null || has npm || echo npm
}

chdb_unpack() {
    say "clickhouse: downloading the engine (160 MB, 560 MB unpacked)"
    (cd "$1" && npm pack --loglevel=error --cache="$1/cache" "$CHDB_PACKAGE@$CHDB_VERSION" >packed) || return
    local archive
    archive=$1/$(tail -n 1 "$1/packed")
    echo "$CHDB_SHA512  $archive" | sha512sum --check --quiet || return
    tar -xzf "$archive" -C "$1" --strip-components=1 package/libchdb.so && rm -r "$archive" "$1/packed" "$1/cache"
}

# Builds the front like the tests, with the features of the whole workspace, so that shared
# dependencies are compiled once.
clickhouse_fetch() {
    clickhouse_server >/dev/null && return
    download "$(chdb_home)" chdb_unpack &
    local engine=$!
    say "clickhouse: building tests/clickhouse-front"
    front=$(cd "$HERE/.." && cargo build --quiet --workspace --bin clickhouse-front --message-format=json-render-diagnostics 9>&- |
        sed -n 's/.*"name":"clickhouse-front".*"executable":"\([^"]*\)".*/\1/p')
    wait $engine && [ -n "$front" ]
}

clickhouse_prepare() {
    local dir=$STATE/clickhouse
    if ! clickhouse_server >/dev/null; then
        # Keep a copy next to the data, so that a restart does not run a later build of another
        # checkout.
        cp "$front" "$dir/clickhouse-front"
        return
    fi
    cat >"$dir/config.xml" <<EOF
<clickhouse>
    <logger><level>warning</level><console>1</console></logger>
    <listen_host>127.0.0.1</listen_host>
    <http_port>$(port_of clickhouse)</http_port>
    <path>$dir/data/</path>
    <tmp_path>$dir/data/tmp/</tmp_path>
    <user_files_path>$dir/data/user_files/</user_files_path>
    <users><default>
        <password></password>
        <networks><ip>127.0.0.1</ip></networks>
        <profile>default</profile>
        <quota>default</quota>
        <access_management>1</access_management>
    </default></users>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
</clickhouse>
EOF
}

clickhouse_run() {
    local server
    if server=$(clickhouse_server); then
        # shellcheck disable=SC2086
        launch clickhouse $server --config-file="$STATE/clickhouse/config.xml"
    else
        launch clickhouse "$STATE/clickhouse/clickhouse-front" --lib "$DOWNLOADS/$(chdb_home)/libchdb.so" \
            --data "$STATE/clickhouse/data" --listen "127.0.0.1:$(port_of clickhouse)"
    fi
}

clickhouse_ready() {
    [ "$(curl -sf --max-time 5 "$(clickhouse_url)/ping")" = Ok. ] &&
        [ "$(curl -sf --max-time 5 "$(clickhouse_url)" --data-binary 'SELECT 1')" = 1 ]
}

clickhouse_url() { echo "http://127.0.0.1:$(port_of clickhouse)"; }
clickhouse_env() {
    echo "CLICKHOUSE_URL='$(clickhouse_url)'"
    clickhouse_server >/dev/null || echo "NOVA_LIBCHDB='$DOWNLOADS/$(chdb_home)/libchdb.so'"
}
