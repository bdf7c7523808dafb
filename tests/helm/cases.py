"""Sets of values, and what each must make of the chart: path, wanted value."""

from dataclasses import dataclass
from typing import Any

from tests.helm.chart import ABSENT, DIGEST, LEAST, Values, over, shape

GATEWAY = "Deployment/gateway spec.template.spec"
WORKER = "Deployment/worker-gpu spec.template.spec"
ENCODER = "Deployment/encoder-e spec.template.spec"
SPOT = [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
OTHER = "sha256:" + "b" * 64


@dataclass(frozen=True)
class Case:
    """Values laid over LEAST, and paths into what is rendered with what stands there. A wanted
    function is asked."""

    name: str
    values: Values
    wanted: dict[str, Any]
    base: Values | None = None

    @property
    def whole(self) -> Values:
        """All values."""
        return over(LEAST if self.base is None else self.base, self.values)


def has(*parts: Any) -> Any:
    """All of these are in it."""
    return lambda found: found is not ABSENT and all(part in found for part in parts)


def lacks(*parts: Any) -> Any:
    return lambda found: found is not ABSENT and not any(part in found for part in parts)


def env(**pairs: str) -> Any:
    """Variables of a container with these values."""
    return lambda found: pairs.items() <= {one["name"]: one.get("value") for one in found}.items()


def no_env(*names: str) -> Any:
    return lambda found: not set(names) & {one["name"] for one in found}


def named(*names: str) -> Any:
    """Of a list of named things those, in any order, among others."""
    return lambda found: found is not ABSENT and set(names) <= {one["name"] for one in found}


def unnamed(*names: str) -> Any:
    return lambda found: not set(names) & {one["name"] for one in found}


def pool(**keys: Any) -> Values:
    return {"workers": [{"name": "gpu", **keys}]}


def encoder(**keys: Any) -> Values:
    return {"encoders": [{"name": "e", **keys}]}


def scaled(**keys: Any) -> Values:
    return pool(autoscaling={"enabled": True, **keys})


SCALED = "ScaledObject/worker-gpu spec"
POLICY = "NetworkPolicy/needed spec.egress"
VALKEY = {"redis": {"host": "", "embedded": {"enabled": True, "image": {"digest": DIGEST}}}}
REGISTRY = {"model": {"folder": "", "registry": "s3://models/all"}}
FOLDER = {"storage": {"url": "/data/blobs"}}

GATEWAYS = [
    Case("least", {}, {
        "Deployment/gateway spec.replicas": 2,
        "Deployment/worker-gpu spec.replicas": 1,
        "Deployment/reaper spec.replicas": 2,
        "Deployment/courier spec.replicas": 1,
        "Deployment/gateway spec.strategy.rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        f"{GATEWAY}.containers.0.image": f"troupe/gateway@{DIGEST}",
        f"{WORKER}.containers.0.image": f"troupe/worker@{DIGEST}",
        f"{GATEWAY}.containers.0.readinessProbe.httpGet.path": "/healthz",
        f"{GATEWAY}.serviceAccountName": "t-troupe-gateway",
        f"{WORKER}.serviceAccountName": "t-troupe-worker",
        f"{WORKER}.initContainers": ABSENT,
        "ConfigMap/settings data.TROUPE_AUTH": "keys",
        "ConfigMap/settings data.TROUPE_BLOBS_URL": "s3://videos/troupe",
        "Service/gateway spec.ports.0.targetPort": "http",
    }),
    Case("port", {"gateway": {"port": 9000}}, {
        f"{GATEWAY}.containers.0.args": has("--port", "9000"),
        f"{GATEWAY}.containers.0.ports.0.containerPort": 9000,
        "Service/gateway spec.ports.0.port": 80,
    }),
    Case("gateway's grace", {"gateway": {"terminationGracePeriodSeconds": 60}}, {
        f"{GATEWAY}.terminationGracePeriodSeconds": 60,
        f"{GATEWAY}.containers.0.args": has("--timeout-graceful-shutdown", "45"),
        f"{GATEWAY}.containers.0.lifecycle.preStop.sleep.seconds": 10,
    }),
    Case("gateway by load", {"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 7}}}, {
        "Deployment/gateway spec.replicas": ABSENT,
        "HorizontalPodAutoscaler/gateway spec.maxReplicas": 7,
        "HorizontalPodAutoscaler/gateway spec.scaleTargetRef.name": "t-troupe-gateway",
    }),
    Case("balancer", {"gateway": {"service": {"type": "LoadBalancer", "port": 8080}}}, {
        "Service/gateway spec.type": "LoadBalancer",
        "Service/gateway spec.ports.0.port": 8080,
        "Pod/test-answers spec.containers.0.args": has("http://t-troupe-gateway:8080"),
    }),
    Case("ingress", {"gateway": {"ingress": {"enabled": True, "host": "v.example.com"}}}, {
        "Ingress/gateway spec.rules.0.host": "v.example.com",
        "Ingress/gateway spec.rules.0.http.paths.0.backend.service.port.name": "http",
        "Ingress/gateway spec.tls": ABSENT,
    }),
    Case("ingress with tls", {"gateway": {"ingress": {
        "enabled": True, "host": "v.example.com", "tlsSecret": "v-tls", "className": "nginx"}}}, {
        "Ingress/gateway spec.tls.0": {"hosts": ["v.example.com"], "secretName": "v-tls"},
        "Ingress/gateway spec.ingressClassName": "nginx",
    }),
    Case("no budgets", {"gateway": {"pdb": {"enabled": False}},
                        "reaper": {"pdb": {"enabled": False}},
                        "poolDefaults": {"pdb": {"enabled": False}}}, {
        "PodDisruptionBudget/gateway": ABSENT,
        "PodDisruptionBudget/reaper": ABSENT,
        "PodDisruptionBudget/worker-gpu": ABSENT,
    }),
    Case("budgets", {"gateway": {"pdb": {"maxUnavailable": 2}}}, {
        "PodDisruptionBudget/gateway spec.maxUnavailable": 2,
        "PodDisruptionBudget/worker-gpu spec.maxUnavailable": 1,
        "PodDisruptionBudget/worker-gpu spec.selector.matchLabels": has("troupe/pool"),
    }),
    Case("no courier", {"courier": {"enabled": False}}, {
        "Deployment/courier": ABSENT, "NetworkPolicy/outward": ABSENT,
    }),
    Case("asides", {"reaper": {"replicas": 3, "tolerations": SPOT}, "courier": {"replicas": 2}}, {
        "Deployment/reaper spec.replicas": 3,
        "Deployment/reaper spec.template.spec.tolerations": SPOT,
        "Deployment/reaper spec.template.spec.containers.0.args": [
            "python", "-m", "workers.reaper"],
        "Deployment/courier spec.replicas": 2,
        "Deployment/courier spec.template.spec.containers.0.args": [
            "python", "-m", "workers.courier"],
    }),
    Case("names", {"fullnameOverride": "films"}, {
        "Deployment/films-gateway spec.replicas": 2,
        "Deployment/films-worker-gpu metadata.labels": has("app.kubernetes.io/instance"),
    }),
    Case("own accounts", {"serviceAccounts": {
        "gateway": {"create": False, "name": "g"}, "worker": {"annotations": {"role": "arn"}},
        "reaper": {"create": False}}}, {
        f"{GATEWAY}.serviceAccountName": "g",
        "ServiceAccount/gateway": ABSENT,
        "ServiceAccount/worker metadata.annotations": {"role": "arn"},
        "ServiceAccount/worker automountServiceAccountToken": False,
        "Deployment/reaper spec.template.spec.serviceAccountName": "default",
    }),
    Case("no spread", {"gateway": {"spread": False}}, {
        f"{GATEWAY}.topologySpreadConstraints": ABSENT,
        f"{WORKER}.topologySpreadConstraints.1.topologyKey": "kubernetes.io/hostname",
    }),
    Case("gateway placed", {"gateway": {"nodeSelector": {"a": "b"}, "tolerations": SPOT,
                                        "priorityClassName": "high", "podAnnotations": {"x": "y"},
                                        "affinity": {"nodeAffinity": {}}}}, {
        f"{GATEWAY}.nodeSelector": {"a": "b"},
        f"{GATEWAY}.tolerations": SPOT,
        f"{GATEWAY}.priorityClassName": "high",
        f"{GATEWAY}.affinity": {"nodeAffinity": {}},
        "Deployment/gateway spec.template.metadata.annotations.x": "y",
    }),
]  # fmt: skip
IMAGES = [
    Case("tags", {"images": {"allowTags": True, "gateway": {"digest": "", "tag": "v1"}}}, {
        f"{GATEWAY}.containers.0.image": "troupe/gateway:v1",
        f"{WORKER}.containers.0.image": f"troupe/worker@{DIGEST}",
    }),
    Case("a digest goes before a tag", {"images": {"allowTags": True, "gateway": {"tag": "v1"}}}, {
        f"{GATEWAY}.containers.0.image": f"troupe/gateway@{DIGEST}",
    }),
    Case("pull", {"images": {"pullPolicy": "Always", "pullSecrets": ["reg"]}}, {
        f"{GATEWAY}.containers.0.imagePullPolicy": "Always",
        f"{GATEWAY}.imagePullSecrets": [{"name": "reg"}],
        f"{WORKER}.imagePullSecrets": [{"name": "reg"}],
        "Pod/test-answers spec.imagePullSecrets": [{"name": "reg"}],
    }),
    Case("canary's image", {"workers": [
        {"name": "gpu"}, {"name": "c", "image": {"digest": OTHER}}]}, {
        f"{WORKER}.containers.0.image": f"troupe/worker@{DIGEST}",
        "Deployment/worker-c spec.template.spec.containers.0.image": f"troupe/worker@{OTHER}",
    }),
    Case("a pool of another image", pool(image={"repository": "fork", "digest": OTHER}), {
        f"{WORKER}.containers.0.image": f"fork@{OTHER}",
    }),
]  # fmt: skip
POOLS = [
    Case("a card", {}, {
        f"{WORKER}.containers.0.resources.limits": has("nvidia.com/gpu"),
        f"{WORKER}.tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "Deployment/worker-gpu spec.strategy.rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        f"{WORKER}.terminationGracePeriodSeconds": 43,
        f"{WORKER}.containers.0.startupProbe.failureThreshold": 90,
        f"{WORKER}.containers.0.readinessProbe.exec.command": [
            "python", "-m", "workers.alive", "--ready"],
        f"{WORKER}.containers.0.livenessProbe.exec.command": ["python", "-m", "workers.alive"],
    }),
    Case("MIG", pool(gpu={"resource": "nvidia.com/mig-2g.35gb"}), {
        f"{WORKER}.containers.0.resources.limits.nvidia~com/mig-2g~35gb": 1,
        f"{WORKER}.containers.0.resources.limits.nvidia~com/gpu": ABSENT,
    }),
    Case("four cards", pool(gpu={"count": 4}), {
        f"{WORKER}.containers.0.resources.limits.nvidia~com/gpu": 4,
    }),
    Case("other cards", pool(gpu={"resource": "amd.com/gpu", "tolerate": False}), {
        f"{WORKER}.containers.0.resources.limits.amd~com/gpu": 1,
        f"{WORKER}.tolerations": ABSENT,
    }),
    Case("on the CPU", pool(gpu={"count": 0}), {
        f"{WORKER}.containers.0.resources.limits": {"memory": "64Gi"},
        f"{WORKER}.tolerations": ABSENT,
    }),
    Case("no replicas", pool(replicas=0), {"Deployment/worker-gpu spec.replicas": 0}),
    Case("runtime class", pool(runtimeClassName="nvidia"), {
        f"{WORKER}.runtimeClassName": "nvidia",
    }),
    Case("grace follows the lease", {"settings": {"lease_s": 30.5}}, {
        f"{WORKER}.terminationGracePeriodSeconds": 59,
        "ConfigMap/settings data.TROUPE_LEASE_S": "30.5",
    }),
    Case("grace follows the step", pool(stepSeconds=60), {
        f"{WORKER}.terminationGracePeriodSeconds": 83,
    }),
    Case("a longer grace", pool(terminationGracePeriodSeconds=600), {
        f"{WORKER}.terminationGracePeriodSeconds": 600,
    }),
    Case("a quick model", pool(startupSeconds=120), {
        f"{WORKER}.containers.0.startupProbe.failureThreshold": 12,
        "Deployment/worker-gpu spec.progressDeadlineSeconds": 720,
    }),
    Case("a tenth at a time", pool(maxUnavailable="10%"), {
        "Deployment/worker-gpu spec.strategy.rollingUpdate": {
            "maxSurge": 0, "maxUnavailable": "10%"},
    }),
    Case("may be evicted", pool(safeToEvict=True), {
        "Deployment/worker-gpu spec.template.metadata.annotations": lacks(
            "karpenter.sh/do-not-disrupt"),
        "Deployment/worker-gpu spec.template.metadata.annotations"
        ".cluster-autoscaler~kubernetes~io/safe-to-evict": "true",
    }),
    Case("may not be evicted", {}, {
        "Deployment/worker-gpu spec.template.metadata.annotations.karpenter~sh/do-not-disrupt":
            "true",
        "Deployment/worker-gpu spec.template.metadata.annotations"
        ".cluster-autoscaler~kubernetes~io/safe-to-evict": "false",
    }),
    Case("placed", pool(nodeSelector={"zone": "a"}, tolerations=SPOT, priorityClassName="p",
                        podAnnotations={"x": "y"}, spread=False, tmpSize="5Gi"), {
        f"{WORKER}.nodeSelector": {"zone": "a"},
        f"{WORKER}.tolerations.1": SPOT[0],
        f"{WORKER}.priorityClassName": "p",
        f"{WORKER}.topologySpreadConstraints": ABSENT,
        f"{WORKER}.volumes.0": {"name": "tmp", "emptyDir": {"sizeLimit": "5Gi"}},
        "Deployment/worker-gpu spec.template.metadata.annotations.x": "y",
    }),
    Case("runtime", pool(runtime="dtype=bf16,compile=inductor"), {
        f"{WORKER}.containers.0.env": env(TROUPE_RUNTIME="dtype=bf16,compile=inductor"),
    }),
    Case("defaults of all pools", {"poolDefaults": {"runtime": "dtype=bf16", "replicas": 4},
                                   "workers": [{"name": "gpu"}, {"name": "b", "replicas": 1}]}, {
        "Deployment/worker-gpu spec.replicas": 4,
        "Deployment/worker-b spec.replicas": 1,
        "Deployment/worker-b spec.template.spec.containers.0.env": env(TROUPE_RUNTIME="dtype=bf16"),
    }),
    Case("encoders", encoder(gpu={"count": 0}, runtime="device=cpu"), {
        f"{ENCODER}.containers.0.env": env(TROUPE_RUNTIME="device=cpu,encoders=only"),
        f"{WORKER}.containers.0.env": env(TROUPE_RUNTIME="encoders=remote"),
        f"{ENCODER}.containers.0.args": has("encoder@%h"),
        f"{WORKER}.containers.0.args": has("worker@%h"),
        f"{ENCODER}.containers.0.resources.limits": lacks("nvidia.com/gpu"),
        "PodDisruptionBudget/encoder-e spec.maxUnavailable": 1,
    }),
    Case("encoders on slices", encoder(gpu={"resource": "nvidia.com/mig-1g.18gb"}), {
        f"{ENCODER}.containers.0.resources.limits.nvidia~com/mig-1g~18gb": 1,
    }),
    Case("encodings kept", pool(keepEncodings=True), {
        f"{WORKER}.containers.0.env": env(TROUPE_ENCODINGS_DIR="/tmp/encodings"),
    }),
    Case("resources", pool(resources={"requests": {"cpu": 2}, "limits": {"memory": "9Gi"}}), {
        f"{WORKER}.containers.0.resources.requests": {"cpu": 2, "memory": "32Gi"},
        f"{WORKER}.containers.0.resources.limits": {"memory": "9Gi", "nvidia.com/gpu": 1},
    }),
]  # fmt: skip
SCALES = [
    Case("by the ledger", scaled(), {
        "Deployment/worker-gpu spec.replicas": ABSENT,
        f"{SCALED}.scaleTargetRef.name": "t-troupe-worker-gpu",
        f"{SCALED}.advanced.scalingModifiers.formula": "(running + waiting0) * 1",
        f"{SCALED}.advanced.scalingModifiers.target": "1",
        f"{SCALED}.triggers.0.metadata.listName": "troupe:running",
        f"{SCALED}.triggers.1.metadata.listName": "troupe:queued",
        f"{SCALED}.triggers.1.metadata.address": "ledger.example.com:6379",
        f"{SCALED}.triggers.0.authenticationRef": ABSENT,
        f"{SCALED}.fallback": ABSENT,
        "TriggerAuthentication/redis": ABSENT,
    }),
    Case("from none", scaled(minReplicas=0, maxReplicas=50, jobsPerReplica=2), {
        f"{SCALED}.minReplicaCount": 0, f"{SCALED}.maxReplicaCount": 50,
        f"{SCALED}.advanced.scalingModifiers.target": "2",
    }),
    Case("by lists", scaled(lists=["wait:acme:draft", "wait:beta"], share=0.5), {
        f"{SCALED}.advanced.scalingModifiers.formula": "(running + waiting0 + waiting1) * 0.5",
        f"{SCALED}.triggers.1.metadata.listName": "troupe:wait:acme:draft",
        f"{SCALED}.triggers.2.name": "waiting1",
    }),
    Case("fallback", scaled(fallbackReplicas=5), {
        f"{SCALED}.fallback": {"failureThreshold": 3, "replicas": 5},
    }),
    Case("another prefix", over(scaled(), {"settings": {"key_prefix": "films"}}), {
        f"{SCALED}.triggers.0.metadata.listName": "films:running",
        "ConfigMap/settings data.TROUPE_KEY_PREFIX": "films",
    }),
    Case("with a password", over(scaled(), {"redis": {"passwordSecret": {"name": "r"}}}), {
        f"{SCALED}.triggers.0.authenticationRef.name": "t-troupe-redis",
        "TriggerAuthentication/redis spec.secretTargetRef.0": {
            "parameter": "password", "name": "r", "key": "password"},
    }),
    Case("over the embedded Redis", over(scaled(), VALKEY), {
        f"{SCALED}.triggers.0.metadata.address": "t-troupe-redis.film.svc:6379",
    }),
    Case("two pools share", {"workers": [
        {"name": "gpu", "autoscaling": {"enabled": True, "share": 0.9}}, {"name": "b"}]}, {
        f"{SCALED}.advanced.scalingModifiers.formula": "(running + waiting0) * 0.9",
        "ScaledObject/worker-b": ABSENT,
    }),
]  # fmt: skip
STORES = [
    Case("redis", {"redis": {"port": 6380, "tls": True, "database": 2}}, {
        f"{GATEWAY}.containers.0.env": env(TROUPE_REDIS_URL="rediss://ledger.example.com:6380/2"),
        f"{POLICY}.1.ports.0.port": 6380,
    }),
    Case("redis's password", {"redis": {
        "username": "u", "passwordSecret": {"name": "r", "key": "k"}}}, {
        f"{GATEWAY}.containers.0.env": env(
            TROUPE_REDIS_URL="redis://u:$(REDIS_PASSWORD)@ledger.example.com:6379/0"),
        f"{GATEWAY}.containers.0.env.0.valueFrom.secretKeyRef": {"name": "r", "key": "k"},
    }),
    Case("redis's whole address", {"redis": {"urlSecret": {"name": "r"}}}, {
        f"{WORKER}.containers.0.env.0": {
            "name": "TROUPE_REDIS_URL",
            "valueFrom": {"secretKeyRef": {"name": "r", "key": "url"}}},
    }),
    Case("embedded redis", VALKEY, {
        "StatefulSet/redis spec.template.spec.containers.0.args": has(
            "--appendonly", "yes", "--appendfsync", "always", "noeviction"),
        "StatefulSet/redis spec.volumeClaimTemplates.0.spec.resources.requests.storage": "8Gi",
        "Service/redis spec.ports.0.port": 6379,
        f"{GATEWAY}.containers.0.env": env(TROUPE_REDIS_URL="redis://t-troupe-redis:6379/0"),
        "NetworkPolicy/redis spec.policyTypes": ["Ingress"],
        f"{POLICY}.1.to.0": has("podSelector"),
    }),
    Case("embedded redis's password", over(VALKEY, {"redis": {"passwordSecret": {"name": "r"}}}), {
        "StatefulSet/redis spec.template.spec.containers.0.args": has(
            "--requirepass", "$(REDIS_PASSWORD)"),
        "StatefulSet/redis spec.template.spec.containers.0.env": named("REDISCLI_AUTH"),
    }),
    Case("embedded redis's disk", over(VALKEY, {"redis": {"embedded": {
        "storage": {"size": "1Gi", "storageClass": "fast"}, "maxMemory": "2gb"}}}), {
        "StatefulSet/redis spec.volumeClaimTemplates.0.spec.storageClassName": "fast",
        "StatefulSet/redis spec.template.spec.containers.0.args": has("--maxmemory", "2gb"),
    }),
    Case("no embedded redis", {}, {
        "StatefulSet/redis": ABSENT, "Service/redis": ABSENT, "NetworkPolicy/redis": ABSENT,
    }),
    Case("s3", {"storage": {"endpointUrl": "https://s3.local", "region": "r1",
                            "credentialsSecret": "aws"}}, {
        f"{GATEWAY}.containers.0.env": env(AWS_ENDPOINT_URL="https://s3.local", AWS_REGION="r1"),
        f"{GATEWAY}.containers.0.envFrom.1": {"secretRef": {"name": "aws"}},
        f"{WORKER}.volumes": named("state"),
        "PersistentVolumeClaim/data": ABSENT,
    }),
    Case("a folder", FOLDER, {
        "PersistentVolumeClaim/data spec.resources.requests.storage": "20Gi",
        f"{GATEWAY}.volumes": named("data"),
        f"{WORKER}.containers.0.volumeMounts": has({"name": "data", "mountPath": "/data"}),
        f"{WORKER}.volumes": unnamed("state"),
        "Deployment/reaper spec.template.spec.volumes": named("data"),
        POLICY: lambda rules: len(rules) == 2,
    }),
    Case("a claim that is there", over(FOLDER, {"storage": {"claim": {"existingClaim": "c"}}}), {
        "PersistentVolumeClaim/data": ABSENT,
        f"{GATEWAY}.volumes.1.persistentVolumeClaim.claimName": "c",
    }),
    Case("a claim for many nodes", over(FOLDER, {"storage": {"claim": {
        "accessMode": "ReadWriteMany", "storageClass": "nfs"}}}), {
        "PersistentVolumeClaim/data spec.accessModes": ["ReadWriteMany"],
        "PersistentVolumeClaim/data spec.storageClassName": "nfs",
    }),
    Case("a registry", REGISTRY, {
        f"{WORKER}.initContainers.0.args": [
            "python", "-m", "troupe", "models", "pull", "stable"],
        f"{WORKER}.initContainers.0.image": f"troupe/worker@{DIGEST}",
        f"{WORKER}.containers.0.env": env(TROUPE_MODEL_DIR="s3://models/all#stable"),
        f"{WORKER}.containers.0.volumeMounts": has(
            {"name": "models", "mountPath": "/app/.troupe/models"}),
        f"{WORKER}.volumes": has({"name": "models", "emptyDir": {"sizeLimit": "100Gi"}}),
    }),
    Case("a signed registry", over(REGISTRY, {"model": {
        "ref": "canary", "publicKey": {"configMap": "pub", "key": "p.pem"}}}), {
        f"{WORKER}.containers.0.env": env(
            TROUPE_MODEL_DIR="s3://models/all?key=/etc/troupe/publisher/publisher.pem#canary"),
        f"{WORKER}.initContainers.0.volumeMounts": named("publisher"),
        f"{WORKER}.volumes": named("publisher"),
    }),
    Case("a registry's cache", over(REGISTRY, {"model": {"cache": {"claim": "nvme"}}}), {
        f"{WORKER}.volumes": has(
            {"name": "models", "persistentVolumeClaim": {"claimName": "nvme"}}),
    }),
    Case("a registry beside a folder", over(REGISTRY, FOLDER), {
        f"{WORKER}.containers.0.volumeMounts": has({"name": "models", "mountPath": "/data/models"}),
        POLICY: lambda rules: len(rules) == 3,
    }),
    Case("weights on a claim", {"model": {"folder": "/models/w", "claim": "weights"}}, {
        f"{WORKER}.containers.0.volumeMounts": has(
            {"name": "weights", "mountPath": "/models", "readOnly": True}),
        f"{WORKER}.containers.0.env": env(TROUPE_MODEL_DIR="/models/w"),
    }),
    Case("signing", {"signing": {"existingSecret": "chain"}}, {
        f"{WORKER}.containers.0.env": env(TROUPE_SIGNING_DIR="/etc/troupe/signing"),
        f"{WORKER}.volumes": has(
            {"name": "signing", "secret": {"secretName": "chain", "defaultMode": 0o440}}),
        f"{GATEWAY}.containers.0.env": no_env("TROUPE_SIGNING_DIR"),
    }),
    Case("external secrets", {"externalSecrets": [{
        "name": "r", "store": {"kind": "SecretStore", "name": "v"},
        "data": [{"key": "password", "remoteKey": "a/b"}]}]}, {
        "ExternalSecret/r spec.target.name": "r",
        "ExternalSecret/r spec.data.0": {"secretKey": "password", "remoteRef": {"key": "a/b"}},
    }),
    Case("a million", {"settings": {"max_queued": 1000000, "retention_h": 0.5}}, {
        "ConfigMap/settings data.TROUPE_MAX_QUEUED": "1000000",
        "ConfigMap/settings data.TROUPE_RETENTION_H": "0.5",
    }),
]  # fmt: skip
WATCHED = [
    Case("no policies", {"networkPolicy": {"enabled": False}}, {
        "NetworkPolicy/default-deny": ABSENT, "NetworkPolicy/needed": ABSENT,
        "NetworkPolicy/test": ABSENT,
    }),
    Case("policies", {"networkPolicy": {"redisCidrs": ["10.1.0.0/16"], "s3Port": 9000}}, {
        "NetworkPolicy/default-deny spec.ingress": ABSENT,
        "NetworkPolicy/default-deny spec.policyTypes": ["Ingress", "Egress"],
        f"{POLICY}.1.to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        f"{POLICY}.2.to.0.ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]},
        f"{POLICY}.2.ports.0.port": 9000,
        "NetworkPolicy/outward spec.podSelector.matchExpressions.0.values": ["courier"],
    }),
    Case("policies as they are", {}, {
        f"{POLICY}.1.to": [{"ipBlock": {"cidr": cidr}} for cidr in (
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")],
        f"{POLICY}.3": ABSENT,
        f"{GATEWAY}.containers.0.env": no_env("OTEL_EXPORTER_OTLP_ENDPOINT"),
    }),
    Case("a store on a port", {
        "storage": {"endpointUrl": "https://minio.film:9000"}, "networkPolicy": {"s3Port": 9000}}, {
        f"{POLICY}.2.ports.0.port": 9000,
    }),
    Case("a store on a port, no policies", {
        "storage": {"endpointUrl": "http://minio.film:9000"},
        "networkPolicy": {"enabled": False}}, {
        f"{GATEWAY}.containers.0.env": env(AWS_ENDPOINT_URL="http://minio.film:9000"),
    }),
    Case("DNS on the node", {"networkPolicy": {"dns": {"nodeLocal": "169.254.20.10"}}}, {
        f"{POLICY}.0.to.1": {"ipBlock": {"cidr": "169.254.20.10/32"}},
        f"{POLICY}.0.ports.0.port": 53,
    }),
    Case("traces", {"tracing": {"endpoint": "http://otel.monitoring:4318", "port": 14318}}, {
        f"{POLICY}.3.to": [{"namespaceSelector": {}}],
        f"{POLICY}.3.ports": [{"protocol": "TCP", "port": 14318}],
        f"{GATEWAY}.containers.0.env": env(OTEL_EXPORTER_OTLP_ENDPOINT="http://otel.monitoring:4318"),
        f"{WORKER}.containers.0.env": env(OTEL_EXPORTER_OTLP_ENDPOINT="http://otel.monitoring:4318"),
    }),
    Case("a scaler beside a whole address", {
        "redis": {"urlSecret": {"name": "r"}, "passwordSecret": {"name": "q"}},
        "workers": [{"name": "gpu", "autoscaling": {"enabled": True}}]}, {
        "TriggerAuthentication/redis spec.secretTargetRef.0.name": "q",
    }),
    Case("who may call", {"networkPolicy": {"from": [{"namespaceSelector": {}}]}}, {
        "NetworkPolicy/gateway spec.ingress.0.from.0": {"namespaceSelector": {}},
        "NetworkPolicy/gateway spec.ingress.0.from.1": has("podSelector"),
    }),
    Case("pictures by address", {"settings": {"fetch_hosts": "*"}}, {
        "NetworkPolicy/outward spec.podSelector.matchExpressions.0.values": ["courier", "gateway"],
        "NetworkPolicy/outward spec.egress.0.to.0.ipBlock.except": has(
            "10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"),
    }),
    Case("pictures by address, no courier", {
        "settings": {"fetch_hosts": "a.example"}, "courier": {"enabled": False}}, {
        "NetworkPolicy/outward spec.podSelector.matchExpressions.0.values": ["gateway"],
    }),
    Case("unwatched", {}, {
        "ServiceMonitor/": ABSENT, "PrometheusRule/": ABSENT, "ConfigMap/dashboard": ABSENT,
        "ScaledObject/worker-gpu": ABSENT, "HorizontalPodAutoscaler/gateway": ABSENT,
        "Ingress/gateway": ABSENT, "TriggerAuthentication/redis": ABSENT,
    }),
    Case("scraped", {"settings": {"auth": "none"}, "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "p"}}}}, {
        "ServiceMonitor/ spec.endpoints.0.path": "/metrics",
        "ServiceMonitor/ spec.endpoints.0.authorization": ABSENT,
        "ServiceMonitor/ metadata.labels.release": "p",
    }),
    Case("scraped with a key", {"metrics": {
        "serviceMonitor": {"enabled": True}, "keySecret": {"name": "m"}}}, {
        "ServiceMonitor/ spec.endpoints.0.authorization.credentials": {"name": "m", "key": "key"},
    }),
    Case("alerts", {"metrics": {"rules": {"enabled": True, "queueAgeSeconds": 60}},
                    "settings": {"lease_s": 20}}, {
        "PrometheusRule/ spec.groups.0.rules": lambda rules: len(rules) >= 12,
        "PrometheusRule/ spec.groups.0.rules.3.expr":
            "max(troupe_oldest_queued_age_seconds) > 60",
        "PrometheusRule/ spec.groups.0.rules.4.expr": "max(troupe_oldest_lease_age_seconds) > 60",
    }),
    Case("dashboard", {"metrics": {"dashboard": {"enabled": True}}}, {
        "ConfigMap/dashboard metadata.labels.grafana_dashboard": "1",
        "ConfigMap/dashboard data": has("troupe.json"),
    }),
    Case("no tests", {"tests": {"enabled": False}}, {
        "Pod/test-answers": ABSENT, "ConfigMap/test": ABSENT, "NetworkPolicy/test": ABSENT,
    }),
    Case("tests without a key", {}, {
        "Pod/test-answers metadata.annotations.helm~sh/hook": "test", "Pod/test-job": ABSENT,
    }),
    Case("tests with a key", {"tests": {"keySecret": {"name": "k"}, "timeoutSeconds": 99}}, {
        "Pod/test-job spec.containers.0.env.0.valueFrom.secretKeyRef.name": "k",
        "Pod/test-job spec.containers.0.args": has("job", "99"),
        "Pod/test-job spec.activeDeadlineSeconds": 159,
    }),
    Case("another user", {"podSecurity": {"runAsUser": 2000, "fsGroup": 3000}}, {
        f"{WORKER}.securityContext.runAsUser": 2000, f"{WORKER}.securityContext.fsGroup": 3000,
    }),
]  # fmt: skip
SHAPED = [
    Case("laptop", {}, {
        "Deployment/worker-cpu spec.template.spec.containers.0.image": "troupe/worker:dev",
        "Deployment/worker-cpu spec.template.spec.containers.0.resources.limits": {"memory": "4Gi"},
        "StatefulSet/redis spec.replicas": 1,
        "Pod/test-job spec.containers.0.args": has("job"),
    }, shape("laptop")),
    Case("one-gpu", {}, {
        "Deployment/worker-card spec.replicas": 2,
        "Deployment/worker-card spec.template.spec.runtimeClassName": "nvidia",
        "Deployment/worker-card spec.template.spec.containers.0.env": env(
            TROUPE_RUNTIME="dtype=bf16,compile=inductor,encoders=remote"),
        "Deployment/encoder-cpu spec.template.spec.containers.0.resources.limits": {
            "memory": "64Gi"},
    }, shape("one-gpu")),
    Case("fleet", {}, {
        "ScaledObject/worker-spot spec.maxReplicaCount": 400,
        "Deployment/worker-spot spec.template.spec.nodeSelector": {
            "karpenter.sh/capacity-type": "spot"},
        "Deployment/worker-canary spec.template.spec.containers.0.image":
            "registry.example.com/troupe/worker@sha256:" + "4" * 64,
        "Deployment/worker-spot spec.template.spec.initContainers.0.name": "model",
        "ServiceAccount/worker metadata.annotations": has("eks.amazonaws.com/role-arn"),
        "ScaledObject/encoder-slices spec.advanced.scalingModifiers.formula":
            "(running + waiting0) * 0.2",
        "StatefulSet/redis": ABSENT,
    }, shape("fleet")),
]  # fmt: skip
CASES = [*GATEWAYS, *IMAGES, *POOLS, *SCALES, *STORES, *WATCHED, *SHAPED]
