#!/usr/bin/env bash
# The chart, rendered and installed by real Helm into a real API server (no kubelet: no pod runs here).
#
# Comes in: HELM, ETCD, KUBE_APISERVER, KUBECTL: paths of the binaries. Goes out: a line a check,
# `N passed, N failed`, and 1 when one failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../policies/admission/apiserver.sh"
HELM=${HELM:-helm}
need "$HELM"

passed=0 failed=0
out=$(mktemp)
trap 'rm -f "$out"; stop_apiserver' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# check NAME COMMAND...: the command succeeds. refuse NAME TEXT COMMAND...: it fails, and says TEXT.
check() {
  local name=$1; shift
  if "$@" >"$out" 2>&1; then passed=$((passed + 1)); echo "ok    $name"
  else failed=$((failed + 1)); echo "FAIL  $name"; sed 's/^/      /' "$out"; fi
}
refused() { local text=$1; shift; ! "$@" >"$out.2" 2>&1 && grep -qF -- "$text" "$out.2" || { cat "$out.2"; rm -f "$out.2"; return 1; }; rm -f "$out.2"; }
refuse() { local name=$1; shift; check "$name" refused "$@"; }
equals() { local want=$1 got; shift; got=$("$@" 2>&1); [ "$got" = "$want" ] || { echo "wanted '$want', got '$got'"; return 1; }; }
says() { local want=$1; shift; "$@" 2>&1 | tee "$out.2" | grep -qF -- "$want" || { echo "does not say '$want':"; cat "$out.2"; rm -f "$out.2"; return 1; }; rm -f "$out.2"; }
k() { "$KUBECTL" --request-timeout 20s "$@"; }
chart=$here/lockkeeper
ns=lockkeeper-test # not the default: the policies must follow
render() { "$HELM" template lockkeeper "$chart" -n "$ns" "$@"; }

