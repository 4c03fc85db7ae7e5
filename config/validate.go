package config

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgbridge/pgbridge/topology"
)

// Validate checks each setting and all of them together. The error is an [*Error] without places; [Load]
// has called it, so only a Config that was built otherwise needs it.
func (c *Config) Validate() error { return c.problems().err() }

// derive fills in what depends on other keys.
func (c *Config) derive() {
	if c.DataDir == "" && c.Node != "" {
		c.DataDir = "/var/lib/pgbridge/" + c.Node
	}
	if c.Stream.AbsentBytes == derived {
		c.Stream.AbsentBytes = c.Stream.MaxBytes / 2
	}
	c.deriveEdges()
	if own, err := url.Parse(splitURLs(c.Topology.Nodes[c.Node])[0]); err == nil && c.Embedded() && !c.Edge(c.Node) && c.NATS.Embedded.Listen == "" {
		c.NATS.Embedded.Listen = hostPort(own)
	}
	if !slices.ContainsFunc(c.Tables, func(pattern string) bool { return !strings.HasPrefix(pattern, "!") }) {
		c.Tables = append([]string{"*.*"}, c.Tables...)
	}
	c.deriveTables()
}

// problems says what is wrong, in the order of the key table, then what does not fit together.
func (c *Config) problems() problems {
	var ps problems
	for _, k := range keys() {
		ps.checkValue(k, k.field(c))
	}
	c.checkNames(&ps)
	c.checkPostgres(&ps)
	c.checkTables(&ps)
	c.checkNodes(&ps)
	c.checkRoles(&ps)
	c.checkLinks(&ps)
	c.checkBroker(&ps)
	c.checkAccess(&ps)
	c.checkSizes(&ps)
	c.checkPolicies(&ps)
	c.checkForeignKeys(&ps)
	c.checkHomes(&ps)
	c.checkWriters(&ps)
	c.checkResidency(&ps)
	c.checkRows(&ps)
	c.checkColumns(&ps)
	c.checkHTTP(&ps)
	c.checkTracing(&ps)
	return ps
}

// checkValue checks one value against its key's row in the table.
func (ps *problems) checkValue(k key, field any) {
	text := encode(field)
	switch {
	case k.required && text == "":
		ps.add(k.name, "is required (or %s): %s", k.env(), k.why)
	case k.allowed != nil && !slices.Contains(k.allowed, text):
		ps.add(k.name, "%q is not allowed; use %s", text, orList(k.allowed))
	case k.least != "" && amount(field) < k.bound(k.least):
		ps.add(k.name, "%s is too small; the least is %s", text, k.least)
	case k.most != "" && amount(field) > k.bound(k.most):
		ps.add(k.name, "%s is too large; the most is %s", text, k.most)
	}
}

// bound reads a bound of the key table as a value of the key's type.
func (k key) bound(text string) int64 {
	field := k.field(new(Config))
	if err := decodeText(field, text); err != nil {
		panic("config: key table: " + k.name + ": " + err.Error()) // TestKeyTable reads every bound
	}
	return amount(field)
}

// nameRule says what [isName] accepts.
const nameRule = "use 1 to 16 of a-z, 0-9 and _"

var namePattern = regexp.MustCompile(`^[a-z0-9_]{1,16}$`)

// isName reports whether s can be part of a slot, a stream and a subject.
func isName(s string) bool { return namePattern.MatchString(s) }

func (c *Config) checkNames(ps *problems) {
	for _, n := range []struct{ key, name string }{{"cluster", c.Cluster}, {"node", c.Node}} {
		if n.name != "" && !isName(n.name) {
			ps.add(n.key, "%q is not a name; %s", n.name, nameRule)
		}
	}
	if c.DataDir == "" && c.Node != "" {
		ps.add("data_dir", "is empty; name a directory")
	}
}

func (c *Config) checkPostgres(ps *problems) {
	dsn := c.Postgres.DSN
	switch {
	case dsn == "":
		ps.add("postgres.dsn", "is required (or PGBRIDGE_POSTGRES_DSN, or postgres.dsn_file): "+
			"the connection string of the local primary, such as postgres://pgbridge@/app?host=/var/run/postgresql")
	case isURL(dsn, "postgres", "postgresql"):
		if _, err := url.Parse(dsn); err != nil {
			ps.add("postgres.dsn", "is not a URL that can be read; "+
				"write special characters of a password as %%XX, or use the form host=... dbname=...")
		}
	case !strings.Contains(dsn, "="):
		ps.add("postgres.dsn", "is not a connection string; write postgres://user@host:5432/database or "+
			"host=... dbname=...")
	}
}

