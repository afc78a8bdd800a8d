# shellcheck shell=bash
# Apache Kafka: one node that is both broker and controller, from the jars that pom.xml pins.

java_is_new_enough() {
    local version
    has java && version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1) && [ "${version:-0}" -ge 17 ]
}

# Prints the name of the jars' directory. It contains the digest of pom.xml, so that a changed pin
# uses another directory.
kafka_home() { echo "kafka-$(sha256sum "$HERE/stack/pom.xml" | cut -c 1-12)"; }

kafka_packages() {
    java_is_new_enough || echo openjdk-17-jre-headless
    [ -d "$DOWNLOADS/$(kafka_home)" ] || has mvn || echo maven
}

kafka_resolve() {
    say "kafka, connect: downloading the jars (about 60 MB)"
    mvn --batch-mode --quiet --strict-checksums --file "$HERE/stack/pom.xml" \
        -Dmaven.repo.local="$DOWNLOADS/maven" -Dstack.dir="$1" package >"$1/maven.log" 2>&1 ||
        { tail -n 20 "$1/maven.log" >&2; return 1; }
}
kafka_fetch() { download "$(kafka_home)" kafka_resolve; }

# `java_tool CLASS ARGUMENTS…` runs one of Kafka's own programs, with options for a fast start.
java_tool() {
    timeout --foreground 30 java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.apache.logging.log4j.level=ERROR -cp "$DOWNLOADS/$(kafka_home)/libs/*" "$@"
}

# Writes the configuration. As in production, topics are only created explicitly. One node can keep
# only one replica. A client connects to the address that a broker advertises: on the listener
# FAULTY that is a port on which nothing listens until a test starts its proxy there.
kafka_prepare() {
    cat >"$STATE/kafka/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$(port_of kafka-controller)
listeners=PLAINTEXT://127.0.0.1:$(port_of kafka),FAULTY://127.0.0.1:$(port_of kafka-behind-proxy),CONTROLLER://127.0.0.1:$(port_of kafka-controller)
advertised.listeners=PLAINTEXT://127.0.0.1:$(port_of kafka),FAULTY://127.0.0.1:$(port_of kafka-proxy)
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,FAULTY:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$STATE/kafka/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
EOF
    java_tool kafka.tools.StorageTool format --standalone --cluster-id bm92YS1zZXJ2aWNlcy0wMQ \
        --config "$STATE/kafka/server.properties" >"$STATE/kafka/log" 2>&1
}

kafka_run() {
    launch kafka java -Xms256m -Xmx512m -XX:+ExitOnOutOfMemoryError -Dorg.apache.logging.log4j.level=INFO \
        -cp "$DOWNLOADS/$(kafka_home)/libs/*" kafka.Kafka "$STATE/kafka/server.properties"
}

# Creates a topic, produces into it with acks=all and reads it back; one of Kafka's programs does
# all three. Checks the port first, because that program takes a second to start.
kafka_ready() {
    (exec 3<>"/dev/tcp/127.0.0.1/$(port_of kafka)") 2>/dev/null || return
    java_tool org.apache.kafka.tools.EndToEndLatency "127.0.0.1:$(port_of kafka)" services-ready 1 all 16
}

kafka_env() {
    echo "KAFKA_BROKERS='127.0.0.1:$(port_of kafka)'"
    echo "KAFKA_BEHIND_PROXY='127.0.0.1:$(port_of kafka-behind-proxy)'"
    echo "KAFKA_PROXY='127.0.0.1:$(port_of kafka-proxy)'"
}