# What the chart is made of, and what it refuses.
check "copies are fresh" "$here/sync.sh" --check
check "lint" "$HELM" lint --strict --quiet "$chart"
refuse "an unknown value is refused by name" "oparator" render --set oparator.replicas=3
refuse "an unknown value below is refused" "replica" render --set operator.replica=3
refuse "a bad endpoint is refused" "endpoint" render --set store.s3.bucket=backups,store.s3.endpoint=minio:9000
refuse "a cron line of six fields" "schedule" render --set store.s3.bucket=backups,store.schedule="0 0 3 * * *"
refuse "a store whose Secret may not be read is refused" "not in store.secretNames" render --set store.s3.bucket=backups,store.s3.credentialsSecret=other
refuse "a store of two places is refused" "store.s3, store.gcs are all set" render --set store.s3.bucket=backups,store.gcs.bucket=backups
refuse "a container without its account is refused" "name the storage account" render --set store.azure.container=backups
check "a bucket of Google's" says "gcs:" render --set store.gcs.bucket=backups
check "without a Secret the environment says who we are" equals 0 sh -c "'$HELM' template lockkeeper '$chart' --set store.gcs.bucket=backups --set-json 'store.secretNames=[]' -s templates/store.yaml | grep -c credentialsSecret"
refuse "a limit that is none" "limitBytesPerSecond" render --set store.s3.bucket=backups,store.limitBytesPerSecond=12
refuse "a key without its kind" "serverSideEncryption" render --set store.s3.bucket=backups,store.s3.serverSideEncryption.kmsKeyId=k
refuse "a checksum that is none" "checksum" render --set store.s3.bucket=backups,store.s3.checksum=MD5
refuse "a work directory that is no path" "workDirectory" render --set agent.workDirectory=work
check "a work directory of its own is mounted" says "name: work" render --set agent.workDirectory=/data/proofs
check "the disk of etcd is not allowed unless it is" equals 0 sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' | grep -c -e --proof-on-etcd-disk"
check "and then it is" says "--proof-on-etcd-disk" render --set agent.verification.onEtcdDisk=true
check "no cutovers unless they are enabled" equals 0 sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' --set cutover.secretNames={green} | grep -c -e '- --cutovers' -e 'clustercutovers/status' -e '\\[\"green\"\\]'"
check "no routes either" equals 0 sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' --set cutover.gatewayAPI.namespaces={edge} | grep -c -e httproutes"
check "and then they are looked after" says "--cutovers" render --set cutover.enabled=true
refuse "a Secret's name that is none" "secretNames" render --set cutover.enabled=true,cutover.secretNames={Green_1}
check "global and enabled are let in, as a parent chart sets them" render --set global.a=b,enabled=true
check "no policy names the default namespace in another" equals 0 sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' | grep -c lockkeeper-system"

start_apiserver
export HELM_CACHE_HOME=$APISERVER_DIR/helm HELM_CONFIG_HOME=$APISERVER_DIR/helm HELM_DATA_HOME=$APISERVER_DIR/helm
install() { "$HELM" upgrade --install lockkeeper "$@" -n "$ns" --create-namespace --set store.s3.bucket=backups,store.s3.prefix=lab,store.schedule="0 3 * * *"; }
older=$APISERVER_DIR/older
cp -r "$chart" "$older"
# A release before this one, whose CRD did not know spec.historyLimit.
sed -i 's/historyLimit/historyLimitOfOld/' "$older/files/crds/clusterversions.yaml"
# And which knew no schedules.
rm "$older/files/crds/etcdbackupschedules.yaml" "$older/templates/schedule.yaml"
sed -i 's/^version: .*/version: 0.0.1/' "$older/Chart.yaml"
has_field() { k get crd clusterversions.lockkeeper.dev -o "jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.$1.type}"; }

check "an older release installs, with its CRDs and its store, in one go" install "$older"
check "its CRD is the older one" equals "integer" has_field historyLimitOfOld
check "its CRD has not the newer field" equals "" has_field historyLimit
check "the store is there" equals backups k -n "$ns" get etcdbackupstore default -o 'jsonpath={.spec.s3.bucket}'
store_uid=$(k -n "$ns" get etcdbackupstore default -o 'jsonpath={.metadata.uid}')
check "the upgrade goes through" install "$chart"
check "the upgrade changed the CRD" equals "integer" has_field historyLimit
check "and took the old field away" equals "" has_field historyLimitOfOld
check "the store was kept, not made anew" equals "$store_uid" k -n "$ns" get etcdbackupstore default -o 'jsonpath={.metadata.uid}'
check "the store is now the release's own" says "kind: EtcdBackupStore" "$HELM" get manifest lockkeeper -n "$ns"
check "the schedule came with the upgrade" equals "0 3 * * *" k -n "$ns" get etcdbackupschedule default -o 'jsonpath={.spec.schedule}'
check "a changed value reaches the store" install "$chart" --set store.s3.region=eu-west-1
check "it did" equals eu-west-1 k -n "$ns" get etcdbackupstore default -o 'jsonpath={.spec.s3.region}'
ca=$APISERVER_DIR/store-ca.pem
printf -- '-----BEGIN CERTIFICATE-----\nlab: "a"\n-----END CERTIFICATE-----\n' >"$ca"
check "so does all else that a store may say" install "$chart" --set store.limitBytesPerSecond=8388608,store.compression=None,store.s3.checksum=SHA256,store.s3.serverSideEncryption.kind=KMS,store.s3.serverSideEncryption.kmsKeyId=key --set-file store.s3.caBundle="$ca"
check "its CA to the letter" equals "$(cat "$ca")" k -n "$ns" get etcdbackupstore default -o 'jsonpath={.spec.s3.caBundle}'
check "the rest" equals "8388608 None SHA256 KMS key" k -n "$ns" get etcdbackupstore default -o 'jsonpath={.spec.limitBytesPerSecond} {.spec.compression} {.spec.s3.checksum} {.spec.s3.serverSideEncryption.kind} {.spec.s3.serverSideEncryption.kmsKeyId}'
check "NOTES warn when there is no store" says "WARNING: no store is configured" "$HELM" upgrade lockkeeper "$chart" -n "$ns" --dry-run=server --set store.s3.bucket=
check "NOTES name the Secret to make" says "create secret generic lockkeeper-store" "$HELM" get notes lockkeeper -n "$ns"
check "the server knows every field" sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' | '$KUBECTL' apply --server-side --force-conflicts --dry-run=server --validate=strict -f -"
check "nothing is warned about" equals "" sh -c "'$HELM' template lockkeeper '$chart' -n '$ns' | '$KUBECTL' apply --server-side --force-conflicts --dry-run=server -o name -f - 2>&1 | grep -i warning"

# What a schedule's schema refuses, with the field and the way out; what it lets through; what it fills in.
schedule() { # NAME SPEC
  printf 'apiVersion: lockkeeper.dev/v1alpha1\nkind: EtcdBackupSchedule\nmetadata: {name: %s}\nspec: {storeRef: {name: default}, %s}\n' "$1" "$2" \
    | k -n "$ns" create --dry-run=server -o "${3-name}" -f -
}
check "a schedule is taken" schedule nightly 'schedule: "0 3 * * *", timeZone: Europe/Berlin, retention: {keepWithin: 30d}'
example() { sed "s/lockkeeper-system/$ns/" "$here/../examples/etcdbackupschedule.yaml" | k create --dry-run=server --validate=strict -f -; }
check "the example is taken" example
check "it keeps something when nothing is said" equals 7-7-4-6-UTC schedule nightly 'schedule: "0 3 * * mon-fri"' \
  'jsonpath={.spec.retention.keepLast}-{.spec.retention.keepDaily}-{.spec.retention.keepWeekly}-{.spec.retention.keepMonthly}-{.spec.timeZone}'
refuse "a cron line with seconds" "spec.schedule is no cron line of five fields: write" schedule nightly 'schedule: "0 0 3 * * *"'
refuse "a nickname" "spec.schedule is no cron line of five fields: write" schedule nightly 'schedule: "@daily-at-3"'
refuse "a zone that is an offset" "spec.timeZone is no name of the IANA database: write one" schedule nightly 'schedule: "0 3 * * *", timeZone: "+02:00"'
refuse "a retention that keeps nothing" "spec.retention keeps nothing: set one of keepLast" schedule nightly 'schedule: "0 3 * * *", retention: {keepLast: 0}'
refuse "a duration without a unit" "spec.retention.keepWithin is no duration: write" schedule nightly 'schedule: "0 3 * * *", retention: {keepWithin: "30"}'
refuse "a name that is no label" "metadata.name is longer than 63 characters" schedule "$(printf 'n%.0s' {1..64})" 'schedule: "0 3 * * *"'

refuse "a drill that proves nothing more" "spec.drill.proof is Stored" schedule nightly 'schedule: "0 3 * * *", drill: {schedule: "0 5 * * 0", proof: Stored}'
refuse "a drill by a nickname" "spec.drill.schedule is no cron line of five fields: write" schedule nightly 'schedule: "0 3 * * *", drill: {schedule: "@weekly-on-sunday"}'
check "a drill is a whole one when nothing is said" equals Stored-Drilled schedule nightly 'schedule: "0 3 * * *", drill: {schedule: "0 5 * * 0"}' 'jsonpath={.spec.proof}-{.spec.drill.proof}'

# A store is one place.
store() { # SPEC
  printf 'apiVersion: lockkeeper.dev/v1alpha1\nkind: EtcdBackupStore\nmetadata: {name: s}\nspec: {%s}\n' "$1" | k -n "$ns" create --dry-run=server -f -
}
check "a bucket of Google's is taken" store 'gcs: {bucket: backups}'
check "a container of Azure's is taken" store 'azure: {account: account, container: backups}'
refuse "two places" "spec must name exactly one place, spec.s3, spec.gcs, spec.azure or spec.directory" store 'gcs: {bucket: backups}, azure: {account: account, container: backups}'
refuse "no place" "spec must name exactly one place" store 'compression: Zstd'
refuse "an account that is none" "spec.azure.account" store 'azure: {account: An-Account, container: backups}'

# A backup's spec: fixed, but that more proof may be asked for.
printf 'apiVersion: lockkeeper.dev/v1alpha1\nkind: EtcdBackup\nmetadata: {name: b}\nspec: {storeRef: {name: default}}\n' | k -n "$ns" create -f - >/dev/null
proof() { k -n "$ns" patch etcdbackup b --type merge -p "{\"spec\": $1}"; }
refuse "another deadline" "a backup's spec cannot be changed, spec.proof aside" proof '{"deadlineSeconds": 60}'
refuse "another store" "a backup's spec cannot be changed, spec.proof aside" proof '{"storeRef": {"name": "other"}}'
refuse "something else to include" "a backup's spec cannot be changed, spec.proof aside" proof '{"include": ["PKI"]}'
check "more proof" proof '{"proof": "Verified"}'
refuse "less proof" "spec.proof can only be raised, from Stored to Verified to Drilled" proof '{"proof": "Stored"}'
check "still more proof" proof '{"proof": "Drilled"}'
refuse "a little less proof" "spec.proof can only be raised" proof '{"proof": "Verified"}'
k -n "$ns" delete etcdbackup b >/dev/null

# Pod Security, judged by the server: the operator passes the strictest level, the agents need the namespace opened.
psa() { k label --overwrite namespace "$ns" "pod-security.kubernetes.io/enforce=$1"; }
pod_of() {
  k -n "$ns" get "$1" -o 'jsonpath={.spec.template.spec}' \
    | sed "s/^/{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"t\",\"namespace\":\"$ns\"},\"spec\":/; s/\$/}/" \
    | k create --dry-run=server -f -
}
check "namespace restricted" psa restricted
check "the operator's pod is admitted there" pod_of deployment/lockkeeper-operator
refuse "an agent's pod is not" "violates PodSecurity" pod_of daemonset/lockkeeper-agent
check "NOTES say so" says "enforces Pod Security \"restricted\"" "$HELM" upgrade lockkeeper "$chart" -n "$ns" --dry-run=server
check "namespace privileged" psa privileged
check "an agent's pod is admitted there" pod_of daemonset/lockkeeper-agent
guard() { k -n "$ns" get configmap lockkeeper-guard -o 'jsonpath={.data.guard\.yaml}'; }
taken() { guard | k create --dry-run=server --validate=strict -f -; }
references() { guard | grep -E 'serviceAccount|secret|configMap|persistentVolumeClaim|projected'; true; }
check "the guard is a pod that the server takes" taken
# A kubelet that boots without an API has none of these to give.
check "the guard refers to nothing in the API" equals "" references

# Who may do what. VERB RESOURCE[/SUB] [NAMESPACE] per line, as the API server answers it.
can() { # ACCOUNT yes|no VERB THING [-n NAMESPACE] [--subresource=S]
  local account=$1 want=$2; shift 2
  check "$account may$([ "$want" = yes ] || echo ' not') $*" equals "$want" sh -c '"$@" 2>/dev/null' - \
    "$KUBECTL" auth can-i --as "system:serviceaccount:$ns:lockkeeper-$account" "$@"
}
cv=clusterversions.lockkeeper.dev cpn=controlplanenodes.lockkeeper.dev eb=etcdbackups.lockkeeper.dev ebs=etcdbackupstores.lockkeeper.dev sched=etcdbackupschedules.lockkeeper.dev er=etcdrestores.lockkeeper.dev cc=clustercutovers.lockkeeper.dev
can operator yes watch $cv
can operator yes patch $cv --subresource=status
can operator no delete $cv
can operator no create $cv
can operator yes patch $cpn
can operator no patch $cpn --subresource=status
can operator no delete $cpn
can operator yes create $eb -n "$ns"
can operator no create $eb -n default
can operator yes delete $eb -n "$ns"
can operator no delete $eb -n default
can operator no update $eb -n "$ns"
can operator yes watch $sched -n "$ns"
can operator yes update $sched --subresource=status -n "$ns"
can operator no patch $sched -n "$ns"
can operator no create $sched -n "$ns"
can operator no delete $sched -n "$ns"
can operator yes create $er -n "$ns"
can operator yes update $er --subresource=status -n "$ns"
can operator no patch $er -n "$ns"
can operator no delete $er -n "$ns"
can operator yes patch $ebs --subresource=status -n "$ns"
can operator no patch $ebs -n "$ns"
can operator no get secret/lockkeeper-store -n "$ns"
can operator no list $cc
can operator no get secret/green -n "$ns"
can operator no list secrets -n "$ns"
can operator no get secrets -n kube-system
can operator yes update leases -n "$ns"
can operator yes list leases -n kube-system
can operator no update leases -n kube-system
can operator yes patch configmap/kubeadm-config -n kube-system
can operator no patch configmap/coredns -n kube-system
can operator no get configmaps -n "$ns"
can operator no delete leases -n "$ns"
can operator no create pods -n "$ns"
can operator no create pods --subresource=exec -n kube-system
can operator no patch nodes
can operator yes list nodes
can operator yes create events.events.k8s.io -n default
can operator yes get /readyz/etcd
can operator yes get /metrics
can operator no get /debug/pprof
can operator no create serviceaccounts --subresource=token -n "$ns"
can operator no '*' '*'
can agent yes create $cpn
can agent yes patch $cpn --subresource=status
can agent no patch $cpn
can agent no delete $cpn
can agent yes patch $eb --subresource=status -n "$ns"
can agent no create $eb -n "$ns"
can agent no patch $eb -n "$ns"
can agent no delete $eb -n "$ns"
can agent no get $sched -n "$ns"
can agent no get $er -n "$ns"
can agent yes get $ebs -n "$ns"
can agent yes watch $ebs -n "$ns"
can agent no patch $ebs -n "$ns"
can agent no get $cv
can agent yes get secret/lockkeeper-store -n "$ns"
can agent no list secrets -n "$ns"
can agent no get nodes
can agent no update leases -n "$ns"
can agent no get configmap/kubeadm-config -n kube-system
can agent yes get /metrics
can agent no create serviceaccounts --subresource=token -n "$ns"

check "cutovers are enabled" install "$chart" --set cutover.enabled=true,cutover.secretNames={green}
can operator yes watch $cc
can operator yes patch $cc
can operator yes update $cc --subresource=status
can operator no create $cc
can operator no delete $cc
can operator yes get secret/green -n "$ns"
can operator no get secret/green -n default
can operator no get secret/lockkeeper-store -n "$ns"
can operator no list secrets -n "$ns"
can operator yes get namespace/kube-system
can operator no list namespaces
can agent no get secret/green -n "$ns"
can agent no get $cc
# can-i looks a kind up first, and this API server knows no routes.
review() { printf '{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "system:serviceaccount:%s:lockkeeper-operator", "resourceAttributes": {"group": "%s", "verb": "%s", "resource": "%s", "namespace": "%s"}}}' "$ns" "$@" | k create -o 'jsonpath={.status.allowed}' -f -; }
at_the_edge() { check "may operator $2 $3 in $4: $1" equals "$1" review gateway.networking.k8s.io "$2" "$3" "$4"; }
records() { check "may operator $2 dnsendpoints in $3: $1" equals "$1" review externaldns.k8s.io "$2" dnsendpoints "$3"; }
at_the_edge false patch httproutes default
check "routes may be set where it is said" install "$chart" --set cutover.enabled=true,cutover.gatewayAPI.namespaces={default}
for resource in httproutes grpcroutes tlsroutes tcproutes; do at_the_edge true patch $resource default; done
at_the_edge true get gateways default
at_the_edge false patch gateways default
at_the_edge false list httproutes default
at_the_edge false patch tcproutes kube-system
records false patch default
check "records may be set where it is said" install "$chart" --set cutover.enabled=true,cutover.externalDNS.namespaces={default}
records true get default
records true patch default
records false list default
records false patch kube-system
cutover() { sed "$1" "$here/../examples/clustercutover.yaml" | k create --dry-run=server --validate=strict -f -; }
check "the example of a cutover is taken" cutover ''
refuse "steps that do not rise" "spec.steps do not rise" cutover 's/green: 50, soak/green: 25, soak/'
refuse "steps that do not end at 100" "spec.steps do not end at 100" cutover 's/green: 100, soak/green: 99, soak/'
refuse "the same cluster twice" "both this cluster" cutover 's/kubeconfigSecret: {name: green}/thisCluster: true/'
refuse "the same kubeconfig twice" "name the same kubeconfig" cutover 's/blue: {thisCluster: true}/blue: {kubeconfigSecret: {name: green}}/'
routes='gatewayAPI: {cluster: {kubeconfigSecret: {name: edge}}, routes: [{namespace: shop, name: web}], blue: {name: blue}, green: {name: green}}'
check "routes of a Gateway instead" cutover "/^    haproxy:/,/^      green:/c\\    $routes"
jobs='job: {cluster: {thisCluster: true}, namespace: shop-edge, name: shop, template: {spec: {template: {spec: {containers: []}}}}}'
check "Jobs of one's own beside it" cutover "s/^    haproxy:/    $jobs\n&/"
check "and instead of it" cutover "/^    haproxy:/,/^      green:/c\\    $jobs"
refuse "Jobs of a name that is none" "spec.traffic.job.name" cutover "s/^    haproxy:/    ${jobs/name: shop,/name: Shop_1,}\n&/"
check "routes beside an HAProxy" cutover "s/^    haproxy:/    $routes\n&/"
records='externalDNS: {cluster: {thisCluster: true}, namespace: edge, name: shop, blue: blue, green: green}'
check "records of external-dns instead" cutover "/^    haproxy:/,/^      green:/c\\    $records"
refuse "records without a colour" "green" cutover "/^    haproxy:/,/^      green:/c\\    ${records/, green: green/}"
refuse "nothing that moves the traffic" "spec.traffic must name what moves" cutover '/^    haproxy:/,/^      green:/d; s/^  traffic:.*/  traffic: {}/'
refuse "routes of no cluster" "give exactly one" cutover "/^    haproxy:/,/^      green:/c\\    ${routes/kubeconfigSecret: {name: edge\}/}"
refuse "no cluster" "give exactly one" cutover 's/blue: {thisCluster: true}/blue: {}/'
refuse "two gates of one name" "the same name" cutover 's/name: green-answers/name: shop-answers/'
refuse "an accepted difference that is not compared" "outside of spec.parity.namespaces" cutover 's/namespaces: \[shop\]/namespaces: [other]/'
refuse "an accepted difference without a reason" "reason" cutover 's/, reason: green is.*}/}/'
refuse "a budget of nothing" "spec.budget sets nothing" cutover 's/budget: .*/budget: {}/'
refuse "a gate that asks nothing" "give exactly one" cutover 's#http: {url: "http://shop.*#passes: 1#'
refuse "a gate that asks two things" "give exactly one" cutover 's#http: {url: "http://shop.*#&\n    promQL: {url: "http://p:9090", query: up, min: 1}#'
refuse "a query without a bound" "has no bound" cutover 's/max: 0.01/timeoutSeconds: 3/'
refuse "a token in the clear" "in the clear" cutover 's/max: 0.01/&\n      tokenSecret: {name: prometheus}/'
refuse "a Job every two seconds" "intervalSeconds of 10" cutover 's/intervalSeconds: 30/intervalSeconds: 2/'
refuse "a Job without a spec" "template.spec" cutover '/^      template:$/{n;s/spec:/metadata:/}'
refuse "less capacity without a reason" "spec.capacity.reason" cutover 's/atLeastPercent: 100/atLeastPercent: 50/'
check "less capacity with one" cutover 's/atLeastPercent: 100/atLeastPercent: 50, reason: it shrinks/'
refuse "an accepted controller without a reason" "reason" cutover 's/^  capacity:.*/  acceptedControllers: [{kind: Deployment, namespace: shop, name: consumer}]/'
k create -f "$here/../examples/clustercutover.yaml" >/dev/null
change() { k patch clustercutover shop --type merge -p "{\"spec\": $1}"; }
refuse "another step in the middle" "cannot be changed but for spec.promote" change '{"rollbackWindowSeconds": 1}'
refuse "another parity in the middle" "spec.parity cannot be changed" change '{"parity": {"namespaces": ["shop", "other"]}}'
refuse "and none" "spec.parity cannot be changed" change '{"parity": null}'
other_job() { k get clustercutover shop -o json | sed 's/smoke:1.2.3/smoke:1.2.4/' | k replace -f -; }
refuse "another Job in the middle" "cannot be changed but for spec.promote" other_job
refuse "less capacity in the middle" "spec.capacity and spec.acceptedControllers cannot be changed" change '{"capacity": {"atLeastPercent": 10, "reason": "x"}}'
check "a step is approved" change '{"promote": 25}'
refuse "and not disapproved" "spec.promote can only be raised" change '{"promote": 5}'
check "it is aborted" change '{"abort": true}'
refuse "once and for all" "spec.abort was given" change '{"abort": false}'
k delete clustercutover shop >/dev/null
printf '%s\n' 'cutover: {enabled: true, parityRules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]}' >"$APISERVER_DIR/parity.yaml"
check "parity may read what it is given" install "$chart" --values "$APISERVER_DIR/parity.yaml"
can operator yes list configmaps -n default
can operator no list secrets -n default
printf '%s\n' 'cutover: {enabled: true, handOver: {namespaces: [default]}, gates: {rules: [{apiGroups: [apps], resources: [deployments], verbs: [get, list]}], jobNamespaces: [default]}}' >"$APISERVER_DIR/gates.yaml"
check "gates may read and run what they are given" install "$chart" --values "$APISERVER_DIR/gates.yaml"
can operator yes list deployments.apps -n kube-public
can operator yes create jobs.batch -n default
can operator yes delete jobs.batch -n default
can operator no create jobs.batch -n kube-public
can operator yes list nodes
can operator yes list horizontalpodautoscalers.autoscaling -n default
can operator no list horizontalpodautoscalers.autoscaling -n kube-public
check "Jobs may move traffic where it is said" install "$chart" --set cutover.enabled=true,cutover.trafficJobs.namespaces={default}
can operator yes create jobs.batch -n default
can operator yes delete jobs.batch -n default
can operator yes list pods -n default
can operator no delete pods -n default
can operator no create jobs.batch -n kube-public
can operator no list pods -n kube-public
refuse "a namespace that is none" "jobNamespaces" render --set cutover.enabled=true,cutover.gates.jobNamespaces={Shop_1}

check "the policy is about this namespace's agents" says "system:serviceaccount:$ns:lockkeeper-agent" k get validatingadmissionpolicy agent-own-node.lockkeeper.dev -o yaml
check "uninstall" "$HELM" uninstall lockkeeper -n "$ns"
check "the CRDs stay" k get crd clusterversions.lockkeeper.dev
refuse "the policies go" "not found" k get validatingadmissionpolicy agent-own-node.lockkeeper.dev
check "and it installs over the CRDs that stayed" install "$chart"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
