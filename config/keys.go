package config

import (
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/topology"
)

// key is one setting that an operator can write. Texts are as they stand in the file.
type key struct {
	name     string            // dotted path
	initial  string            // default; "" for none, or when derived says how it comes about
	derived  string            // the default in words, where it depends on other keys
	sample   string            // what config.example.yaml shows, where that is not the default
	why      string            // one line: what it is for
	allowed  []string          // the only values, if not nil
	least    string            // lower bound of a number, size or duration; "" for none
	most     string            // upper bound; "" for none
	required bool              // there is no default
	secret   bool              // never printed
	file     bool              // the value is the name of a file that holds the secret
	live     bool              // a reload changes it while the bridge runs; all else is read at the start
	field    func(*Config) any // pointer to where the value goes; its type is the key's type
}

// keys returns the table of all settings, in the order of the documentation.
func keys() []key {
	return append(append(nodeKeys(), brokerKeys()...), partKeys()...)
}

// nodeKeys are the settings of this node, its primary and its place in the cluster.
func nodeKeys() []key {
	return []key{
		{name: "cluster", sample: "shop", required: true,
			why:   "Name of the cluster, the same on every node: 1 to 16 of a-z 0-9 _.",
			field: func(c *Config) any { return &c.Cluster }},
		{name: "node", sample: "a", required: true,
			why:   "Name of this node, another one on every node: 1 to 16 of a-z 0-9 _.",
			field: func(c *Config) any { return &c.Node }},
		{name: "mode", initial: ModeLive, allowed: []string{ModeLive, ModeShadow},
			why:   "live; or shadow: write nothing, and say in status which conflicts there would be, before the first live run. See docs/control.md.",
			field: func(c *Config) any { return &c.Mode }},
		{name: "data_dir", derived: "/var/lib/pgbridge/<node>",
			why:   "Directory of the embedded broker's streams and of spooled transactions; one per bridge.",
			field: func(c *Config) any { return &c.DataDir }},
		{name: "tables", initial: "*.*",
			why:   "Which tables: patterns over schema.table, * for any characters, ! excludes and wins.",
			field: func(c *Config) any { return &c.Tables }},
		{name: "shutdown_timeout", initial: "10s", least: "1s", most: "10m", live: true,
			why:   "How long a stop may take; what it cannot finish by then is safe, the next start catches up.",
			field: func(c *Config) any { return &c.ShutdownTimeout }},

		{name: "postgres.dsn", sample: "postgres://pgbridge@/app?host=/var/run/postgresql", secret: true,
			why:   "Connection string of the local primary; required unless dsn_file is given. The socket is fastest.",
			field: func(c *Config) any { return &c.Postgres.DSN }},
		{name: "postgres.dsn_file", file: true,
			why:   "File that holds the connection string, instead of postgres.dsn.",
			field: func(c *Config) any { return &c.Postgres.DSNFile }},
		{name: "postgres.auto_setup", initial: "true",
			why:   "Let run create schema, publication and slot; false where a DBA runs setup.",
			field: func(c *Config) any { return &c.Postgres.AutoSetup }},
		{name: "postgres.failover", initial: "false",
			why:   "A physical standby is to take over (PostgreSQL 17 or later): alarm when it could not. See docs/failover.md.",
			field: func(c *Config) any { return &c.Postgres.Failover }},

		{name: "topology.kind", initial: "mesh", allowed: []string{topology.KindMesh, topology.KindRing, topology.KindStar, topology.KindGraph},
			why:   "Who reads from whom: all from all, in a ring by name, through a center, or as topology.links says.",
			field: func(c *Config) any { return &c.Topology.Kind }},
		{name: "topology.center",
			why:   "The node in the middle of a star.",
			field: func(c *Config) any { return &c.Topology.Center }},
		{name: "topology.links",
			why:   "The links of a graph, each between two nodes and in both directions, such as a-b.",
			field: func(c *Config) any { return &c.Topology.Links }},
		{name: "topology.failover_after", initial: "10s", least: "0s", most: "1h",
			why:   "A node that is silent for longer is routed around; 0s: none is.",
			field: func(c *Config) any { return &c.Topology.FailoverAfter }},
		{name: "topology.nodes", sample: "a=nats://127.0.0.1:4222,b=nats://127.0.0.1:4223,c=nats://127.0.0.1:4224",
			required: true,
			why:      "Every node's name and the NATS server that holds its stream; the same on every node.",
			field:    func(c *Config) any { return &c.Topology.Nodes }},
		{name: "topology.roles",
			why:   "Nodes that are reader (users do not write), edge (dials out only, not in nodes) or edge_reader; the same on every node.",
			field: func(c *Config) any { return &c.Topology.Roles }},
		{name: "topology.writers",
			why:   "Tables that only some nodes write, such as shop.price=a b; others' writes are parked. The same on every node. See docs/security.md.",
			field: func(c *Config) any { return &c.Topology.Writers }},
		{name: residencyKey,
			why:   "Tables that only some nodes have, such as crm.*=a b; the others get nothing of them. The same on every node. See docs/residency.md.",
			field: func(c *Config) any { return &c.Topology.Residency }},
		{name: rowsKey,
			why:   "Rows that only some nodes have, by a column of the table's key, such as shop.orders.region=eu:a b. The same on every node. See docs/residency.md.",
			field: func(c *Config) any { return &c.Topology.Rows }},
		{name: columnsKey,
			why:   "Columns whose values only some nodes have, such as shop.customers.email=a b; on others they are NULL. The same on every node. See docs/residency.md.",
			field: func(c *Config) any { return &c.Topology.Columns }},
	}
}