func (c *Config) checkTables(ps *problems) {
	for _, written := range c.Tables {
		pattern := strings.TrimPrefix(written, "!")
		sign := written[:len(written)-len(pattern)]
		schema, table, ok := strings.Cut(pattern, ".")
		switch {
		case !ok:
			ps.add("tables", "%q names no schema; write %q or %q", written, sign+"public."+pattern, sign+"*."+pattern)
		case schema == "" || table == "":
			ps.add("tables", "%q is not schema.table; write %q for all tables of a schema", written, sign+"app.*")
		}
	}
}

// MostNodes is how many nodes a cluster has at most: what the header of a frame may say of them is bounded (stream's
// headerRoom).
const MostNodes = 64

// checkNodes checks the names and URLs of the topology, and this node's place in it.
func (c *Config) checkNodes(ps *problems) {
	nodes := c.Topology.Nodes
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		entry := "topology.nodes." + name
		if !isName(name) {
			ps.add(entry, "%q is not a name; %s", name, nameRule)
			continue
		}
		if !c.Edge(name) {
			ps.checkURL(entry, nodes[name])
		}
		if name == c.Node && c.Embedded() && len(splitURLs(nodes[name])) > 1 {
			ps.add(entry, "is the server inside this node's bridge, which is one; give its URL alone, or set nats.url to a shared server")
		}
	}
	if len(nodes) > MostNodes {
		ps.add("topology.nodes", "names %d nodes; a cluster has at most %d, since each frame says what its author had seen of each", len(nodes), MostNodes)
	}
	own, there := nodes[c.Node]
	switch {
	case len(nodes) == 0 || c.Node == "":
		return
	case !there:
		ps.add("topology.nodes", "lacks this node, %q; the names there are %s: add it, or correct node",
			c.Node, strings.Join(slices.Sorted(maps.Keys(nodes)), ", "))
		return
	case !c.Embedded():
		return // an external server may hold the streams of several nodes
	}
	if isURL(own, "tls") {
		ps.add("topology.nodes."+c.Node, "the embedded server has no TLS; write nats://, or set nats.url to a server with TLS")
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if name != c.Node && sameServer(own, nodes[name]) {
			ps.add("topology.nodes."+name, "is the server inside this node's bridge (%q); "+
				"give each node its own host:port, or set nats.url to a shared server", c.Node)
		}
	}
}

// Graph is the topology: nodes and links.
func (c *Config) Graph() *topology.Graph {
	t := &c.Topology
	nodes := slices.Sorted(maps.Keys(t.Nodes))
	var links []topology.Link
	for _, text := range t.Links {
		if l, err := topology.ParseLink(text); err == nil { // else checkLinks has said so
			links = append(links, l)
		}
	}
	links = topology.Links(t.Kind, nodes, t.Center, links)
	if t.Kind == topology.KindMesh { // every node with every other one that it can reach
		links = slices.DeleteFunc(links, func(l topology.Link) bool { return c.Edge(l.A) && c.Edge(l.B) })
	}
	return topology.New(nodes, links).As(t.Roles)
}

// checkLinks checks that every node can get what every other one writes.
func (c *Config) checkLinks(ps *problems) {
	t := &c.Topology
	if len(t.Nodes) == 0 {
		return
	}
	names := strings.Join(slices.Sorted(maps.Keys(t.Nodes)), ", ")
	_, known := t.Nodes[t.Center]
	switch star := t.Kind == topology.KindStar; {
	case star && t.Center == "":
		ps.add("topology.center", "is missing; name the node in the middle of the star, one of %s", names)
		return
	case star && !known:
		ps.add("topology.center", "%q is not in topology.nodes; the names there are %s", t.Center, names)
		return
	case !star && t.Center != "":
		ps.add("topology.center", "counts for a star only, and topology.kind is %s; remove it, or write kind: star", t.Kind)
	}
	graph := t.Kind == topology.KindGraph
	if !graph && len(t.Links) > 0 {
		ps.add("topology.links", "count for a graph only, and topology.kind is %s; remove them, or write kind: graph", t.Kind)
	}
	good := true
	for _, text := range t.Links {
		l, err := topology.ParseLink(text)
		if err != nil {
			ps.add("topology.links", "%v", err)
			good = false
			continue
		}
		for _, node := range []string{l.A, l.B} {
			if _, ok := t.Nodes[node]; !ok {
				ps.add("topology.links", "link %s names %q, which is not in topology.nodes; the names there are %s", l, node, names)
				good = false
			}
		}
	}
	switch parts := c.Graph().Parts(); {
	case len(parts) < 2 || !good:
	case t.Kind == topology.KindMesh:
		ps.add("topology.roles", "no way leads from %s to %s, since all nodes are edges; take the role from one, or let them have another node between them", strings.Join(parts[0], ", "), strings.Join(parts[1], ", "))
	case graph:
		ps.add("topology.links", "no way leads from %s to %s; add a link between them", strings.Join(parts[0], ", "), strings.Join(parts[1], ", "))
	}
}

