package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/stream"
)

// permission is a row of the table of docs/topology.md.
type permission struct{ publish, subscribe []string }

// documentedPermissions are the rows of the table: the node itself, beside that with edges, another node, beside that an edge.
func documentedPermissions(t *testing.T) (rows []permission) {
	t.Helper()
	text, err := os.ReadFile("../docs/topology.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "<!-- permissions: begin -->")
	table, _, _ := strings.Cut(rest, "<!-- permissions: end -->")
	code := regexp.MustCompile("`[^`]+`")
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		var p permission
		cells := strings.Split(line, "|")
		for _, s := range code.FindAllString(cells[2], -1) {
			p.publish = append(p.publish, strings.Trim(s, "`"))
		}
		for _, s := range code.FindAllString(cells[3], -1) {
			p.subscribe = append(p.subscribe, strings.Trim(s, "`"))
		}
		rows = append(rows, p)
	}
	if len(rows) != 4 {
		t.Fatalf("the table has %d rows", len(rows))
	}
	return rows
}

// granted is what rows of the table mean at a node's server, for another node or the node itself.
func granted(c *cluster.Cluster, node, other string, rows ...permission) (publish, subscribe []string) {
	streams := []string{"PGB_" + c.Name + "_" + node}
	for _, n := range c.Nodes {
		if n.Name != node {
			streams = append(streams, streams[0]+"-"+n.Name)
		}
	}
	expand := func(subjects []string) (all []string) {
		for _, s := range subjects {
			s = strings.NewReplacer("<cluster>", c.Name, "<node>", node, "<edge>", other, "<other>", other).Replace(s)
			for _, x := range streams {
				if at := strings.ReplaceAll(s, "<stream>", x); !slices.Contains(all, at) {
					all = append(all, at)
				}
			}
		}
		return all
	}
	for _, r := range rows {
		publish, subscribe = append(publish, expand(r.publish)...), append(subscribe, expand(r.subscribe)...)
	}
	return publish, subscribe
}

// TestKeysPermitWhatIsDocumented: servers inside bridges permit what the table says of others, and a node's shadow beside that.
func TestKeysPermitWhatIsDocumented(t *testing.T) {
	c := &cluster.Cluster{Name: "shop", Nodes: []*cluster.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}}
	rows := documentedPermissions(t)
	others := []string{"b", "c"}
	require := func(what, of string, got stream.Permissions, answer bool, rows ...permission) {
		t.Helper()
		publish, subscribe := granted(c, "a", of, rows...)
		got.Publish = slices.DeleteFunc(got.Publish, func(s string) bool { return strings.Contains(s, stream.ShadowName("shop", "a")) })
		for _, all := range [][]string{publish, subscribe, got.Publish, got.Subscribe} {
			slices.Sort(all)
		}
		if !slices.Equal(got.Publish, publish) || !slices.Equal(got.Subscribe, subscribe) || got.Answer != answer {
			t.Errorf("%s may\n%q\n%q, answer %v, and the table says\n%q\n%q, %v", what, got.Publish, got.Subscribe, got.Answer, publish, subscribe, answer)
		}
	}
	require("the node itself", "a", stream.OwnPermissions("shop", "a", others, true), true, rows[0], rows[1])
	require("a node without edges", "a", stream.OwnPermissions("shop", "a", others, false), true, rows[0])
	require("another node", "b", stream.PeerPermissions("shop", "a", "b", others, false), false, rows[2])
	require("an edge", "c", stream.PeerPermissions("shop", "a", "c", others, true), true, rows[2], rows[3])
}

