# shellcheck shell=bash
# Kafka Connect, standalone, with Debezium's PostgreSQL connector installed. A test that needs a
# connector creates it through the REST API.

connect_packages() {
    kafka_packages
    has curl || echo curl
}
connect_fetch() { kafka_fetch; }

connect_prepare() {
    cat >"$STATE/connect/worker.properties" <<EOF
bootstrap.servers=127.0.0.1:$(port_of kafka)
listeners=http://127.0.0.1:$(port_of connect)
plugin.path=$DOWNLOADS/$(kafka_home)/plugins
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
offset.storage.file.filename=$STATE/connect/offsets
offset.flush.interval.ms=1000
EOF
}

connect_run() {
    launch connect java -Xms128m -Xmx384m -XX:+ExitOnOutOfMemoryError -Dorg.apache.logging.log4j.level=INFO \
        -cp "$DOWNLOADS/$(kafka_home)/libs/*" org.apache.kafka.connect.cli.ConnectStandalone "$STATE/connect/worker.properties"
}

connect_ready() {
    curl -sf --max-time 5 "$(connect_url)/connector-plugins" | grep -q io.debezium.connector.postgresql.PostgresConnector
}

connect_url() { echo "http://127.0.0.1:$(port_of connect)"; }
connect_env() { echo "KAFKA_CONNECT_URL='$(connect_url)'"; }