// checkBroker checks where the own stream lives and how it is reached.
func (c *Config) checkBroker(ps *problems) {
	listen := c.NATS.Embedded.Listen
	if c.NATS.URL != "" {
		ps.checkURL("nats.url", c.NATS.URL)
		if listen != "" {
			ps.add("nats.url", "given together with nats.embedded.listen; "+
				"keep nats.url for an external server, or nats.embedded.listen for the one inside")
		}
	} else if listen != "" && ps.checkListen("nats.embedded.listen", listen) &&
		!c.NATS.Embedded.AllowPlaintext && c.NATS.KeysDir == "" && !isLoopback(listen) {
		ps.add("nats.embedded.listen", "other machines can reach %s and the embedded server has no TLS; "+
			"run pgbridge keys and set nats.keys_dir, or nats.embedded.allow_plaintext: true in a network you trust, or nats.url to a server with TLS", listen)
	}
	if c.NATS.KeysDir != "" && (c.NATS.CredsFile != "" || c.NATS.Token != "") {
		ps.add("nats.keys_dir", "given together with nats.creds_file or a token; keep one of them")
	}
	if c.Stream.Signatures != SignaturesNone && c.NATS.KeysDir == "" {
		ps.add(signaturesKey, "%s takes keys; run pgbridge keys and set nats.keys_dir", c.Stream.Signatures)
	}
	if c.NATS.CredsFile != "" && c.NATS.Token != "" {
		ps.add("nats.creds_file", "given together with a token; keep one of them")
	}
}

// leastToken is how many characters the token of a person has at least: nobody guesses that many.
const leastToken = 16

// checkHTTP checks the listener, and who may sign in to the console there.
func (c *Config) checkHTTP(ps *problems) {
	h := c.HTTP
	listens := h.Listen != "" && ps.checkListen("http.listen", h.Listen)
	for _, t := range []struct{ key, token, file string }{
		{"http.viewer_token", h.ViewerToken, h.ViewerTokenFile}, {"http.operator_token", h.OperatorToken, h.OperatorTokenFile}} {
		if t.file != "" {
			t.key += "_file"
		}
		switch length := utf8.RuneCountInString(t.token); {
		case length == 0:
		case length < leastToken:
			ps.add(t.key, "the token has %d characters; use %d or more, such as openssl rand -hex 24 prints", length, leastToken)
		case h.Listen == "":
			ps.add(t.key, "is for the console, which is served at http.listen, and that is empty; set http.listen: 127.0.0.1:8080, or remove the token")
		}
	}
	switch {
	case h.OperatorToken != "" && h.OperatorToken == h.ViewerToken:
		ps.add("http.viewer_token", "is that of operators, too, so that nobody could only look; use another one for one of the roles")
	case listens && c.Console() && !isLoopback(h.Listen) && !h.AllowPlaintext:
		ps.add("http.listen", "other machines can reach %s, and tokens would go there without TLS; "+
			"listen on 127.0.0.1, behind a proxy that has TLS, or set http.allow_plaintext: true in a network you trust", h.Listen)
	}
}

// checkTracing checks where traces are sent.
func (c *Config) checkTracing(ps *problems) {
	if c.Tracing.Endpoint == "" {
		return
	}
	if u, err := url.Parse(c.Tracing.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		ps.add("trace.endpoint", "%q is no URL of a collector; write one such as http://127.0.0.1:4318", c.Tracing.Endpoint)
	}
}

// frameRoom is what the largest message must leave above capture.frame_bytes: the header of a frame and
// the record that closes it.
const frameRoom = 64 * KiB