// brokerKeys are the settings of the NATS server and of the stream in it.
func brokerKeys() []key {
	return []key{
		{name: "nats.embedded.listen", derived: "host and port of topology.nodes.<node>",
			why:   "Address of the NATS server inside the bridge, when peers reach it under another one.",
			field: func(c *Config) any { return &c.NATS.Embedded.Listen }},
		{name: "nats.embedded.allow_plaintext", initial: "false",
			why:   "Permit a listener that other machines reach without TLS: only in a network you trust.",
			field: func(c *Config) any { return &c.NATS.Embedded.AllowPlaintext }},
		{name: "nats.embedded.sync", initial: "always", allowed: []string{"always", "interval"},
			why:   "When frames are fsynced: always before the ack, or by interval (a power cut may lose minutes).",
			field: func(c *Config) any { return &c.NATS.Embedded.Sync }},
		{name: "nats.embedded.max_store", initial: "10GiB", least: "64MiB",
			why:   "Disk that the embedded server may use; twice stream.max_bytes lets a full stream free itself.",
			field: func(c *Config) any { return &c.NATS.Embedded.MaxStore }},
		{name: "nats.embedded.max_payload", initial: "1MiB", least: "1MiB", most: "8MiB",
			why:   "Largest message of the embedded server; must leave room above capture.frame_bytes.",
			field: func(c *Config) any { return &c.NATS.Embedded.MaxPayload }},
		{name: "nats.url",
			why:   "Use this NATS server (JetStream on), or several of one cluster, a,b, for the node's stream, instead of the embedded one.",
			field: func(c *Config) any { return &c.NATS.URL }},
		{name: "nats.creds_file",
			why:   "NATS credentials file for every connection to a NATS server.",
			field: func(c *Config) any { return &c.NATS.CredsFile }},
		{name: "nats.keys_dir",
			why:   "Directory of this node that pgbridge keys has made: TLS, and who may do what. See docs/security.md.",
			field: func(c *Config) any { return &c.NATS.KeysDir }},
		{name: "nats.token", secret: true,
			why:   "Token for every connection; the embedded server asks for it too. Better in token_file.",
			field: func(c *Config) any { return &c.NATS.Token }},
		{name: "nats.token_file", file: true,
			why:   "File that holds the token, instead of nats.token.",
			field: func(c *Config) any { return &c.NATS.TokenFile }},
		{name: "nats.links",
			why:   "How this node reaches the servers of others, where that is not as for all: URL, credentials, certificates. See docs/topology.md.",
			field: func(c *Config) any { return &c.NATS.Links }},

		{name: "stream.max_bytes", initial: "8GiB", least: "64MiB",
			why:   "What the stream may hold for slow readers, in need twice that; when full, capture pauses with an alarm.",
			field: func(c *Config) any { return &c.Stream.MaxBytes }},
		{name: "stream.absent_bytes", derived: "half of stream.max_bytes", live: true,
			why:   "Beyond this, frames go that only nodes which are away lack; they must get the rows from others then. 0: none go.",
			field: func(c *Config) any { return &c.Stream.AbsentBytes }},
		{name: "stream.replicas", initial: "0", least: "0", most: "5",
			why:   "Replicas of the streams in a cluster of NATS servers, such as 3; 0: one, or as many as they have. Takes nats.url.",
			field: func(c *Config) any { return &c.Stream.Replicas }},
		{name: "stream.compression", initial: "none", allowed: []string{"none", "zstd"},
			why:   "Compress frames: zstd where links are slower than the CPU.",
			field: func(c *Config) any { return &c.Stream.Compression }},
		{name: signaturesKey, initial: SignaturesNone, allowed: []string{SignaturesNone, SignaturesWrite, SignaturesRequire},
			why:   "Sign own frames and check others': write refuses what is forged, require what is not signed, too. See docs/security.md.",
			field: func(c *Config) any { return &c.Stream.Signatures }},
	}
}

