module github.com/clustermesh/clustermesh

go 1.26.0

require (
	// loads, pins and attaches the programs; bpf2go compiles them (>= 0.22.0: CVE-2026-10722)
	github.com/cilium/ebpf v0.22.0
	// plural forms in what people read
	github.com/dustin/go-humanize v1.0.1
	// follows the directories of clusters and manifests
	github.com/fsnotify/fsnotify v1.10.1
	// takes client-go's log into slog
	github.com/go-logr/logr v1.4.4
	// zstd: endpoint slices travel compressed
	github.com/klauspost/compress v1.20.3
	// metrics
	github.com/prometheus/client_golang v1.25.0
	// reads metrics back in tests
	github.com/prometheus/client_model v0.6.3
	// reads pages of metrics in tests
	github.com/prometheus/common v0.72.0
	// testscript and txtar: golden scenarios and command tests
	github.com/rogpeppe/go-internal v1.16.0
	// commands and help
	github.com/spf13/cobra v1.10.2
	// flags
	github.com/spf13/pflag v1.0.10
	// environment and configuration file
	github.com/spf13/viper v1.21.0
	// test networks of the demo and the end-to-end tests
	github.com/vishvananda/netlink v1.3.1
	// their network namespaces
	github.com/vishvananda/netns v0.0.5
	// the wire protocol that readers speak
	go.etcd.io/etcd/api/v3 v3.7.3
	// error and type helpers of the server's API
	go.etcd.io/etcd/client/pkg/v3 v3.7.3
	// in-process client of the embedded etcd; reference client in tests
	go.etcd.io/etcd/client/v3 v3.7.3
	// the embedded etcd (>= 3.7.1: CVE-2026-73499, CVE-2026-73500)
	go.etcd.io/etcd/server/v3 v3.7.3
	// no goroutine outlives a test
	go.uber.org/goleak v1.3.0
	// what etcd logs with; bridged to slog
	go.uber.org/zap v1.28.0
	// files of clusters, peers and flags; the maintained continuation of gopkg.in/yaml.v3, and viper's own
	go.yaml.in/yaml/v3 v3.0.5
	// the bcrypt cost that etcd's configuration wants
	golang.org/x/crypto v0.58.0
	// errgroup
	golang.org/x/sync v0.24.0
	// mmap, flock, bpf mounts
	golang.org/x/sys v0.49.0
	// tells terminals from files, and their size
	golang.org/x/term v0.47.0
	// rate limits per peer
	golang.org/x/time v0.15.0
	// gateway, connection, local API (>= 1.82.1: GHSA-hrxh-6v49-42gf)
	google.golang.org/grpc v1.85.0
	// wire encoding and generated code
	google.golang.org/protobuf v1.36.12
	// Kubernetes objects
	k8s.io/api v0.37.2
	// their metadata
	k8s.io/apimachinery v0.37.2
	// follows a Kubernetes API server
	k8s.io/client-go v0.37.2
	// what client-go logs with; bridged to slog
	k8s.io/klog/v2 v2.140.0
	// state machine tests against an oracle
	pgregory.net/rapid v1.3.0
	// strict decoding of manifests, as the API server does it
	sigs.k8s.io/json v0.0.0-20250730193827-2d320260d730
	// manifests are YAML that means JSON
	sigs.k8s.io/yaml v1.6.0
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/coreos/go-semver v0.3.1 // indirect
	github.com/coreos/go-systemd/v22 v22.7.0 // indirect
	github.com/davecgh/go-spew v1.1.2-0.20180830191138-d8f796af33cc // indirect
	github.com/emicklei/go-restful/v3 v3.13.0 // indirect
	github.com/fxamacker/cbor/v2 v2.9.1 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/go-openapi/jsonpointer v1.0.0 // indirect
	github.com/go-openapi/jsonreference v1.0.0 // indirect
	github.com/go-openapi/swag v0.27.1 // indirect
	github.com/go-openapi/swag/cmdutils v0.27.1 // indirect
	github.com/go-openapi/swag/conv v0.27.1 // indirect
	github.com/go-openapi/swag/fileutils v0.27.1 // indirect
	github.com/go-openapi/swag/jsonutils v0.27.1 // indirect
	github.com/go-openapi/swag/loading v0.27.1 // indirect
	github.com/go-openapi/swag/mangling v0.27.1 // indirect
	github.com/go-openapi/swag/netutils v0.27.1 // indirect
	github.com/go-openapi/swag/pools v0.27.1 // indirect
	github.com/go-openapi/swag/stringutils v0.27.1 // indirect
	github.com/go-openapi/swag/typeutils v0.27.1 // indirect
	github.com/go-openapi/swag/yamlutils v0.27.1 // indirect
	github.com/go-viper/mapstructure/v2 v2.4.0 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	github.com/google/gnostic-models v0.7.0 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus v1.1.0 // indirect
	github.com/grpc-ecosystem/go-grpc-middleware/v2 v2.3.3 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.29.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jonboulle/clockwork v0.5.0 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.3-0.20250322232337-35a7c28c31ee // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/pelletier/go-toml/v2 v2.2.4 // indirect
	github.com/pmezard/go-difflib v1.0.1-0.20181226105442-5d4384ee4fb2 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/sagikazarmark/locafero v0.11.0 // indirect
	github.com/sourcegraph/conc v0.3.1-0.20240121214520-5f936abd7ae8 // indirect
	github.com/spf13/afero v1.15.0 // indirect
	github.com/spf13/cast v1.10.0 // indirect
	github.com/subosito/gotenv v1.6.0 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	github.com/xiang90/probing v0.0.0-20221125231312-a49e3df8f510 // indirect
	go.etcd.io/bbolt v1.5.0 // indirect
	go.etcd.io/etcd/pkg/v3 v3.7.3 // indirect
	go.etcd.io/raft/v3 v3.7.0 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc v0.68.0 // indirect
	go.opentelemetry.io/otel v1.45.0 // indirect
	go.opentelemetry.io/otel/metric v1.45.0 // indirect
	go.opentelemetry.io/otel/trace v1.45.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc/cmd/protoc-gen-go-grpc v1.6.2 // indirect
	gopkg.in/evanphx/json-patch.v4 v4.13.0 // indirect
	gopkg.in/inf.v0 v0.9.1 // indirect
	k8s.io/kube-openapi v0.0.0-20260721132016-d427ff9ee9ad // indirect
	k8s.io/utils v0.0.0-20260626114624-be93311217bd // indirect
	sigs.k8s.io/randfill v1.0.0 // indirect
	sigs.k8s.io/structured-merge-diff/v6 v6.4.2 // indirect
)

tool (
	github.com/cilium/ebpf/cmd/bpf2go
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)