// checkSizes checks the sizes that limit each other.
func (c *Config) checkSizes(ps *problems) {
	if absent, stream := c.Stream.AbsentBytes, c.Stream.MaxBytes; stream > 0 && absent > stream {
		ps.add("stream.absent_bytes", "%s is more than stream.max_bytes (%s); lower the first or raise the second", absent, stream)
	}
	if !c.Embedded() {
		return // the external server's limits are not ours to know here
	}
	if c.Stream.Replicas > 1 {
		ps.add("stream.replicas", "%d takes a cluster of NATS servers, and the one inside the bridge is alone; set nats.url, or remove it", c.Stream.Replicas)
	}
	frame, payload := c.Capture.FrameBytes, c.NATS.Embedded.MaxPayload
	if frame > payload-frameRoom {
		ps.add("capture.frame_bytes", "%s does not fit into nats.embedded.max_payload (%s) with %s to spare; "+
			"lower the first or raise the second", frame, payload, frameRoom)
	}
	if stream, store := c.Stream.MaxBytes, c.NATS.Embedded.MaxStore; stream > store {
		ps.add("stream.max_bytes", "%s is more than nats.embedded.max_store (%s); lower the first or raise the second",
			stream, store)
	}
}

// nextURL is where another URL of a list begins. A comma alone may be in a password.
var nextURL = regexp.MustCompile(`,\s*(?:nats|tls)://`)

// splitURLs cuts a list of URLs of one NATS cluster, as the client takes it, with commas between.
func splitURLs(text string) (all []string) {
	for {
		at := nextURL.FindStringIndex(text)
		if at == nil {
			return append(all, strings.TrimSpace(text))
		}
		all, text = append(all, strings.TrimSpace(text[:at[0]])), text[at[0]+1:]
	}
}

// Hosts are the hosts of lists of URLs, sorted, each once.
func Hosts(lists ...string) (all []string) {
	for _, list := range lists {
		for _, text := range splitURLs(list) {
			if u, err := url.Parse(text); err == nil && u.Hostname() != "" && !slices.Contains(all, u.Hostname()) {
				all = append(all, u.Hostname())
			}
		}
	}
	slices.Sort(all)
	return all
}

// checkURL refuses what is not the URL of a NATS server, or those of several of one cluster.
func (ps *problems) checkURL(key, text string) {
	for _, text := range splitURLs(text) {
		u, err := url.Parse(text)
		switch {
		case err != nil, u.Hostname() == "", u.Scheme != "nats" && u.Scheme != "tls":
			ps.add(key, "%q is not the URL of a NATS server; write nats://host:4222 or tls://host:4222", redactURL(text))
		case u.Port() != "" && !isPort(u.Port(), 1):
			ps.add(key, "port %s does not exist; use 1 to 65535", u.Port())
		}
	}
}

// checkListen refuses what is not host:port and reports whether it was fine. Port 0 means any free one.
func (ps *problems) checkListen(key, text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil || !isPort(port, 0) {
		ps.add(key, "%q is not host:port; write an address such as 127.0.0.1:4222", text)
		return false
	}
	return true
}

func isPort(text string, least uint64) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n >= least
}

// isLoopback reports whether only this machine reaches host:port.
func isLoopback(listen string) bool {
	host, _, _ := net.SplitHostPort(listen)
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// hostPort gives the address of a NATS URL, with NATS's default port; empty if there is none.
func hostPort(u *url.URL) string {
	if u.Hostname() == "" {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "4222"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// sameServer reports whether a URL and one of a list name one address.
func sameServer(a, list string) bool {
	left, err := url.Parse(a)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(splitURLs(list), func(b string) bool {
		right, err := url.Parse(b)
		return err == nil && hostPort(left) != "" && hostPort(left) == hostPort(right)
	})
}

// isURL reports whether text begins with one of the schemes.
func isURL(text string, schemes ...string) bool {
	scheme, _, ok := strings.Cut(text, "://")
	return ok && slices.Contains(schemes, scheme)
}

// amount gives a number, size or duration as an integer; 0 for anything else.
func amount(field any) int64 {
	switch p := field.(type) {
	case *int:
		return int64(*p)
	case *Size:
		return int64(*p)
	case *time.Duration:
		return int64(*p)
	}
	return 0
}

// orList writes "a", "a or b", "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return fmt.Sprintf("%s or %s", strings.Join(words[:last], ", "), words[last])
}
