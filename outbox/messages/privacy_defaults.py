"""The attributes that are kept in telemetry by default: those that describe how a service runs, not who uses it.

Each key is from the examples of the beacon document or from the stable semantic conventions of OpenTelemetry. Left out
on purpose, because their values identify people, customers or their machines, or contain the data that was sent:

    user.*, enduser.*, session.id, client.*, source.*, network.peer.*, server.address, host.name, host.ip
    url.full, url.path, url.query, http.url, http.target, http.request.header.*, user_agent.original
    db.statement, db.query.text, db.query.parameter.*, db.namespace, db.user, gen_ai.*
    exception.message, exception.stacktrace, code.file.path, process.command_args, process.owner
    k8s.namespace.name, k8s.node.name, k8s.cluster.name, container.image.name, cloud.account.id, os.description
"""

from __future__ import annotations

from collections.abc import Mapping

from outbox.core.privacy import Place

_OF_A_RESOURCE = frozenset(
    {
        *("resource.name", "env"),  # of the beacon document
        *("service.name", "service.namespace", "service.version", "service.instance.id"),
        *("deployment.environment", "deployment.environment.name"),
        *("telemetry.sdk.name", "telemetry.sdk.language", "telemetry.sdk.version"),
        *("telemetry.distro.name", "telemetry.distro.version"),
        *("process.runtime.name", "process.runtime.version", "process.runtime.description"),
        *("os.type", "os.name", "os.version", "host.arch"),
        *("cloud.provider", "cloud.platform", "cloud.region", "cloud.availability_zone"),
        *("container.runtime", "container.image.tags", "k8s.container.name", "k8s.container.restart_count"),
        *("k8s.pod.name", "k8s.deployment.name", "k8s.replicaset.name", "k8s.statefulset.name"),
        *("k8s.daemonset.name", "k8s.job.name", "k8s.cronjob.name"),
    }
)
_OF_AN_OPERATION = frozenset(
    {
        *("endpoint", "method", "service_name", "request_size", "response_size", "status_code"),  # of the document
        *("http.request.method", "http.response.status_code", "http.route", "http.request.resend_count"),
        *("http.request.body.size", "http.response.body.size", "http.request.size", "http.response.size"),
        *("http.method", "http.status_code", "http.scheme", "http.flavor", "http.connection.state"),
        *("url.scheme", "url.template", "server.port", "error.type", "exception.type", "exception.escaped"),
        *("network.protocol.name", "network.protocol.version", "network.transport", "network.type"),
        *("network.io.direction", "disk.io.direction", "cpu.mode", "system.memory.state"),
        *("db.system", "db.system.name", "db.operation", "db.operation.name", "db.operation.batch.size"),
        *("db.collection.name", "db.sql.table", "db.response.status_code", "db.response.returned_rows"),
        *("db.client.connection.state",),
        *("messaging.system", "messaging.operation.name", "messaging.operation.type"),
        *("messaging.batch.message_count", "messaging.message.body.size"),
        *("rpc.system", "rpc.system.name", "rpc.service", "rpc.method", "rpc.grpc.status_code"),
        *("rpc.response.status_code",),
        *("code.function", "code.function.name", "code.namespace", "code.lineno", "code.line.number"),
        *("thread.id", "event.name", "otel.status_code", "otel.scope.name", "otel.scope.version"),
        *("jvm.memory.type", "jvm.memory.pool.name", "jvm.gc.name", "jvm.gc.action", "jvm.thread.state"),
        *("jvm.thread.daemon", "cpython.gc.generation", "v8js.gc.type", "v8js.heap.space.name"),
        *("nodejs.eventloop.state", "go.memory.type", "le", "quantile"),
    }
)

ALLOWED: Mapping[Place, frozenset[str]] = {
    Place.RESOURCE: _OF_A_RESOURCE,
    Place.SCOPE: _OF_A_RESOURCE,
    Place.SPAN: _OF_A_RESOURCE | _OF_AN_OPERATION,
    Place.EVENT: _OF_AN_OPERATION,
    Place.POINT: _OF_A_RESOURCE | _OF_AN_OPERATION,
    Place.LOG: _OF_A_RESOURCE | _OF_AN_OPERATION,
}

OF_MACHINES = frozenset({"service.instance.id", "service.version", "container.image.tags", "k8s.job.name"})
"""Keys whose values may be a UUID or a hash, because they identify an instance of a service or a build. Without the
instance id, the counters of two instances could not be distinguished."""

OF_VERSIONS = frozenset(
    {
        *("service.version", "telemetry.sdk.version", "telemetry.distro.version", "os.version", "otel.scope.version"),
        *("process.runtime.version", "process.runtime.description", "container.image.tags"),
    }
)
"""Keys whose values may be a version: four numbers, which look like an IP address, or app@1.2.3, like an e-mail
address."""

OF_QUANTITIES = (".size", "_size", "rows", "count", "lineno", "line.number", "bytes", "duration", "_ms", "_us", "_ns")
"""Suffixes of keys whose numbers may be large. Elsewhere a number of ten digits may be that of a card, an account or a
telephone."""
OF_LARGE_NUMBERS = frozenset({"thread.id", "le"})
"""Further keys whose numbers may be large."""