// TestLeastPermissions: nodes whose credentials permit what the documentation says, and nothing else, replicate, hear and ask each
// other, two by NATS servers with TLS and users, and an edge. What is not permitted is refused.
func TestLeastPermissions(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema, Idle: true})
	rows := documentedPermissions(t)
	authority := natstest.NewAuthority(t)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	servers := map[string]*natstest.Server{}
	for _, node := range []string{"a", "b"} {
		user := func(name string, answer bool, rows ...permission) natstest.User {
			publish, subscribe := granted(c, node, name, rows...)
			return natstest.User{Name: name, Secret: "s3cret", Publish: publish, Subscribe: subscribe, Answer: answer}
		}
		var users []natstest.User
		for _, n := range c.Nodes {
			switch {
			case n.Name == node:
				users = append(users, user(n.Name, true, rows[0], rows[1]))
			case n.Name == "c":
				users = append(users, user(n.Name, true, rows[2], rows[3]))
			default:
				users = append(users, user(n.Name, false, rows[2]))
			}
		}
		servers[node] = natstest.NewWith(t, natstest.Options{Users: users, TLS: authority.Server(t, "127.0.0.1", false)})
	}
	for _, n := range c.Nodes {
		text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres: {dsn: %q}\ntopology:\n  failover_after: 2s\n  roles: {c: edge}\n  nodes: {a: %s, b: %s}\nnats:\n",
			c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN, servers["a"].URL(), servers["b"].URL())
		if s := servers[n.Name]; s != nil {
			text += "  url: " + s.URL() + "\n"
		}
		text += "  links:\n"
		for _, at := range []string{"a", "b"} {
			text += fmt.Sprintf("    %s: {user: %s, password_file: %s, ca_file: %s}\n", at, n.Name, password, authority.CAFile)
		}
		if err := os.WriteFile(n.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
	requireNothingRefused(t, c)

	nc := connectAs(t, servers["a"].URL(), "b", authority.CAFile)
	if _, err := stream.Ask(t.Context(), nc, stream.DeltaSubject(c.Name, "a"), []byte{'?'}); err != nil {
		t.Errorf("a question about a delta: %v", err)
	}
	requireRefused(t, c, nc)
}

// requireNothingRefused has all nodes write, hear and ask each other, and none of them be refused anything.
func requireNothingRefused(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	l := startLoad(t, c, 1, seed(t))
	l.run(time.Second)
	c.WaitConverged()
	requireCounts(t, c, l)
	a := c.Node("a")
	a.AwaitStatus(func(r *cluster.Report) bool { return len(r.Alarms) == 0 && r.Waiting == "" }) // all hear each other
	if r := verify(t, a, bridge.VerifyOptions{}); r.Rows == 0 || r.Differences > 0 {
		t.Errorf("nodes compared: %+v", r)
	}
	for _, n := range c.Nodes {
		if text, _ := os.ReadFile(filepath.Join(n.Dir, "bridge.log")); strings.Contains(string(text), "refused a subject") || strings.Contains(strings.ToLower(string(text)), "permissions violation") {
			t.Errorf("node %s was refused something:\n%s", n.Name, n.LogTail())
		}
	}
}

// requireRefused has a node that is not a try what it may not do at the server of a.
func requireRefused(t *testing.T, c *cluster.Cluster, nc *nats.Conn) {
	t.Helper()
	refused := func(subject string, err error) {
		t.Helper()
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(subject)) {
			t.Errorf("%s is not refused: %v", subject, err)
		}
	}
	for _, subject := range []string{"_INBOX.>", "_INBOX.c.>", "_INBOX.*.*"} { // what others are answered
		_, err := nc.SubscribeSync(subject)
		refused(subject, err)
	}
	for _, subject := range []string{"pgb." + c.Name + ".a.a", "pgb." + c.Name + ".a.b", "pgb_hello." + c.Name + ".a", "pgb_ahead." + c.Name + ".a.a",
		"$JS.API.STREAM.PURGE.PGB_" + c.Name + "_a", "$JS.API.STREAM.DELETE.PGB_" + c.Name + "_a", "$JS.API.STREAM.CREATE.X", stream.DoorSubject(c.Name, "c", "a")} {
		refused(subject, nc.Publish(subject, nil))
	}
}

// connectAs connects to a server as one of its users.
func connectAs(t *testing.T, url, user, caFile string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.CustomInboxPrefix("_INBOX."+user), nats.UserInfo(user, "s3cret"), nats.RootCAs(caFile), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