// partKeys are the settings of capture, apply and what stands around them.
func partKeys() []key {
	return []key{
		{name: "capture.frame_bytes", initial: "256KiB", least: "16KiB", most: "7MiB",
			why:   "Size at which a frame is closed under load; larger costs latency, smaller costs fsyncs.",
			field: func(c *Config) any { return &c.Capture.FrameBytes }},
		{name: "capture.linger", initial: "5ms", least: "0s", most: "1s",
			why:   "How long a frame waits for more while another is in flight; four times that if its readers can have it already.",
			field: func(c *Config) any { return &c.Capture.Linger }},
		{name: "capture.status_interval", initial: "10s", least: "1s", most: "30s",
			why:   "How often PostgreSQL is told what is safe; must stay well below wal_sender_timeout.",
			field: func(c *Config) any { return &c.Capture.StatusInterval }},

		{name: "apply.batch_transactions", initial: "256", least: "1", most: "65536",
			why:   "Remote transactions in one pipeline, per origin.",
			field: func(c *Config) any { return &c.Apply.BatchTransactions }},
		{name: "apply.batch_bytes", initial: "1MiB", least: "16KiB", most: "64MiB",
			why:   "Bytes in one pipeline, per origin; bounds memory.",
			field: func(c *Config) any { return &c.Apply.BatchBytes }},
		{name: "apply.rate", initial: "0", least: "0", live: true,
			why:   "Bytes of transactions applied per second, of all nodes together, to leave the server to its users; 0: no bound.",
			field: func(c *Config) any { return &c.Apply.Rate }},
		{name: "apply.yield_at", initial: "0", least: "0", live: true,
			why:   "When so many sessions of users are at work at once, apply works a part of the time only; 0: never. See docs/control.md.",
			field: func(c *Config) any { return &c.Apply.YieldAt }},
		{name: "apply.ahead", initial: "true",
			why:   "Take small transactions when a peer has sent them, not only when its broker has stored them.",
			field: func(c *Config) any { return &c.Apply.Ahead }},
		{name: "apply.conflict_retention", initial: "30d", least: "0s", live: true,
			why:   "How long the conflict history keeps a loser; 0s keeps it for ever.",
			field: func(c *Config) any { return &c.Apply.ConflictRetention }},
		{name: "apply.conflict_rows", initial: "1000000", least: "0", live: true,
			why:   "How many losers the conflict history keeps; 0 is no limit.",
			field: func(c *Config) any { return &c.Apply.ConflictRows }},
		{name: "apply.spool_limit", initial: "10GiB", least: "0",
			why:   "Disk for large transactions that are not committed yet; beyond it their origin waits. 0 is no limit.",
			field: func(c *Config) any { return &c.Apply.SpoolLimit }},
		{name: "apply.max_clock_skew", initial: "60s", least: "1s", most: "1d",
			why:   "Alarm when another node's clock is ahead by more.",
			field: func(c *Config) any { return &c.Apply.MaxClockSkew }},

		{name: "conflict.default", initial: "last_writer_wins", allowed: []string{"last_writer_wins"},
			why:   "Policy for concurrent writes of one row: the later stamp wins, the loser is kept.",
			field: func(c *Config) any { return &c.Conflict.Default }},
		{name: "conflict.priority",
			why:   "Nodes in the order in which their writes win under origin_priority; the same on every node.",
			field: func(c *Config) any { return &c.Conflict.Priority }},
		{name: "conflict.home",
			why:   "Columns that name the node at which a row should be written, such as shop.item=region; writes elsewhere are counted. The same on every node. See docs/conflicts.md.",
			field: func(c *Config) any { return &c.Conflict.Home }},
		{name: "conflict.home_nodes",
			why:   "Which node a value of these columns means, such as eu=a, where it is not the node's name; the same on every node.",
			field: func(c *Config) any { return &c.Conflict.HomeNodes }},
		{name: "conflict.tables",
			why:   "Tables that are merged in another way, column by column if need be; the same on every node. See docs/conflicts.md.",
			field: func(c *Config) any { return &c.Conflict.Tables }},
		{name: "conflict.foreign_keys",
			why:   "What becomes of rows whose parent was deleted elsewhere, such as shop.item.*=restore; the same on every node. See docs/conflicts.md.",
			field: func(c *Config) any { return &c.Conflict.ForeignKeys }},

		{name: "verify.every", initial: "0s", least: "0s", most: "365d", live: true,
			why:   "How often this node's rows are compared with all others' in the background; 0s: never. One node is enough. See docs/verify.md.",
			field: func(c *Config) any { return &c.Verify.Every }},
		{name: "verify.rows_per_second", initial: "2000", least: "1", most: "1000000", live: true,
			why:   "How many rows of each node that reads in a second.",
			field: func(c *Config) any { return &c.Verify.RowsPerSecond }},

		{name: "http.listen",
			why:   "Address that serves /status (JSON) and /healthz (200 or 503), such as 127.0.0.1:8080; empty is off.",
			field: func(c *Config) any { return &c.HTTP.Listen }},
		{name: "http.viewer_token", secret: true,
			why:   "Whoever has it may look at the console at /console/, 16 characters or more. Better in viewer_token_file. See docs/console.md.",
			field: func(c *Config) any { return &c.HTTP.ViewerToken }},
		{name: "http.viewer_token_file", file: true,
			why:   "File that holds it, instead of http.viewer_token.",
			field: func(c *Config) any { return &c.HTTP.ViewerTokenFile }},
		{name: "http.operator_token", secret: true,
			why:   "Whoever has it may also undo, retry, pause and compare there. Better in operator_token_file.",
			field: func(c *Config) any { return &c.HTTP.OperatorToken }},
		{name: "http.operator_token_file", file: true,
			why:   "File that holds it, instead of http.operator_token.",
			field: func(c *Config) any { return &c.HTTP.OperatorTokenFile }},
		{name: "http.allow_plaintext", initial: "false",
			why:   "Permit tokens on an address that other machines reach, without TLS: only in a network you trust.",
			field: func(c *Config) any { return &c.HTTP.AllowPlaintext }},
		{name: "http.pprof", initial: "false",
			why:   "Serve the Go runtime's profiles there, too, at /debug/pprof/. The status socket always does. See docs/metrics.md.",
			field: func(c *Config) any { return &c.HTTP.Pprof }},

		{name: "trace.endpoint",
			why:   "URL of a collector that takes OpenTelemetry traces (OTLP over HTTP), such as http://127.0.0.1:4318; empty: none are made. See docs/metrics.md.",
			field: func(c *Config) any { return &c.Tracing.Endpoint }},
		{name: "trace.one_in", initial: "1000", least: "1", most: "1000000000",
			why:   "One of so many transactions is traced; the same number on every node, which traces the same ones then.",
			field: func(c *Config) any { return &c.Tracing.OneIn }},

		{name: "log.level", initial: "info", allowed: []string{"debug", "info", "warn", "error"}, live: true,
			why:   "Least severity that is logged, to standard error.",
			field: func(c *Config) any { return &c.Log.Level }},
		{name: "log.format", initial: "text", allowed: []string{"text", "json"}, live: true,
			why:   "text for people, json for collectors.",
			field: func(c *Config) any { return &c.Log.Format }},
	}
}

// find returns the key of that name.
func find(name string) (key, bool) {
	for _, k := range keys() {
		if k.name == name {
			return k, true
		}
	}
	return key{}, false
}

// groups returns the dotted names under which keys are grouped, in the table's order.
func groups() []string {
	var names []string
	seen := map[string]bool{}
	for _, k := range keys() {
		parts := strings.Split(k.name, ".")
		for i := 1; i < len(parts); i++ {
			g := strings.Join(parts[:i], ".")
			if !seen[g] {
				seen[g] = true
				names = append(names, g)
			}
		}
	}
	return names
}

// keyOf finds the key that name is or lies below, as topology.nodes.a lies below topology.nodes.
func keyOf(name string) (key, bool) {
	for _, k := range keys() {
		if rest, below := strings.CutPrefix(name, k.name); below && (rest == "" || rest[0] == '.') {
			return k, true
		}
	}
	return key{}, false
}

// names lists the keys in the table's order.
func names() []string {
	var all []string
	for _, k := range keys() {
		all = append(all, k.name)
	}
	return all
}

// isGroup reports whether keys stand below name.
func isGroup(name string) bool { return slices.Contains(groups(), name) }

// membersOf lists the keys below a group.
func membersOf(group string) []string {
	return slices.DeleteFunc(names(), func(name string) bool { return !strings.HasPrefix(name, group+".") })
}

// envPrefix begins the name of every variable that sets a key.
const envPrefix = "PGBRIDGE_"

// env returns the environment variable that overrides k.
func (k key) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}
